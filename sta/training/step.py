"""One training step: gradients of a batch in parts, clipped, and updates that are masked where one is not finite.

A flag on the device masks the updates, and the host reads it a step later: nobody waits for the device within a step.
Under DeepSpeed, whose engine updates the weights within the backward pass, the host reads it at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, nn

from sta.config.recipe import Optimisation
from sta.distributed.sharding import BatchShard, sharded_step
from sta.errors import TrainingError, first_line
from sta.training import zero
from sta.training.batch import Batch
from sta.training.faults import Faults
from sta.training.optimizers import Buffers, WeightAverage, learning_rate, parameters_of, step_where
from sta.training.runtime import step_seed
from sta.training.task import Task


@dataclass
class Outcome:
    """What came of a step, copied from the device beside the steps that follow.

    Attributes:
        step: its number, from 0.
        updates: phase and losses of each, the sum of its losses first; then comes its gradient's norm.
    """

    step: int
    updates: list[tuple[str, list[str]]] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    host: Tensor | None = None
    copied: torch.cuda.Event | None = None

    def add(self, phase: str, names: list[str], losses: Tensor, norm: Tensor) -> None:
        """Take note of an update."""
        self.updates.append((phase, names))
        self.values += [losses, norm[None].to(losses.dtype)]

    def copy_to_host(self) -> None:
        """Begin to copy what was noted."""
        values, self.values = torch.cat(self.values), []
        self.host = torch.empty(values.shape, pin_memory=values.is_cuda)
        self.host.copy_(values, non_blocking=True)
        if values.is_cuda:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> tuple[dict[str, float], str | None]:
        """Return losses and norms by name, and what is not finite; waits until they are there."""
        assert self.host is not None
        if self.copied is not None:
            self.copied.synchronize()
        values, found, fault = iter(self.host.tolist()), dict[str, float](), None
        for phase, names in self.updates:
            losses = {name: next(values) for name in (*names, "norm")}
            fault = fault or _fault_in(losses)
            found |= {f"{phase}/{name}" if phase else name: value for name, value in losses.items()}
            found["loss"] = found.get("loss", 0.0) + losses["loss"] if phase else losses["loss"]
        return found, fault


def _fault_in(losses: Mapping[str, float]) -> str | None:
    """Return what is not finite: the losses of an update whose sum is not, or the norm of its gradient."""
    if not math.isfinite(losses["loss"]):
        bad = [f"{name} {value:g}" for name, value in losses.items() if not math.isfinite(value)]
        several = [said for said in bad if not said.startswith(("loss ", "norm "))]
        return "loss " + ", ".join(several or bad[:1])
    return None if math.isfinite(losses["norm"]) else f"gradient {losses['norm']:g}"


class Trainer:
    """Does the steps of a task on this rank.

    Attributes:
        model: the task's module as accelerate has prepared it.
        average: of its weights; None where the stage has none.
        updated: whether an optimizer has stepped in this step.
    """

    def __init__(
        self, task: Task, settings: Optimisation, seed: int, accelerator: Accelerator, faults: Faults, parts: int
    ):
        self.task, self.settings, self.seed, self.accelerator, self.faults = task, settings, seed, accelerator, faults
        self.shard = BatchShard(accelerator.process_index, accelerator.num_processes)
        self.is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.model, self.prepared, self.average = self._prepare(parts)
        self.optimizers = [getattr(each, "optimizer", each) for each in self.prepared]
        self.buffers, self.updated = Buffers(task.module), False

    def _prepare(self, parts: int) -> tuple[nn.Module, list[torch.optim.Optimizer], WeightAverage | None]:
        accelerator, module = self.accelerator, self.task.module
        accelerator.gradient_accumulation_steps = parts
        zero.configure(accelerator, module, self.settings, parts)
        module.train()
        average = WeightAverage(module, self.settings.ema) if self.settings.ema else None
        self.task.compile(module, accelerator.device)
        optimizers = self.task.optimizers(self.settings)
        self.rates = [[group["lr"] / self.settings.lr for group in each.param_groups] for each in optimizers]
        if self.is_deepspeed and len(optimizers) > 1:
            raise TrainingError(f"stage {self.task.name}: has {len(optimizers)} optimizers, and DeepSpeed takes one")
        model, *prepared = accelerator.prepare(module, *optimizers)
        zero.gather_own_parameters(accelerator, module)
        if average is not None:
            average.to(accelerator.device)
            accelerator.register_for_checkpointing(average)
        return model, prepared, average

    # ---- one step -------------------------------------------------------------------------------------------------

    sound: Tensor | None  # whether all updates of the step were finite: bool scalar on the device

    def begin(self, step: int, batches: Sequence[Batch]) -> None:
        """Begin a step, or begin it again with its batch in other parts."""
        self.outcome, self.sound, self.updated = Outcome(step), None, False
        self.batches = [batch.to(self.accelerator.device, non_blocking=True) for batch in batches]
        rate = learning_rate(step, self.settings)
        for optimizer, shares in zip(self.prepared, self.rates, strict=True):
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
        self.buffers.keep()

    def undo(self) -> None:
        """Forget the gradients and buffers of a step that did not come to its end."""
        self.model.zero_grad()
        self.buffers.restore()

    def update(
        self, phase: str = "", optimizers: list[int] | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        """Update some networks; see `sta.training.task.Update`."""
        chosen = self.optimizers if optimizers is None else [self.optimizers[number] for number in optimizers]
        names, losses = self._gradient(phase, self.task.weights if weights is None else weights)
        norm = self._clip(chosen)
        sound = torch.isfinite(losses[0] + norm)
        if not self.is_deepspeed:
            self._step(chosen, sound)
        for optimizer in self.prepared:
            optimizer.zero_grad()
        self.sound = sound if self.sound is None else self.sound & sound
        self.outcome.add(phase, names, losses, norm)

    def end(self) -> Outcome:
        """End a step: buffers and average follow where all of its updates were sound."""
        assert self.sound is not None
        self.buffers.restore(self.sound)
        if self.average is not None:
            with zero.whole(self.accelerator, self.model):
                self.average.update(self.task.module, self.outcome.step, self.sound)
        if self.is_deepspeed and not bool(self.sound):
            zero.forget(self.accelerator, self.model)
        self.outcome.copy_to_host()
        self.batches = []
        return self.outcome

    def _gradient(self, phase: str, weights: Mapping[str, float]) -> tuple[list[str], Tensor]:
        """Gradients of the step, a part of the shard after another; names and values of the losses, the sum first.

        The values are means over the ranks: what one rank would have found, and not finite where they are not on any.
        """
        step, name, means = self.outcome.step, self.task.name + phase, None
        whole, rank = step_seed(self.seed, name, step), self.shard
        self.accelerator.step = 0  # of the parts, which it counts over all steps and saves: a resumed run would differ
        for shard, batch in zip(rank.split(len(self.batches)), self.batches, strict=True):
            self.faults.strike("forward", step + 1)
            with self.accelerator.accumulate(self.model):
                # for what draws by itself, as backbones do
                set_seed(step_seed(self.seed, name, step, shard.rank + shard.world * shard.part))
                with sharded_step(shard, self.settings.batch, whole):
                    losses = self.model(batch, phase) if phase else self.model(batch)
                loss = sum(weights[loss] * value for loss, value in losses.items() if loss in weights)
                if self.faults.asks("nan", "step", step + 1):
                    loss = loss * math.nan
                values = torch.stack([loss, *losses.values()]).detach().float() / len(self.batches)
                means = values if means is None else means + values
                if shard.part == shard.parts - 1:
                    means = self.accelerator.reduce(means, "mean")
                    if self.is_deepspeed and not bool(torch.isfinite(means[0])):
                        break
                self.accelerator.backward(loss)
        assert means is not None
        return ["loss", *losses], means

    def _clip(self, optimizers: Sequence[torch.optim.Optimizer]) -> Tensor:
        """Clip the gradients of some optimizers' parameters; the norm that they had."""
        most = self.settings.max_grad_norm
        if not self.is_deepspeed:
            return nn.utils.clip_grad_norm_(parameters_of(optimizers), most)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), most)
        return torch.tensor(0.0 if norm is None else float(norm), device=self.accelerator.device)

    def _step(self, optimizers: Sequence[torch.optim.Optimizer], sound: Tensor) -> None:
        """Step some optimizers, whose own state takes memory in the first; smaller parts do not help there."""
        self.updated = True
        try:
            for optimizer in optimizers:
                step_where(sound, optimizer)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"stage {self.task.name}: out of memory in the optimizer ({first_line(error)}); take a smaller model, "
                "or shard its state out among more processes with a launch file of ZeRO"
            ) from error
