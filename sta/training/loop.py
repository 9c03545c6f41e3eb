"""The one training loop: every stage is a `Task` that this loop trains.

Everything random in a step follows from (seed, stage, step) and the item's place in the whole batch, and the learning
rate from the step. So a stage that was stopped and started again does exactly what it would have done, and any number
of processes does what one would do, up to rounding.
"""

from __future__ import annotations

import math
import shutil
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from sta.config.recipe import Optimisation
from sta.data.cache import build_folder
from sta.distributed.sharding import BatchShard, sharded_step
from sta.errors import Interrupted, StaError, TrainingError, first_line
from sta.progress import Bar
from sta.signals import SIGNALS, deferred_signals
from sta.training import checkpoint, zero
from sta.training.checkpoint import Checkpoints
from sta.training.faults import Faults
from sta.training.record import Log, MicroBatches, Skipped
from sta.training.runtime import loading_processes, step_seed, stop_anywhere
from sta.training.watchdog import Watchdog


class Task(ABC):
    """What a stage trains.

    Attributes:
        name: the stage's name, such as `distill-pooled`.
        module: takes a batch and returns named losses, each a mean over the batch.
        weights: weight of each loss; a loss without one is only logged.
        phase_change_step: the step from which the sum of the losses is not to be compared with that of earlier steps.
    """

    name: str
    module: nn.Module
    weights: Mapping[str, float]
    phase_change_step: int = 0

    @abstractmethod
    def batch(self, step: int, shard: BatchShard) -> dict[str, Tensor]:
        """The shard of this rank of the step's global batch; a pure function of its arguments."""

    @abstractmethod
    def items(self, step: int) -> list[str]:
        """Names of what the step's whole batch holds, for a record of what went wrong."""

    def compile(self, module: nn.Module, device: torch.device) -> None:  # noqa: B027 - most stages compile nothing
        """Have `torch.compile` make kernels for the layers of the module, or a copy, where the stage asks for it."""

    @abstractmethod
    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the trained weights as the next stage reads them."""


Batches = list[dict[str, Tensor]]  # of one step, a rank's shard of it: one, or one for each part of the shard


class _Steps(Dataset[Batches | StaError]):
    """What a rank does in each step; an error of ours is an item, as a worker that raises it would wrap its words."""

    def __init__(self, task: Task, shares: Sequence[BatchShard]):
        self.task, self.shares = task, shares

    def __getitem__(self, step: int) -> Batches | StaError:
        try:
            return [self.task.batch(step, shard) for shard in self.shares]
        except StaError as error:
            return error


def _ignore_signals(worker: int) -> None:
    """A launcher signals all processes of a rank: this one has to make batches until the rank has saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _steps(
    task: Task, shard: BatchShard, parts: MicroBatches, first: int, settings: Optimisation, device: torch.device
) -> Iterator[tuple[int, Batches]]:
    """Each step from `first` on and what this rank does in it; the loading begins anew when the parts have changed."""
    step, workers = first, loading_processes(device) if settings.workers is None else settings.workers
    while step < settings.steps:
        count = parts.count
        steps = _Steps(task, shard.split(count))
        loader = DataLoader(
            steps, None, sampler=range(step, settings.steps), num_workers=workers, worker_init_fn=_ignore_signals,  # type: ignore[arg-type, unused-ignore]
            multiprocessing_context="fork" if workers else None,  # a task is not to be pickled
        )  # fmt: skip
        for batches in loader:
            if isinstance(batches, StaError):
                raise batches
            yield step, batches
            step += 1
            if parts.count != count:
                break


def learning_rate(step: int, settings: Optimisation) -> float:
    """Linear warm-up, then half a cosine to 2 % of the peak."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def build_optimizer(module: nn.Module, settings: Optimisation) -> torch.optim.AdamW:
    """AdamW over every trainable parameter, each in exactly one group; vectors are not decayed."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2]
    plain = [p for p in trainable if p.ndim < 2]
    assert len(decayed) + len(plain) == len({id(p) for p in trainable})
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(0.9, 0.98), fused=True)


def train(task: Task, settings: Optimisation, folder: Path, seed: int, accelerator: Accelerator) -> Path:
    """Train a task from its newest checkpoint, or the start, to its last step; returns `folder/final`.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the state is saved.
        TrainingError: too many steps had a loss or gradient that is not finite, a checkpoint does not load or cannot
            be written, or the memory is too small for one item.
    """
    final = folder / "final"
    if final.exists():
        return final
    shard, main = BatchShard(accelerator.process_index, accelerator.num_processes), accelerator.is_main_process
    if settings.batch % shard.world:
        raise TrainingError(f"stage {task.name}: batch {settings.batch} is not a multiple of {shard.world} processes")
    faults = Faults.named(folder / "log" / "faults.jsonl", shard.rank)
    parts = MicroBatches(task.name, folder / "log", settings.batch // shard.world)
    model, optimizer, average = _prepare(task, settings, accelerator, parts.count)
    first = checkpoint.restore(accelerator, folder / "checkpoints")
    checkpoints = Checkpoints(accelerator, folder / "checkpoints", faults)
    log = Log(folder / "log", first, main)
    skipped = Skipped(task.name, folder / "log", first, settings.max_skipped_steps, main)
    buffers, due = _Buffers(task.module), False
    bar = Bar(task.name, settings.steps, "steps", first, main)
    watchdog = Watchdog(settings.stall_timeout, task.name)
    with deferred_signals() as stop, bar, log, watchdog, checkpoints:
        for step, batches in _steps(task, shard, parts, first, settings, accelerator.device):
            # ---- one step -------------------------------------------------------------------------------
            faults.strike("step", step + 1)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            buffers.keep()
            while True:
                try:
                    losses, fault = _gradient(task, model, batches, step, settings, seed, accelerator, faults)
                    break
                except torch.OutOfMemoryError as error:
                    model.zero_grad()  # accelerate's optimizer keeps what the parts before have added up
                    buffers.restore()
                    batches = _halve(parts, task, step, shard, accelerator, error)
            norm = None
            if fault is None:
                norm = accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
                fault = _too_steep(norm)
            if fault is None:
                _update(optimizer, task.name)
                if average is not None:
                    with zero.whole(accelerator, model):
                        average.update_parameters(task.module)
            else:
                buffers.restore()
                zero.forget(accelerator, model)
                skipped.add(step, fault, task.items(step))
            optimizer.zero_grad()
            # ---------------------------------------------------------------------------------------------
            done = step + 1
            due = due or done % settings.log_every == 0 or done == settings.steps
            if due and fault is None:
                due = False
                log.write(
                    done, done * settings.batch, {**_over_ranks(accelerator, losses), "norm": norm, **skipped.count}
                )
            bar.advance(note=f"loss {log.last:.3f}" if log.last is not None else "")
            leaving = stop_anywhere(accelerator, stop)
            if leaving or (done % settings.save_every == 0 and done < settings.steps):
                checkpoints.save(done, log.loss_since_save(), done > task.phase_change_step)
            if leaving:
                checkpoints.wait()
                accelerator.wait_for_everyone()  # a launcher soon kills the others once one has left
                raise Interrupted(
                    f"stage {task.name}: stopped at step {done} of {settings.steps} and saved; run it again"
                )
            if done == task.phase_change_step:
                log.loss_since_save()
            checkpoints.look()
            watchdog.seen()
    return _finish(task, accelerator, model, average, folder)


def _gradient(
    task: Task, model: nn.Module, batches: Batches, step: int, settings: Optimisation, seed: int,
    accelerator: Accelerator, faults: Faults,
) -> tuple[dict[str, Tensor], str | None]:  # fmt: skip
    """Gradients of one step, a part of the shard after another; the losses, `loss` among them, and what is wrong.

    Where something is, the last part has no gradient.
    """
    rank, whole = BatchShard(accelerator.process_index, accelerator.num_processes), step_seed(seed, task.name, step)
    means: dict[str, Tensor] = {}
    accelerator.step = 0  # of the parts, which it counts over all steps and saves: then a resumed run would differ
    for shard, batch in zip(rank.split(len(batches)), batches, strict=True):
        faults.strike("forward", step + 1)
        with accelerator.accumulate(model):
            # for what draws by itself, as backbones do
            set_seed(step_seed(seed, task.name, step, shard.rank + shard.world * shard.part))
            with sharded_step(shard, settings.batch, whole):
                losses = model({name: value.to(accelerator.device) for name, value in batch.items()})
            loss = sum(task.weights[name] * value for name, value in losses.items() if name in task.weights)
            if faults.asks("nan", "step", step + 1):
                loss = loss * math.nan
            for name, value in {"loss": loss, **losses}.items():
                means[name] = means.get(name, 0.0) + value.detach() / len(batches)
            if shard.part == shard.parts - 1:
                fault = _not_finite(accelerator, means)
                if fault is not None:
                    break
            accelerator.backward(loss)
    return means, fault


def _halve(
    parts: MicroBatches,
    task: Task,
    step: int,
    shard: BatchShard,
    accelerator: Accelerator,
    error: torch.OutOfMemoryError,
) -> Batches:
    """The step in smaller parts, as every step from now on; where other processes wait for this one, after a restart.

    Raises:
        TrainingError: a part is one item already, it cannot be shared out further, or there are other processes.
    """
    smaller = [task.batch(step, part) for part in shard.split(parts.halved())]
    parts.halve()
    told = f"stage {task.name}: out of memory at step {step + 1} ({first_line(error)}); from now on the batch "
    told += f"is done {parts.shard // parts.count} items at a time on each process ({parts.path})"
    if accelerator.num_processes > 1 or accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise TrainingError(f"{told}: run the same command again to go on from the last checkpoint") from error
    print(f"sta: {told}", file=sys.stderr)
    accelerator.gradient_accumulation_steps = parts.count
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return smaller


def _update(optimizer: torch.optim.Optimizer, stage: str) -> None:
    """One step of the optimizer, whose own state takes memory in the first.

    Raises:
        TrainingError: there is not enough, which smaller parts of a batch do not help.
    """
    try:
        optimizer.step()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"stage {stage}: out of memory in the optimizer ({first_line(error)}); take a smaller model, or "
            "shard its state out among more processes with a launch file of ZeRO"
        ) from error


def _prepare(
    task: Task, settings: Optimisation, accelerator: Accelerator, parts: int
) -> tuple[nn.Module, torch.optim.Optimizer, AveragedModel | None]:
    accelerator.gradient_accumulation_steps = parts
    zero.configure(accelerator, task.module, settings, parts)
    task.module.train()
    average = (
        AveragedModel(task.module, multi_avg_fn=_averaging(settings.ema), use_buffers=True) if settings.ema else None
    )
    task.compile(task.module, accelerator.device)
    model, optimizer = accelerator.prepare(task.module, build_optimizer(task.module, settings))
    zero.gather_own_parameters(accelerator, task.module)
    if average is not None:
        average.to(accelerator.device)
        accelerator.register_for_checkpointing(average)
    return model, optimizer, average


def _averaging(decay: float) -> Any:
    """A moving average whose decay grows from 0.1, so that the first steps are soon forgotten."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        keep = min(decay, (1 + float(count)) / (10 + float(count)))
        floating = [(a, c) for a, c in zip(averaged, current, strict=True) if a.is_floating_point()]
        if floating:
            torch._foreach_lerp_([a for a, _ in floating], [c.to(a.dtype) for a, c in floating], 1 - keep)

    return update


def _not_finite(accelerator: Accelerator, losses: Mapping[str, Tensor]) -> str | None:
    """Which of a step's losses is not finite on some rank; None if all are: the same answer on every rank."""
    values = torch.stack([value.detach().float() for value in losses.values()])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, "mean")  # what is not finite on one rank is not in the mean
    if bool(torch.isfinite(values[0])):
        return None
    bad = [(name, float(v)) for name, v in zip(losses, values, strict=True) if not bool(torch.isfinite(v))]
    return "loss " + ", ".join(f"{name} {value:g}" for name, value in bad[1:] or bad)


def _too_steep(norm: Any) -> str | None:
    """What is wrong with a gradient's norm, the same on every rank; None where nobody knows it."""
    return None if norm is None or math.isfinite(float(norm)) else f"gradient {float(norm):g}"


def _over_ranks(accelerator: Accelerator, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each value over the ranks: what one process would have seen of the whole batch."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, accelerator.reduce(stacked, "mean"), strict=True))


def _finish(
    task: Task, accelerator: Accelerator, model: nn.Module, average: AveragedModel | None, folder: Path
) -> Path:
    trained = accelerator.unwrap_model(model)
    accelerator.wait_for_everyone()
    with zero.whole(accelerator, model):
        if average is not None:
            trained.load_state_dict(average.module.state_dict())
        zero.restore_scalars(trained)
        if accelerator.is_main_process:
            build_folder(folder / "final", lambda partial: task.export(trained.eval(), partial))
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return folder / "final"


class _Buffers:
    """What a forward pass may change besides the gradient, such as running means: put back after a step that failed."""

    def __init__(self, module: nn.Module):
        self.buffers, self.kept = list(module.buffers()), list[Tensor]()

    def keep(self) -> None:
        self.kept = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def restore(self) -> None:
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            buffer.copy_(kept)
