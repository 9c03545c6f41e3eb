"""A batch that several ranks share comes out as if one rank had it all: its random numbers, means and moments.

Rank r of n holds the items r, r + n, ... of the whole batch. The loop says so with `sharded_step`; outside of it,
whoever calls holds everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sta.distributed.ahead import runs_ahead
from sta.private import AnyBatchNorm

Sliced = TypeVar("Sliced", np.ndarray, Tensor, range)

#: A target that is not known and not asked for, as torch's cross-entropy has it.
IGNORE_INDEX = -100


@dataclass(frozen=True)
class BatchShard:
    """Which items of a whole batch a rank holds: all of its own at once, or one part of them after another."""

    rank: int = 0
    world: int = 1
    part: int = 0
    parts: int = 1

    @property
    def count(self) -> int:
        """How many such shares make the whole batch."""
        return self.world * self.parts

    def of(self, items: Sliced) -> Sliced:
        """Return this shard's items: every `count`-th."""
        return items[self.rank + self.world * self.part :: self.count]

    def split(self, parts: int) -> list[BatchShard]:
        """Return the same items, in so many parts."""
        return [replace(self, part=part, parts=parts) for part in range(parts)]


@dataclass
class _Step:
    shard: BatchShard
    total: int = 0
    seed: int | None = None
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Return the step's own random numbers, the same on every rank; None: torch's, where there is no step."""
        if self.seed is None:
            return None
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]


_step: ContextVar[_Step] = ContextVar("step", default=_Step(BatchShard()))  # noqa: B039 - never changed in place


@contextmanager
def sharded_step(shard: BatchShard, total: int, seed: int) -> Iterator[None]:
    """Within, the functions of this module take their caller to hold `shard` of a step's batch of `total` items.

    `seed` is of the step's random numbers, the same on every rank.
    """
    token = _step.set(_Step(shard, total, seed))
    try:
        yield
    finally:
        _step.reset(token)


@contextmanager
def with_batch_size(total: int) -> Iterator[None]:
    """Within `sharded_step`, another batch of the same step, of `total` items."""
    token = _step.set(replace(_step.get(), total=total))
    try:
        yield
    finally:
        _step.reset(token)


@contextmanager
def with_more_items(extra: int) -> Iterator[None]:
    """Within `sharded_step`, the step's batch and `extra` items behind it, each shared out, as one batch."""
    with with_batch_size(_step.get().total + extra):
        yield


# ---- random numbers -----------------------------------------------------------------------------------------


def uniform(count: int, *shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw from [0, 1), [count, *shape], for the `count` items that the caller holds.

    The numbers of the whole batch are drawn on every rank: for up to some thousands an item; `normal_like` is for more.
    """
    return _draw(torch.rand, count, shape, device, dtype=dtype)


def normal(count: int, *shape: int, device: torch.device) -> Tensor:
    """Draw from the standard normal, otherwise as `uniform`."""
    return _draw(torch.randn, count, shape, device)


def integers(below: int, count: int, *shape: int, device: torch.device) -> Tensor:
    """Draw from 0 .. below - 1, int64, otherwise as `uniform`."""
    return _draw(partial(torch.randint, below), count, shape, device)


def replicated_integers(below: int, count: int, device: torch.device) -> Tensor:
    """Draw from 0 .. below - 1, int64 [count], the same on every rank."""
    return torch.randint(below, (count,), device=device, generator=_step.get().generator(device))


def normal_like(x: Tensor) -> Tensor:
    """Draw from the standard normal [B, ...], as x is, from a seed for each item, so that nobody draws for others.

    The shape of an item must be the same on every rank. On the CPU each item's seed is that of a generator; elsewhere,
    where that is thousands of launches a step, one hash of seed and place gives the numbers of all items at once.
    """
    seeds = integers(2**62, len(x), device=torch.device("cpu"))
    if runs_ahead(x.device):
        return _hashed_normal(seeds.to(x.device), x)
    generator = torch.Generator(x.device)
    drawn = torch.empty_like(x)
    for item, seed in zip(drawn, seeds.tolist(), strict=True):
        item.normal_(generator=generator.manual_seed(seed))
    return drawn


def _hashed_normal(seeds: Tensor, x: Tensor) -> Tensor:
    """Draw from the standard normal [B, ...], as x is, by Box & Muller (1958) from 64 random bits for each number."""
    bits = splitmix(seeds, math.prod(x.shape[1:]))  # [B, N]
    radius = ((_shifted(bits, 32) + 1).float() / 2**32).log().mul(-2).sqrt()
    angle = (bits & (2**32 - 1)).float() * (2 * math.pi / 2**32)
    return (radius * angle.cos()).view(x.shape).to(x.dtype)


def splitmix(seeds: Tensor, count: int) -> Tensor:
    """Return `count` numbers of SplitMix64 (Steele, Lea & Flood 2014) from each seed: int64 [B] to [B, count].

    Each is a hash of seed and place, and products wrap, so that any part of them is computed alike anywhere.
    """
    state = seeds[:, None] + torch.arange(1, count + 1, device=seeds.device) * _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """int64 shifted to the right, with zeros from the left."""
    return (bits >> by) & ((1 << 64 - by) - 1)


def _signed(bits: int) -> int:
    """64 bits as int64 has them."""
    return bits - 2**64 if bits >= 2**63 else bits


def _draw(draw: Callable[..., Tensor], count: int, shape: Sequence[int], device: torch.device, **how: Any) -> Tensor:
    step = _step.get()
    shard = step.shard
    total = count if shard.count == 1 else step.total
    held = len(shard.of(range(total)))
    if count != held:
        raise ValueError(f"rank {shard.rank} of {shard.world} holds {held} of {total} items, not {count}")
    whole = draw((total, *shape), device=device, generator=step.generator(device), **how)
    return shard.of(whole)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) of items [B, ...], drawn for each item of the whole batch."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.special.ndtr(normal_like(x.detach().float())) >= self.rate
        return x * kept / max(1 - self.rate, 1e-6)


# ---- what is known only of the whole batch ------------------------------------------------------------------


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return a rank's part of `total of the whole batch / count of the whole batch`, which the mean over ranks is.

    Both are scalars, of what the caller holds; where the count is 0 on every rank, the mean is 0.
    """
    shard, counts = _step.get().shard, count.detach().float()
    if shard.world > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
        total = total * shard.world
    return total / counts.clamp_min(1)


def mean(values: Tensor) -> Tensor:
    """Return the mean of values, where ranks may hold different numbers of them: see `global_mean`."""
    return global_mean(values.sum(), values.new_full((), values.numel(), dtype=torch.float32))


def cross_entropy(logits: Tensor, values: Tensor) -> Tensor:
    """Compute the mean cross-entropy in nats of logits [N, V] whose values [N] are not `IGNORE_INDEX`."""
    total = F.cross_entropy(logits, values, ignore_index=IGNORE_INDEX, reduction="sum")
    return global_mean(total, (values != IGNORE_INDEX).sum())


def all_reduce_max(number: int) -> int:
    """Return the largest of the ranks' numbers, by way of their hosts, which wait for one another and for no device."""
    if _step.get().shard.world == 1:
        return number
    most = torch.tensor(number)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


def all_reduce_sum(moments: Tensor) -> Tensor:
    """Return the sum over the ranks, which the gradient goes through."""
    if _step.get().shard.world == 1:
        return moments
    total: Tensor = _Sum.apply(moments)
    return total


def ranks() -> int:
    """Return how many ranks share the step's batch; a backward pass, which is outside of the step, has to be told."""
    return _step.get().shard.world


def plain_sum(moments: Tensor, ranks: int) -> Tensor:
    """Return the sum over so many ranks, without gradient."""
    if ranks > 1:
        dist.all_reduce(moments)
    return moments


class _Sum(torch.autograd.Function):
    """Every rank's loss depends on the sum, so the gradient of a rank's part is the sum of the ranks' gradients."""

    @staticmethod
    def forward(context: Any, moments: Tensor) -> Tensor:
        total = moments.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def all_gather(items: Tensor) -> Tensor:
    """Return the whole batch [n * B, ...] of what every rank holds [B, ...], in its order, without gradient."""
    shard = _step.get().shard
    if shard.world == 1:
        return items.detach()
    parts = [torch.empty_like(items) for _ in range(shard.world)]
    dist.all_gather(parts, items.detach().contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


class BatchNorm(AnyBatchNorm):
    """Batch norm (Ioffe & Szegedy 2015) of [B, C, ...] over all ranks, on any device; its weights are torch's."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or _step.get().shard.world == 1:
            return super().forward(x)
        others, to = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        wide = x.float()
        count = float(all_reduce_sum(torch.tensor(float(x.numel() // x.shape[1]), device=x.device)))
        middle = all_reduce_sum(wide.sum(others)) / count
        centred = wide - middle.view(to)
        variance = all_reduce_sum(centred.square().sum(others)) / count
        with torch.no_grad():
            for running, now in (
                (self.running_mean, middle), (self.running_var, variance * count / (count - 1))
            ):  # fmt: skip
                assert running is not None
                running.lerp_(now.to(running.dtype), self.momentum or 0.0)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
        scale = self.weight.float() * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(to) + self.bias.float().view(to)).to(x.dtype)
