"""Operations of one training step: how often torch is called upon, from the batch to the average of the weights.

Small networks on fast devices wait for their operations to be launched, not to be done: so their number counts, and
neither the size of the batch nor the device changes it much. An operation is what reaches a device's kernels or makes a
view; what it is made of on the CPU besides is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.table import Table
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sta.config.recipe import Optimisation, Recipe
from sta.distributed.ahead import ahead_everywhere
from sta.distributed.sharding import BatchShard
from sta.metrics.rows import Interval, Report, Row, everywhere
from sta.metrics.tables import make_table
from sta.training import runtime
from sta.training.batch import Batch
from sta.training.faults import Faults
from sta.training.stages import settings_of, task_of, weights_of
from sta.training.step import Trainer
from sta.training.task import CorpusFacts, Task, Update

ITEMS = 4  # of the batches of noise


class Operations(TorchDispatchMode):
    """Counts the operations within it by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


class ExampleTask(Task):
    """A stage on noise, for who has no corpus: its network untrained, one batch of the mean length for all steps."""

    def __init__(self, recipe: Recipe, facts: CorpusFacts, stage: str, size: int | None = None):
        self.kind = task_of(recipe, stage)
        seconds, size = self.kind.mean_seconds(recipe, facts) or 0.0, size or settings_of(recipe, stage).batch
        self.name, self.module = stage, self.kind.build_network(recipe, facts, stage)
        self.weights = weights_of(recipe, stage)
        self.noise = self.kind.example_batch(recipe, facts, stage, size, seconds)

    def batch(self, step: int, shard: BatchShard) -> Batch:
        """Return the same noise at every step."""
        return self.noise

    def items(self, step: int) -> list[str]:
        """Return nothing: noise has no names."""
        return []

    def training_step(self, update: Update) -> None:
        """Step as the task does."""
        self.kind.training_step(self, update)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Keep nothing of it."""


def step_operations(task: Task, settings: Optimisation, accelerator: Accelerator, batch: Batch) -> int:
    """Count the operations of one step as the training loop has a GPU do it, after one that is not counted."""
    trainer, counted = Trainer(task, settings, 0, accelerator, Faults(), 1), Operations()
    with ahead_everywhere():
        for step in (0, 1):
            with counted if step else nullcontext():
                trainer.begin(step, [batch])
                task.training_step(trainer.update)
                trainer.end()
    accelerator.free_memory()
    return counted.counts.total()


def operations_report(recipe: Recipe, facts: CorpusFacts, stages: Sequence[str]) -> Report:
    """Count the operations of a step of some stages on noise, in the recipe's precision, for batches of any size."""
    rows = []
    for stage in stages:
        task, settings = ExampleTask(recipe, facts, stage, ITEMS), settings_of(recipe, stage)
        rows.append(operations_row(stage, step_operations(task, settings, runtime.start(recipe.precision), task.noise)))
    return Report({"precision": recipe.precision}, rows)


def operations_row(stage: str, count: int) -> Row:
    """Return a row of a report: the operations of a stage's step."""
    return Row.of("step_operations", Interval(count, count, count), 1, **everywhere(stage, "sta"))


def operations_table(report: Report) -> Table:
    """Return a line for each stage."""
    lines = [[row.condition, f"{row.value:,.0f}"] for row in report.rows]
    return make_table("operations of a training step", ["stage", "operations"], lines)
