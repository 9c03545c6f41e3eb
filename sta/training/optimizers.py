"""AdamW over a network, its learning rate by the step, and updates that a flag on the device masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sta.config.recipe import Optimisation
from sta.private import foreach_add_, foreach_copy_, foreach_mul_, foreach_sub


def learning_rate(step: int, settings: Optimisation) -> float:
    """Return linear warm-up, then half a cosine to 2 % of the peak."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def build_optimizer(module: nn.Module, settings: Optimisation) -> torch.optim.AdamW:
    """Return AdamW over every trainable parameter, each in exactly one group; vectors are not decayed."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2]
    plain = [p for p in trainable if p.ndim < 2]
    assert len(decayed) + len(plain) == len({id(p) for p in trainable})
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(0.9, 0.98), fused=True)


def parameters_of(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """Return every parameter of some optimizers."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def step_where(sound: Tensor, optimizer: Optimizer) -> None:
    """Step an optimizer where the flag `sound`, a bool scalar on the device, is true; else leave all as it is.

    Torch's fused optimizers take the flag themselves; for any other one the host waits for it.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif bool(sound):
        optimizer.step()


class WeightAverage(nn.Module):
    """A moving average of a network's weights and buffers, whose decay grows from 0.1: first steps are soon forgotten.

    Attributes:
        module: a copy of the network, which holds the average.
    """

    def __init__(self, network: nn.Module, decay: float):
        super().__init__()
        self.module, self.decay = copy.deepcopy(network).requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int, sound: Tensor) -> None:
        """Move towards the network after a step, where the flag `sound` is true."""
        keep = min(self.decay, (1 + step) / (10 + step)) if step else 0.0
        averaged, current = _floats(self.module), _floats(network)
        change = list(foreach_sub(current, averaged))
        foreach_mul_(change, sound * (1 - keep))
        foreach_add_(averaged, change)


class Buffers:
    """What a forward pass changes besides the gradient, such as running means: put back after a step that failed."""

    def __init__(self, network: nn.Module):
        self.buffers = [buffer for buffer in network.buffers() if buffer.dtype != torch.bool]
        self.kept = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def keep(self) -> None:
        """Note the buffers as they are."""
        if self.buffers:
            foreach_copy_(self.kept, self.buffers)

    @torch.no_grad()
    def restore(self, sound: Tensor | None = None) -> None:
        """Put back what was noted, where the flag `sound` is false; None: in any case."""
        for buffer, kept in zip(self.buffers, self.kept, strict=True):
            buffer.copy_(kept) if sound is None else torch.where(sound, buffer, kept, out=buffer)


def _floats(network: nn.Module) -> list[Tensor]:
    return [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]
