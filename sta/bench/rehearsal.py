"""A rehearsal of what a cluster does to a training: killed again and again, it must end as one that never was.

One run of a stage goes straight through. Another is killed (SIGKILL, all its processes) at random steps and in the
middle of saving, and started again with the same command each time. Both must leave the same weights, to the last bit.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.table import Table

from sta.config import yamlfile
from sta.config.recipe import Recipe, dump_recipe
from sta.data.checksums import first_fault
from sta.errors import RecipeError, StaError
from sta.metrics.tables import make_table
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
OUTPUT = "output.txt"


@dataclass
class Outcome:
    """The result of one way of launching.

    Attributes:
        kills: how many there were, `in_save` of them while a checkpoint was saved.
        repeated_steps: steps that were done again, over all starts.
        without_checkpoint: kills after the first save that left no whole checkpoint.
        different: files that differ from those of the run that went straight through.
    """

    launch: str
    kills: int = 0
    in_save: int = 0
    repeated_steps: int = 0
    without_checkpoint: int = 0
    different: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Tell whether nothing differs and no kill left the run without a checkpoint."""
        return not self.different and not self.without_checkpoint


def rehearse(recipe: Recipe, out: Path, stage: str, launches: Sequence[str], kills: int, seed: int) -> list[Outcome]:
    """Rehearse one stage, whose earlier stages are done, under each of some launch files; `alone` is without one.

    Raises:
        RecipeError: no such stage or launch file, or too few steps for so many kills.
        StaError: an earlier stage is not done, or a start fails.
    """
    names = stage_names(recipe)
    if stage not in names[1:]:
        raise RecipeError(f"--stage {stage} is not one of this recipe's training stages: {', '.join(names[1:])}")
    files = [None if launch == ALONE else yamlfile.find(launch, "recipes/accelerate") for launch in launches]
    steps = settings_of(recipe, stage).steps
    if steps < 2 * kills + 2:
        raise RecipeError(f"stage {stage}: {steps} steps are too few for {kills} kills; at least {2 * kills + 2} work")
    finals = {name: Workspace(recipe, out).final(name) for name in names[: names.index(stage)]}
    outcomes = []
    with Bar("rehearsal", len(files) * (kills + 2), "starts") as bar:
        for file in files:
            straight, killed = (_Run(recipe, out, stage, file, word, finals) for word in ("straight", "killed"))
            outcomes.append(_compare(straight, killed, kills, np.random.default_rng(seed), bar))
            if outcomes[-1].passed:
                straight.remove()
                killed.remove()
    return outcomes


class _Run:
    """One run of the stage in a folder of its own, which reads what the earlier stages left."""

    def __init__(
        self, recipe: Recipe, out: Path, stage: str, launch: Path | None, word: str, finals: Mapping[str, Path]
    ):
        settings = settings_of(recipe, stage)
        self.save_every = max(1, min(settings.save_every, settings.steps // SAVES))
        changed = settings.model_copy(update={"log_every": 1, "save_every": self.save_every})
        stages = recipe.stages.model_copy(update={stage.partition("-")[0]: changed})
        name = f"{recipe.name}-rehearsal-{launch.stem if launch else ALONE}-{word}"
        self.steps, self.launch, self.folder = settings.steps, launch, out / name
        self.stage, self.final = self.folder / stage, self.folder / stage / "final"
        self.remove()
        for earlier, final in finals.items():
            (self.folder / earlier).mkdir(parents=True)
            (self.folder / earlier / "final").symlink_to(final.resolve())
        file = self.folder / "rehearsed.yaml"
        file.write_text(dump_recipe(recipe.model_copy(update={"name": name, "stages": stages})), encoding="utf-8")
        self.command = ["-m", "sta.train", str(file), "--stage", stage, "--out", str(out)]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def last_step(self) -> int:
        """The last step in the log."""
        try:
            lines = (self.stage / "log" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, IndexError, ValueError):
            return 0  # none yet, or one that is half written

    @contextmanager
    def started(self, faults: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """Start the stage; it is gone, all its processes with it, when the block is left."""
        environment = {**os.environ, VARIABLE: faults}
        launcher: list[str] = []
        if self.launch:
            environment.setdefault("OMP_NUM_THREADS", "1")
            launcher = ["-m", "accelerate.commands.launch", "--config_file", str(self.launch)]
            launcher += ["--main_process_port", "0"]  # a free one
        with (self.folder / OUTPUT).open("ab") as output:
            command = [sys.executable, *launcher, *self.command]
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            try:
                yield process
            finally:
                kill_all(process)

    def finish(self) -> None:
        """Start the stage and wait until it is done."""
        with self.started() as process:
            process.wait(LIMIT)
        if not self.final.exists():
            raise StaError(f"{self.stage}: did not finish; {self.folder / OUTPUT} has the reason")

    def has_whole_checkpoint(self) -> bool:
        return any(first_fault(path) is None for _, path in checkpoint.all_of(self.stage / "checkpoints"))

    def kill_once(self, target: int, in_save: str, rng: np.random.Generator, outcome: Outcome) -> None:
        """Start the stage, and kill all of it after a step, or at a point of the next save after it."""
        save = (target // self.save_every + 1) * self.save_every
        at_save = bool(in_save) and save < self.steps - 1
        had_checkpoint, end = self.has_whole_checkpoint(), time.monotonic() + LIMIT
        with self.started(f"kill@{in_save}:{save}" if at_save else "") as process:
            while process.poll() is None and (at_save or self.last_step < target):
                if time.monotonic() > end:
                    raise StaError(f"{self.folder}: no step {target} in {LIMIT:.0f} s; {OUTPUT} in it has the reason")
                time.sleep(POLL)
            if self.final.exists() or (process.poll() is not None and not at_save):
                raise StaError(f"{self.folder}: ended by itself before step {target}; {OUTPUT} in it has the reason")
            time.sleep(float(rng.random()) * 10 * POLL)
        found = checkpoint.all_of(self.stage / "checkpoints")
        outcome.kills += 1
        outcome.in_save += at_save
        expected = had_checkpoint or self.last_step > 2 * self.save_every
        outcome.without_checkpoint += expected and not self.has_whole_checkpoint()
        outcome.repeated_steps += self.last_step - (found[0][0] if found else 0)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to a process and all that it started, those of a launcher that have sessions of their own too."""
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
    outcome = Outcome(straight.launch.stem if straight.launch else ALONE)
    straight.finish()
    bar.advance()
    for number, target in enumerate(np.sort(rng.choice(np.arange(1, straight.steps - 2), kills, replace=False))):
        killed.kill_once(int(target), IN_A_SAVE[number // 4 % 3] if number % 4 == 3 else "", rng, outcome)
        bar.advance()
    killed.finish()
    bar.advance()
    outcome.different = differences(straight.final, killed.final)
    return outcome


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of the files of two folders that do not hold the same bytes."""
    names = {str(p.relative_to(folder)) for folder in (one, other) for p in folder.rglob("*") if p.is_file()}
    _, different, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    return sorted(different + missing)


def table(outcomes: Sequence[Outcome]) -> Table:
    """Tabulate a line for each way of launching."""
    columns = ("launch", "kills", "while saving", "steps repeated", "checkpoints lost", "files that differ")
    numbers = ((o.kills, o.in_save, o.repeated_steps, o.without_checkpoint, len(o.different)) for o in outcomes)
    lines = ([o.launch, *map(str, counts)] for o, counts in zip(outcomes, numbers, strict=True))
    return make_table("killed and started again, against never killed", columns, lines)


def as_json(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a JSON list."""
    return json.dumps([{**asdict(o), "passed": o.passed} for o in outcomes], indent=2) + "\n"
