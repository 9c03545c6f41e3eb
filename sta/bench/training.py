"""Training samples per second of each stage: the whole loop against a bare forward and backward, in turn."""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from rich import box
from rich.table import Table

from sta.errors import Interrupted
from sta.metrics.rows import Interval, Report, Row
from sta.models.shared import Share
from sta.recipe import Optimisation
from sta.training import runtime
from sta.training.loop import Task, train
from sta.training.progress import Bar
from sta.training.stages import build_task, settings_of
from sta.training.workspace import Workspace

LOOP, BARE = "sta", "bare forward and backward"


@dataclass(frozen=True)
class Rates:
    """Seconds per step of one stage, a value for each round."""

    stage: str
    batch: int
    loop: list[float]
    bare: list[float]
    data: list[float]


def bench_training(workspace: Workspace, stages: Sequence[str], steps: int = 10, rounds: int = 3) -> Report:
    """Measure some stages of a recipe, whose earlier stages must be done; nothing of the run is changed.

    Args:
        workspace: the run.
        stages: which of its training stages.
        steps: that are timed in a round, after as many that are not.
        rounds: in which the loop and the bare model take turns; the median counts.
    """
    rows: list[Row] = []
    with Bar("bench", len(stages) * rounds, "rounds") as bar:
        for stage in stages:
            accelerator, settings = runtime.start(workspace.recipe.precision), settings_of(workspace.recipe, stage)
            rates = Rates(stage, settings.batch, [], [], [])
            for _ in range(rounds):
                task = _FromTheMiddle(build_task(workspace, stage, accelerator), settings.steps // 2)
                bare, data = _bare(copy.deepcopy(task.module), task, steps, accelerator)
                rates.bare.append(bare)
                rates.data.append(data)
                rates.loop.append(_loop(task, settings, steps, workspace.recipe.seed, accelerator))
                bar.advance()
            rows += _rows(rates)
    return Report({"threads": torch.get_num_threads(), "steps": steps, "rounds": rounds}, rows)


class _FromTheMiddle(Task):
    """A task as it is in the middle of its stage; distillation starts with short phrases, which are not typical."""

    def __init__(self, task: Task, first: int):
        self.task, self.first = task, first
        self.name, self.module, self.weights = task.name, task.module, task.weights

    def batch(self, step: int, share: Share) -> dict[str, torch.Tensor]:
        return self.task.batch(self.first + step, share)

    def items(self, step: int) -> list[str]:
        return self.task.items(self.first + step)

    def export(self, module: torch.nn.Module, folder: Path) -> None:
        """Nothing is kept of a benchmark."""


def _loop(task: Task, settings: Optimisation, steps: int, seed: int, accelerator: Accelerator) -> float:
    """Seconds per step of the training loop as it is, from the batch to the average of the weights."""
    short = settings.model_copy(update={"steps": 2 * steps, "log_every": steps, "save_every": 4 * steps})
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(task, short, Path(folder), seed, accelerator)
        except Interrupted as stopped:
            raise Interrupted("the benchmark was stopped; nothing of the run was changed") from stopped
        logged = [json.loads(x) for x in (Path(folder) / "log" / "metrics.jsonl").read_text().splitlines()]
    return float(logged[-1]["seconds"] - logged[-2]["seconds"]) / steps


def _bare(module: torch.nn.Module, task: Task, steps: int, accelerator: Accelerator) -> tuple[float, float]:
    """Seconds per step of the model's forward and backward on batches in memory, and of making such a batch."""
    module.to(accelerator.device).train()
    started = time.perf_counter()
    batches = [task.batch(step, Share()) for step in range(2 * steps)]
    data = (time.perf_counter() - started) / len(batches)
    for step, batch in enumerate(batches):
        if step == steps:
            _wait(accelerator)
            started = time.perf_counter()
        with accelerator.autocast():
            losses = module({name: value.to(accelerator.device) for name, value in batch.items()})
        loss: torch.Tensor = sum(task.weights[name] * value for name, value in losses.items() if name in task.weights)
        loss.backward()
        module.zero_grad()
    _wait(accelerator)
    return (time.perf_counter() - started) / steps, data


def _wait(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()


def _rows(rates: Rates) -> list[Row]:
    where = {"language": "all", "split": "all", "condition": rates.stage}
    found = []
    for system, seconds in ((LOOP, rates.loop), (BARE, rates.bare)):
        speeds = [rates.batch / s for s in seconds]
        interval = Interval(statistics.median(speeds), min(speeds), max(speeds))
        found.append(Row.of("samples_per_second", interval, len(speeds), **where, system=system))  # type: ignore[arg-type]
    ratios = [a / b for a, b in zip(rates.loop, rates.bare, strict=True)]
    shares = [d / s for d, s in zip(rates.data, rates.loop, strict=True)]
    for metric, values in (("step_ratio", ratios), ("data_share", shares)):
        interval = Interval(statistics.median(values), min(values), max(values))
        found.append(Row.of(metric, interval, len(values), **where, system=LOOP))  # type: ignore[arg-type]
    return found


def training_table(report: Report) -> Table:
    """A line for each stage."""
    made = Table(title="training, samples per second", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("stage", "loop", "bare model", "step / bare step", "making the batch %"):
        made.add_column(name, no_wrap=True, justify="left" if name == "stage" else "right")
    cells = {(r.condition, r.metric, r.system): r for r in report.rows}
    for stage in dict.fromkeys(r.condition for r in report.rows):
        made.add_row(
            stage,
            *(f"{cells[stage, 'samples_per_second', system].value:.1f}" for system in (LOOP, BARE)),
            f"{cells[stage, 'step_ratio', LOOP].value:.3f}",
            f"{100 * cells[stage, 'data_share', LOOP].value:.1f}",
        )
    return made
