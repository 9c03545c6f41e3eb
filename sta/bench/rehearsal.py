"""A rehearsal of what a cluster does to a training: killed again and again, it must end as one that never was.

One run of a stage goes straight through. Another is killed (SIGKILL) at random steps and in the middle of saving, and
started again with the same command each time. Both must leave the same weights, to the last bit.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
from rich.table import Table

from sta.bench.launch import launch
from sta.config import yamlfile
from sta.config.recipe import Recipe, dump_recipe
from sta.data.checksums import first_fault
from sta.data.jsonlines import read_values
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
LIMIT = 1800.0  # seconds that a start may take to the next kill
PROGRAM = ("-m", "sta.train")


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
    """Rehearse one stage, whose earlier stages are done, under each of some launch files; `alone` is without one."""
    names = stage_names(recipe)
    if stage not in names[1:]:
        raise RecipeError(f"--stage {stage} is not one of this recipe's training stages: {', '.join(names[1:])}")
    files = [None if name == ALONE else yamlfile.find(name, "recipes/accelerate") for name in launches]
    steps = settings_of(recipe, stage).steps
    if steps < 2 * kills + 2:
        raise RecipeError(f"stage {stage}: {steps} steps are too few for {kills} kills; at least {2 * kills + 2} work")
    finals, outcomes = {name: Workspace(recipe, out).final(name) for name in names[: names.index(stage)]}, []
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

    def __init__(self, recipe: Recipe, out: Path, stage: str, file: Path | None, word: str, finals: Mapping[str, Path]):
        settings = settings_of(recipe, stage)
        self.steps, self.save_every = settings.steps, max(1, min(settings.save_every, settings.steps // SAVES))
        changed = settings.model_copy(update={"log_every": 1, "save_every": self.save_every})
        stages = recipe.stages.model_copy(update={stage.partition("-")[0]: changed})
        self.launch = file.stem if file else ALONE
        name = f"{recipe.name}-rehearsal-{self.launch}-{word}"
        self.folder, self.stage, self.final = out / name, out / name / stage, out / name / stage / "final"
        self.remove()
        for earlier, final in finals.items():
            (self.folder / earlier).mkdir(parents=True)
            (self.folder / earlier / "final").symlink_to(final.resolve())
        path = self.folder / "rehearsed.yaml"
        path.write_text(dump_recipe(recipe.model_copy(update={"name": name, "stages": stages})), encoding="utf-8")
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(file), "--main_process_port", "0"]  # free
        self.command = [*launcher * bool(file), *PROGRAM, str(path), "--stage", stage, "--out", str(out)]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, faults: str = "") -> bool:
        """Start the stage; returns whether it is done, where it was not killed."""
        struck, output = len(read_values(self.stage / "log" / "faults.jsonl")), self.folder / "output.txt"
        threads = {} if self.launch == ALONE else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with suppress(subprocess.TimeoutExpired):
            launch(self.command, output, {VARIABLE: faults, **threads}, LIMIT)
        if self.final.exists() or len(read_values(self.stage / "log" / "faults.jsonl")) > struck:
            return self.final.exists()
        raise StaError(f"{self.stage}: neither done nor killed in {LIMIT:.0f} s; {output} has the reason")

    def note(self, outcome: Outcome) -> None:
        """Note what a kill has left."""
        found, last = checkpoint.all_of(self.stage / "checkpoints"), 0
        for line in read_values(self.stage / "log" / "metrics.jsonl"):
            with suppress(ValueError):  # half written
                last = json.loads(line)["step"]
        outcome.kills += 1
        outcome.repeated_steps += last - (found[0][0] if found else 0)
        whole = any(first_fault(path) is None for _, path in found)
        outcome.without_checkpoint += last > 2 * self.save_every and not whole


def _compare(straight: _Run, killed: _Run, kills: int, rng: np.random.Generator, bar: Bar) -> Outcome:
    saves = product(IN_A_SAVE, range(killed.save_every, killed.steps - 1, killed.save_every))
    in_save = rng.permutation([f"kill@{point}:{step}" for point, step in saves])[: kills // 4]
    steps = rng.choice(np.arange(2, killed.steps - 1), kills - len(in_save), replace=False)
    faults, outcome = "; ".join([*in_save, *(f"kill@step:{step}" for step in steps)]), Outcome(killed.launch)
    straight.start()
    bar.advance()
    while not killed.start(faults):
        killed.note(outcome)
        bar.advance()
    bar.advance()
    outcome.in_save, outcome.different = len(in_save), differences(straight.final, killed.final)
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
