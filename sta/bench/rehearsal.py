"""A rehearsal of what a cluster does to a training: killed again and again, it must end as one that never was.

One run goes straight through, the other is killed (SIGKILL, all its processes) at random steps and in the middle of
saving, and started again with the same command each time. One step before the end, and at the end, their states are
compared to the last bit: weights, optimizer, random numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich import box
from rich.table import Table

from sta.config import yamlfile
from sta.config.recipe import Recipe, dump_recipe
from sta.data.checksums import first_fault
from sta.errors import RecipeError, StaError
from sta.progress import Bar
from sta.training import checkpoint
from sta.training.faults import VARIABLE
from sta.training.stages import settings_of, stage_names
from sta.training.workspace import Workspace

ALONE = "alone"  # one process, without a launcher
IN_A_SAVE = ("save", "rename", "prune")  # points of `sta.training.faults`; every fourth kill strikes at one of them
SAVES = 10  # in a run, at least
POLL = 0.005  # seconds
LIMIT = 1800.0  # seconds that a start may take to the next kill


@dataclass
class Outcome:
    """What one way of launching came to.

    Attributes:
        kills: how many there were, `in_save` of them while a checkpoint was saved.
        redone: steps that were done again, over all starts.
        without_checkpoint: kills after the first save that left no whole checkpoint.
        different: what differs from the run that went straight through; nothing, if all is well.
        seconds: of the straight run and of the killed one.
    """

    launch: str
    kills: int = 0
    in_save: int = 0
    redone: int = 0
    without_checkpoint: int = 0
    different: list[str] = field(default_factory=list)
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def well(self) -> bool:
        return not self.different and not self.without_checkpoint


def rehearse(recipe: Recipe, out: Path, stage: str, launches: Sequence[str], kills: int, seed: int) -> list[Outcome]:
    """Rehearse one stage, whose earlier stages are done, under each of some launch files; `alone` is without one.

    Raises:
        RecipeError: no such stage or launch file, or too few steps for so many kills.
        StaError: an earlier stage is not done, or a start fails of itself.
    """
    known = stage_names(recipe)[1:]
    if stage not in known:
        raise RecipeError(f"--stage {stage} is not one of this recipe's training stages: {', '.join(known)}")
    for launch in launches:
        launch_file(launch)
    steps = settings_of(recipe, stage).steps
    if steps < 2 * kills + 2:
        raise RecipeError(f"stage {stage}: {steps} steps are too few for {kills} kills; at least {2 * kills + 2} work")
    before = stage_names(recipe)[: stage_names(recipe).index(stage)]
    finals = {name: Workspace(recipe, out).final(name) for name in before}
    found = []
    with Bar("rehearsal", len(launches) * (kills + 1), "starts") as bar:
        for launch in launches:
            straight, killed = (_Run(recipe, out, stage, launch, word, finals) for word in ("straight", "killed"))
            outcome = _compare(straight, killed, kills, np.random.default_rng(seed), bar)
            found.append(outcome)
            if outcome.well:
                straight.remove()
                killed.remove()
    return found


def launch_file(name: str) -> Path | None:
    """The packaged launch file of a name; None for `alone`.

    Raises:
        RecipeError: there is none; names those that there are.
    """
    if name == ALONE:
        return None
    folder = yamlfile.packaged("recipes") / "accelerate"
    if not (folder / f"{name}.yaml").is_file():
        known = ", ".join([ALONE, *sorted(p.stem for p in folder.glob("*.yaml"))])
        raise RecipeError(f"--launch {name}: no such launch file (known: {known})")
    return folder / f"{name}.yaml"


class _Run:
    """One run of the stage in a folder of its own, which reads what the earlier stages left."""

    def __init__(self, recipe: Recipe, out: Path, stage: str, launch: str, word: str, finals: dict[str, Path]):
        section = f"{stage.partition('-')[0]}"
        settings = settings_of(recipe, stage)
        every = max(1, min(settings.save_every, settings.steps // SAVES))
        changed = settings.model_copy(update={"log_every": 1, "save_every": every})
        stages = recipe.stages.model_copy(update={section: changed})
        name = f"{recipe.name}-rehearsal-{launch}-{word}"
        self.recipe = recipe.model_copy(update={"name": name, "stages": stages})
        self.settings, self.stage_name, self.launch, self.out = changed, stage, launch_file(launch), out
        self.folder = out / name
        self.remove()
        for earlier, final in finals.items():
            (self.folder / earlier).mkdir(parents=True)
            (self.folder / earlier / "final").symlink_to(final.resolve())
        self.file = self.folder / "rehearsed.yaml"
        self.file.write_text(dump_recipe(self.recipe), encoding="utf-8")
        self.stage = self.folder / stage

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def checkpoints(self) -> Path:
        return self.stage / "checkpoints"

    @property
    def done(self) -> int:
        """The last step in the log."""
        try:
            lines = (self.stage / "log" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, IndexError, ValueError):
            return 0  # none yet, or one that is half written

    @contextmanager
    def started(self, faults: str = "") -> Iterator[subprocess.Popen[bytes]]:
        environment = {**os.environ, VARIABLE: faults}
        if self.launch:
            environment.setdefault("OMP_NUM_THREADS", "1")
        with (self.folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(self._command(), env=environment, stdout=output, stderr=subprocess.STDOUT)
            try:
                yield process
            finally:
                kill_all(process)

    def _command(self) -> list[str]:
        train = ["-m", "sta.train", str(self.file), "--stage", self.stage_name, "--out", str(self.out)]
        if self.launch is None:
            return [sys.executable, *train]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(self.launch), "--main_process_port", port]
        return [sys.executable, *launcher, *train]

    def struck(self) -> set[str]:
        """The faults that have struck."""
        path = self.stage / "log" / "faults.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return {json.loads(line)["fault"] for line in lines}

    def whole_checkpoint(self) -> bool:
        return any(first_fault(path) is None for _, path in checkpoint.all_of(self.checkpoints))

    def until_it_ends(self, faults: str, wanted: Path) -> None:
        """Start, and return when it has ended and left `wanted`."""
        with self.started(faults) as process:
            process.wait(LIMIT)
        if not wanted.exists():
            raise StaError(f"{wanted}: was not reached; {self.folder / 'output.txt'} says why")


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all that it started, and to those of a launcher that have sessions of their own."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(family, 30)
    process.wait()


def _compare(straight: _Run, killed: _Run, kills: int, rng: np.random.Generator, bar: Bar) -> Outcome:
    last = straight.settings.steps - 1
    almost, name = f"term@step:{last}", f"step-{last:07d}"
    outcome = Outcome(straight.launch.stem if straight.launch else ALONE)
    begun = time.monotonic()
    straight.until_it_ends(almost, straight.checkpoints / name)
    bar.advance()
    middle = time.monotonic()
    for number, target in enumerate(np.sort(rng.choice(np.arange(1, last - 1), kills, replace=False))):
        _kill_once(killed, int(target), number, almost, rng, outcome)
        bar.advance()
    killed.until_it_ends(almost, killed.checkpoints / name)
    outcome.seconds = (middle - begun, time.monotonic() - middle)
    outcome.different += differences(straight.checkpoints / name, killed.checkpoints / name)
    for run in (straight, killed):
        run.until_it_ends("", run.stage / "final")
    outcome.different += differences(straight.stage / "final", killed.stage / "final")
    return outcome


def _kill_once(run: _Run, target: int, number: int, almost: str, rng: np.random.Generator, outcome: Outcome) -> None:
    """Start, and kill all of it at a step, or in the middle of the next save after it."""
    every, faults = run.settings.save_every, almost
    save = (target // every + 1) * every
    in_save = number % 4 == 3 and save < run.settings.steps - 1
    fault = f"kill@{IN_A_SAVE[number // 4 % len(IN_A_SAVE)]}:{save}"
    if in_save:
        faults += f"; {fault}"
    there = run.whole_checkpoint()
    with run.started(faults) as process:
        end = time.monotonic() + LIMIT
        while process.poll() is None and (in_save or run.done < target):
            if time.monotonic() > end:
                raise StaError(f"{run.folder}: no step {target} in {LIMIT:.0f} s; output.txt in it says why")
            time.sleep(POLL)
        if process.poll() is not None and not in_save:
            raise StaError(f"{run.folder}: ended before step {target} of itself; output.txt in it says why")
        time.sleep(float(rng.random()) * 10 * POLL)
    if in_save and fault not in run.struck():
        raise StaError(f"{run.folder}: ended before {fault} of itself; output.txt in it says why")
    reached = run.done
    found = checkpoint.all_of(run.checkpoints)
    outcome.kills += 1
    outcome.in_save += in_save
    outcome.without_checkpoint += (there or reached > 2 * every) and not run.whole_checkpoint()
    outcome.redone += reached - (found[0][0] if found else 0)


def differences(one: Path, other: Path) -> list[str]:
    """Files of two folders that do not hold the same, by what is in them where their bytes differ."""
    names = sorted({str(p.relative_to(folder)) for folder in (one, other) for p in folder.rglob("*") if p.is_file()})
    return [name for name in names if name != "SHA256SUMS" and not _same(one / name, other / name)]


def _same(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return False
    if one.read_bytes() == other.read_bytes():
        return True
    if one.suffix not in (".bin", ".pt", ".pkl"):
        return False
    # made by this very command a moment ago, in its own folder
    return deep_equal(*(torch.load(path, map_location="cpu", weights_only=False) for path in (one, other)))


def deep_equal(one: Any, other: Any) -> bool:
    """Whether two states, nested as torch saves them, are equal to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.equal(other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(deep_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(deep_equal, one, other))
    if hasattr(one, "__dict__"):
        return deep_equal(vars(one), vars(other))
    return bool(one == other)


def table(outcomes: Sequence[Outcome]) -> Table:
    """A line for each way of launching.

    Kills, those of them while saving, steps done again, kills that left no whole checkpoint, files that differ.
    """
    made = Table(title="killed and started again, against never killed", title_justify="left", box=box.SIMPLE_HEAD)
    columns = ("launch", "kills", "saving", "redone", "lost", "differ", "seconds", "never killed")
    for name in columns:
        made.add_column(name, justify="left" if name == "launch" else "right", overflow="fold")
    for o in outcomes:
        numbers = (o.kills, o.in_save, o.redone, o.without_checkpoint, len(o.different))
        made.add_row(o.launch, *map(str, numbers), f"{o.seconds[1]:.0f}", f"{o.seconds[0]:.0f}")
    return made


def as_json(outcomes: Sequence[Outcome]) -> str:
    return json.dumps([{**asdict(o), "well": o.well} for o in outcomes], indent=2) + "\n"
