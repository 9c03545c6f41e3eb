"""The one training loop: every stage is a `Task` that this loop trains.

Everything random in a step follows from (seed, stage, step) and the item's place in the whole batch, and the learning
rate from the step. So a stage that was stopped and started again does exactly what it would have done, and any number
of processes does what one would do, up to rounding.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from sta.data.cache import build_folder, write_atomically
from sta.errors import Interrupted, TrainingError
from sta.models.shared import Share, sharing
from sta.recipe import Optimisation
from sta.stopping import deferred_signals
from sta.training import checkpoint
from sta.training.progress import Bar
from sta.training.runtime import step_seed, stop_anywhere


class Task(ABC):
    """What a stage trains.

    Attributes:
        name: the stage's name, such as `distill-pooled`.
        module: takes a batch and returns named losses, each a mean over the batch.
        weights: weight of each loss; a loss without one is only logged.
    """

    name: str
    module: nn.Module
    weights: Mapping[str, float]

    @abstractmethod
    def batch(self, step: int, share: Share) -> dict[str, Tensor]:
        """The share of this rank of the step's global batch; a pure function of its arguments."""

    @abstractmethod
    def items(self, step: int) -> list[str]:
        """Names of what the step's whole batch holds, for a record of what went wrong."""

    @abstractmethod
    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the trained weights as the next stage reads them."""


class Shuffled:
    """Items in endless epochs, each a seeded permutation: position -> item, nothing lost.

    With `lengths`, windows of `batch` positions hold items of like length, so that little is padding: each
    stretch of `STRETCH` batches is sorted by length and its batches shuffled, and an epoch is filled up to whole
    batches with items of its own.
    """

    STRETCH = 16

    def __init__(self, items: np.ndarray, seed: int, lengths: np.ndarray | None = None, batch: int = 1):
        self.items, self.seed, self.lengths, self.batch = np.asarray(items), seed, lengths, batch
        self.epoch_length = len(self.items) if lengths is None else -(-len(self.items) // batch) * batch
        self._drawn: dict[int, np.ndarray] = {}  # the orders of the last two epochs: to draw one anew takes 3 ms

    def take(self, start: int, count: int) -> np.ndarray:
        """Items at positions start .. start + count."""
        if not len(self.items):
            return np.zeros(0, np.int64)
        positions = np.arange(start, start + count)
        epochs, places = positions // self.epoch_length, positions % self.epoch_length
        taken = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            taken[epochs == epoch] = self.items[self._order(int(epoch))[places[epochs == epoch]]]
        return taken

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._drawn:
            self._drawn = {e: order for e, order in self._drawn.items() if e == epoch - 1}
            self._drawn[epoch] = self._draw(epoch)
        return self._drawn[epoch]

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.items))
        if self.lengths is None:
            return order
        order = np.resize(order, self.epoch_length)
        batches: list[np.ndarray] = []
        for stretch in np.split(order, range(self.STRETCH * self.batch, len(order), self.STRETCH * self.batch)):
            stretch = stretch[np.argsort(self.lengths[stretch], kind="stable")]
            batches += list(rng.permutation(stretch.reshape(-1, self.batch)))
        return np.concatenate(batches)


class _Steps(Dataset[dict[str, Tensor]]):
    def __init__(self, task: Task, share: Share):
        self.task, self.share = task, share

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self.task.batch(step, self.share)


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
        TrainingError: too many steps had a loss or gradient that is not finite, or a checkpoint does not load or
            cannot be written.
    """
    final = folder / "final"
    if final.exists():
        return final
    share = Share(accelerator.process_index, accelerator.num_processes)
    if settings.batch % share.world:
        raise TrainingError(f"stage {task.name}: batch {settings.batch} is not a multiple of {share.world} processes")
    model, optimizer, average = _prepare(task, settings, accelerator)
    first = checkpoint.restore(accelerator, folder / "checkpoints")
    log = _Log(folder / "log", first, accelerator.is_main_process)
    skipped = _Skipped(folder / "log", first, settings.skips, accelerator.is_main_process)
    buffers, due = _Buffers(task.module), False
    batches = DataLoader(_Steps(task, share), None, sampler=range(first, settings.steps), num_workers=settings.workers)  # type: ignore[arg-type, unused-ignore]
    bar = Bar(task.name, settings.steps, "steps", first, accelerator.is_main_process)
    with deferred_signals() as stop, bar, log:
        for step, batch in zip(range(first, settings.steps), batches, strict=True):
            # ---- one step -------------------------------------------------------------------------------
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            buffers.keep()
            torch.manual_seed(step_seed(seed, task.name, step, share.rank))  # for what draws by itself, as backbones do
            with sharing(share, settings.batch, step_seed(seed, task.name, step)):
                losses = model({name: value.to(accelerator.device) for name, value in batch.items()})
            loss = sum(task.weights[name] * value for name, value in losses.items() if name in task.weights)
            fault = _not_finite(accelerator, {"loss": loss, **losses})
            if fault is None:
                accelerator.backward(loss)
                norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip)
                fault = _too_steep(norm)
            if fault is None:
                optimizer.step()
                if average is not None:
                    average.update_parameters(accelerator.unwrap_model(model))
            else:
                buffers.restore()
                skipped.add(step, fault, task)
            optimizer.zero_grad()
            # ---------------------------------------------------------------------------------------------
            done = step + 1
            due = due or done % settings.log_every == 0 or done == settings.steps
            if due and fault is None:
                due = False
                means = _over_ranks(accelerator, {"loss": loss, **losses})
                log.write(done, done * settings.batch, {**means, "norm": norm, **skipped.count})
            bar.advance(note=f"loss {log.last:.3f}" if log.last is not None else "")
            leaving = stop_anywhere(accelerator, stop)
            if leaving or (done % settings.save_every == 0 and done < settings.steps):
                checkpoint.save(accelerator, folder / "checkpoints", done)
            if leaving:
                raise Interrupted(
                    f"stage {task.name}: stopped at step {done} of {settings.steps} and saved; run it again"
                )
    return _finish(task, accelerator, model, average, folder)


def _prepare(
    task: Task, settings: Optimisation, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer, AveragedModel | None]:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = settings.batch // accelerator.num_processes
        plugin.deepspeed_config["gradient_clipping"] = settings.clip
        for scalar in (p for p in task.module.parameters() if p.ndim == 0):
            scalar.ds_optim_param = True  # type: ignore[attr-defined]  # not broadcast, which fails for scalars
        if settings.ema and plugin.deepspeed_config["zero_optimization"]["stage"] == 3:
            raise TrainingError(f"stage {task.name}: an average of the weights (ema) needs ZeRO stage 2 or less, not 3")
    task.module.train()
    average = (
        AveragedModel(task.module, multi_avg_fn=_averaging(settings.ema), use_buffers=True) if settings.ema else None
    )
    model, optimizer = accelerator.prepare(task.module, build_optimizer(task.module, settings))
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
    if average is not None:
        trained.load_state_dict(average.module.state_dict())
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


class _Skipped:
    """skipped.jsonl of one stage: each step that was passed over, why, and what its batch held."""

    def __init__(self, folder: Path, first: int, allowed: int, writes: bool):
        self.path, self.allowed, self.writes = folder / "skipped.jsonl", allowed, writes
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.lines = [line for line in lines if json.loads(line)["step"] <= first]
        if writes and len(self.lines) < len(lines):
            self._write()

    @property
    def count(self) -> dict[str, int]:
        return {"skipped": len(self.lines)} if self.lines else {}

    def add(self, step: int, fault: str, task: Task) -> None:
        """Record a step.

        Raises:
            TrainingError: there are more than allowed.
        """
        self.lines.append(json.dumps({"step": step + 1, "why": fault, "items": task.items(step)}, ensure_ascii=False))
        if self.writes:
            self._write()
        if len(self.lines) > self.allowed:
            raise TrainingError(
                f"stage {task.name}: not finite at step {step + 1} ({fault}), which makes {len(self.lines)} such "
                f"steps, more than stages.*.skips allows ({self.allowed}); {self.path} names their batches. Lower "
                "stages.*.lr or the weight"
            )

    def _write(self) -> None:
        write_atomically(self.path, "".join(line + "\n" for line in self.lines).encode())


class _Log:
    """metrics.jsonl and TensorBoard of one stage; a resumed stage forgets the steps it does again."""

    def __init__(self, folder: Path, first: int, shown: bool):
        self.last: float | None = None
        self.shown, self.begun = shown, time.monotonic()
        if not shown:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = [x for x in path.read_text().splitlines() if json.loads(x)["step"] <= first] if path.exists() else []
        self.spent = json.loads(kept[-1])["seconds"] if kept else 0.0
        path.write_text("".join(line + "\n" for line in kept))
        self.file = path.open("a")
        self.board = SummaryWriter(str(folder), purge_step=first)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            self.file.close()
            self.board.close()

    def write(self, step: int, samples: int, values: Mapping[str, Any]) -> None:
        numbers = {k: round(float(v.detach() if isinstance(v, Tensor) else v), 6) for k, v in values.items()}
        self.last = numbers["loss"]
        if not self.shown:
            return
        seconds = round(self.spent + time.monotonic() - self.begun, 3)
        self.file.write(json.dumps({"step": step, "samples": samples, "seconds": seconds, **numbers}) + "\n")
        self.file.flush()
        for name, value in numbers.items():
            self.board.add_scalar(name, value, step)
