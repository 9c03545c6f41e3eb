"""Training samples per second of each stage: the whole loop against loops written by hand, in turn on one machine.

Under a launcher it measures that launch: each process holds its shard of the whole batch, and its loops by hand know
nothing of the other processes. So what the whole loop takes longer than they is the price of being many: collectives,
waiting for the slowest, and (as alone) the loop's own overhead. But the teacher's contrastive loss gathers in any loop.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sta.bench.operations import operations_row, step_operations
from sta.config.recipe import Optimisation
from sta.distributed.sharding import BatchShard
from sta.errors import Interrupted
from sta.metrics.rows import METRICS, Interval, Report, Row, everywhere
from sta.metrics.tables import make_table
from sta.models.flops import flops_of
from sta.progress import Bar
from sta.training import runtime
from sta.training.batch import Batch
from sta.training.loop import check_batch, train
from sta.training.optimizers import build_optimizer
from sta.training.stages import build_task, settings_of
from sta.training.task import Task, Update
from sta.training.workspace import Workspace

LOOP, MEMORY = "sta", "sta, batches from memory"
HAND, BARE = "loop written by hand", "bare forward and backward"
SYSTEMS = (LOOP, MEMORY, HAND, BARE)
#: Column -> metric and system, of one launch and of launches that are compared.
SHARES = {
    "data": ("data_share", LOOP), "save": ("checkpoint_share", LOOP), "flops": ("flops_utilisation", LOOP),
    "ops": ("step_operations", LOOP),
}  # fmt: skip
RATIOS = {"loop/hand": ("step_ratio", LOOP), "loop/bare": ("bare_ratio", LOOP), "hand/bare": ("bare_ratio", HAND)}
SCALING = {"efficiency": ("scaling_efficiency", LOOP), "exchange": ("exchange_share", LOOP)}

#: Words of a GPU's name -> its dense bfloat16 products, 10^12 a second, by NVIDIA's data sheets; the first that fits.
PEAKS = {
    "B200": 2250.0, "GH200": 989.0, "H200": 989.0, "H100 NVL": 835.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0,
    "L40S": 362.0, "L4": 121.0, "A30": 165.0, "RTX 4090": 165.0,
}  # fmt: skip


def peak_named(name: str) -> float | None:
    """Return the operations a second of a GPU at its best, by its name; None where it is not known."""
    words = f" {name.replace('-', ' ')} "
    return next((tflops * 1e12 for known, tflops in PEAKS.items() if f" {known} " in words), None)


def bench_training(
    workspace: Workspace, stages: Sequence[str], steps: int, rounds: int, tflops: float | None
) -> Report:
    """Measure some stages of a recipe, whose earlier stages must be done; nothing of the run is changed.

    Args:
        steps: that are timed in a round, after as many that are not.
        rounds: in which the contestants take turns; the median counts.
        tflops: of the device at its best, 10^12 a second; None: those of a known GPU.
    """
    accelerator, rows = runtime.start(workspace.recipe.precision), list[Row]()
    named = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else ""
    peak = tflops * 1e12 if tflops else peak_named(named)
    with Bar("bench", len(stages) * rounds, "rounds") as bar:
        for stage in stages:
            settings, measured = settings_of(workspace.recipe, stage), list[dict[str, float]]()
            check_batch(stage, settings, accelerator)
            with accelerator.main_process_first():  # caches are written once
                task = build_task(workspace, stage, accelerator)
            bench = _Bench(task, workspace.recipe.precision, workspace.recipe.seed, steps, accelerator)
            for _ in range(rounds):
                measured.append(bench.round(settings))
                bar.advance()
            rows += _rows(stage, settings, measured, bench.flops(), (peak or 0) * accelerator.num_processes)
            rows.append(operations_row(stage, bench.operations(settings)))
    meta = {"processes": accelerator.num_processes, "threads": torch.get_num_threads(), "steps": steps}
    return Report({**meta, "device": str(accelerator.device), "rounds": rounds}, rows)


class _TimedTask(Task):
    """A task with a copy of its network that notes when each step begins, from the typical middle of its stage."""

    def __init__(self, task: Task, first: int, batches: Sequence[Batch] = ()):
        self.task, self.first, self.batches, self.begun = task, first, batches, list[float]()
        self.name, self.module, self.weights = task.name, copy.deepcopy(task.module), task.weights
        self.module.register_forward_pre_hook(lambda *_: self.begun.append(time.perf_counter()))

    def batch(self, step: int, shard: BatchShard) -> Batch:
        return self.batches[step] if self.batches else self.task.batch(self.first + step, shard)

    def items(self, step: int) -> list[str]:
        return self.task.items(self.first + step)

    def training_step(self, update: Update) -> None:
        self.task.training_step(update)

    def compile(self, module: nn.Module, device: torch.device) -> None:
        self.task.compile(module, device)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Nothing is kept of a benchmark."""


class _Bench:
    """The contestants of one stage on this process's shard of the batch."""

    def __init__(self, task: Task, precision: str, seed: int, steps: int, accelerator: Accelerator):
        self.task, self.seed, self.steps, self.accelerator = task, seed, steps, accelerator
        self.shard = BatchShard(accelerator.process_index, accelerator.num_processes)
        self.precision, self.batches = precision, list[Batch]()

    def round(self, settings: Optimisation) -> dict[str, float]:
        """Return seconds per step of every contestant, of making a batch (`data`) and of saving once (`save`)."""
        first, begun = settings.steps // 2, list[float]()
        self.batches = []
        for step in range(2 * self.steps + 1):
            begun.append(time.perf_counter())
            self.batches.append(self.task.batch(first + step, self.shard))
        made = (time.perf_counter() - begun[self.steps + 1]) / self.steps  # the first ones read what is read once
        return {
            "data": made,
            BARE: self._by_hand(settings, bare=True),
            HAND: self._by_hand(settings),
            MEMORY: self._loop(_TimedTask(self.task, first, self.batches), settings.model_copy(update={"workers": 0})),
            LOOP: self._loop(_TimedTask(self.task, first), settings),
            "save": self._save(_TimedTask(self.task, first, self.batches), settings),
        }

    def operations(self, settings: Optimisation) -> int:
        """Count the operations that torch is asked for in a step of the training loop."""
        task = _TimedTask(self.task, 0, self.batches)
        return step_operations(task, settings, runtime.start(self.precision), self.batches[0])

    def flops(self) -> int:
        """Floating-point operations of a step's forward and backward on the whole batch, by this process's shard."""
        module = copy.deepcopy(self.task.module).to(self.accelerator.device).train()
        return flops_of(lambda: self._loss(module, self.batches[0]).backward()) * self.shard.world

    def _by_hand(self, settings: Optimisation, bare: bool = False) -> float:
        """Return seconds per step of what one would write: forward, backward, clipping, AdamW, average of the weights.

        With `bare` only forward and backward; in either case on batches in memory, and with nothing exchanged.
        """
        module = copy.deepcopy(self.task.module).to(self.accelerator.device).train()
        self.task.compile(module, self.accelerator.device)
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = build_optimizer(module, settings)
        blend = get_ema_multi_avg_fn(settings.ema)
        average = AveragedModel(module, multi_avg_fn=blend, use_buffers=True) if settings.ema else None
        self.accelerator.wait_for_everyone()
        for step, batch in enumerate(self.batches):
            if step == self.steps + 1:
                started = self._now()
            self._loss(module, batch).backward()
            if not bare:
                nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                optimizer.step()
                if average is not None:
                    average.update_parameters(module)
            optimizer.zero_grad()
        return (self._now() - started) / self.steps

    def _loss(self, module: nn.Module, batch: Batch) -> Tensor:
        device = self.accelerator.device
        with torch.autocast(device.type, torch.bfloat16, enabled=runtime.is_bf16(self.precision)):
            losses = module(batch.to(device))
        total: Tensor = sum(self.task.weights[name] * x for name, x in losses.items() if name in self.task.weights)
        return total

    def _loop(self, task: _TimedTask, settings: Optimisation) -> float:
        """Return seconds per step of the training loop as it is, from the batch to the average of the weights."""
        steps = self.steps
        self._train(task, settings, {"steps": 2 * steps + 1, "log_every": steps, "save_every": 4 * steps})
        return (task.begun[-1] - task.begun[steps]) / steps

    def _save(self, task: _TimedTask, settings: Optimisation) -> float:
        """Return seconds by which one checkpoint holds up the loop, the step after it included."""
        self._train(task, settings, {"steps": 5, "save_every": 3})
        _, before, saves, _, end = task.begun
        return max((end - saves) - 2 * (saves - before), 0.0)

    def _train(self, task: _TimedTask, settings: Optimisation, changes: dict[str, int]) -> None:
        """Train in a folder that is gone afterwards, as a stage would."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                accelerator = runtime.start(self.precision)
                train(task, settings.model_copy(update=changes), Path(folder), self.seed, accelerator)
            except Interrupted as stopped:
                raise Interrupted("the benchmark was stopped; nothing of the run was changed") from stopped

    def _now(self) -> float:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _rows(stage: str, settings: Optimisation, rounds: Sequence[dict[str, float]], flops: int, peak: float) -> list[Row]:
    def row(metric: str, system: str, of: Callable[[dict[str, float]], float]) -> Row:
        values = [of(seconds) for seconds in rounds]
        return Row.of(metric, Interval.of_rounds(values), len(values), **everywhere(stage, system))

    found = [row("samples_per_second", name, lambda s, name=name: settings.batch / s[name]) for name in SYSTEMS]  # type: ignore[misc]
    found += [
        row("step_ratio", LOOP, lambda s: s[MEMORY] / s[HAND]),
        row("bare_ratio", LOOP, lambda s: s[LOOP] / s[BARE]),
        row("bare_ratio", HAND, lambda s: s[HAND] / s[BARE]),
        row("data_share", LOOP, lambda s: s["data"] / s[LOOP]),
        row("exchange_share", LOOP, lambda s: max(1 - s[HAND] / s[MEMORY], 0.0)),
        row("checkpoint_share", LOOP, lambda s: s["save"] / (s["save"] + settings.save_every * s[LOOP])),
    ]
    return found + ([row("flops_utilisation", LOOP, lambda s: flops / (s[LOOP] * peak))] if peak else [])


def training_table(report: Report) -> Table:
    """Tabulate a line for each stage, or for each stage and number of processes that are compared."""
    values = {(r.condition, r.metric, r.system): r.value for r in report.rows}
    ratios = SCALING if "scaling_efficiency" in (r.metric for r in report.rows) else RATIOS
    columns = {"per s": ("samples_per_second", LOOP), **ratios, **SHARES}
    lines = [
        [stage, *(METRICS[where[0]].text(values.get((stage, *where), math.nan)) for where in columns.values())]
        for stage in dict.fromkeys(r.condition for r in report.rows)
    ]
    launch = f"{str(report.meta['processes']).strip('[]')} processes of {report.meta['threads']} threads"
    title = f"training on {launch}: samples per second, ratios of a step, % of the time"
    return make_table(title, ["stage", *columns], lines)
