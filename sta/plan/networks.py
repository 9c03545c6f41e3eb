"""The network of each stage without its corpus: on torch's meta device to be counted, on the processor to be tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sta.config.recipe import Recipe
from sta.plan.corpus import Facts
from sta.training.batch import Batch
from sta.training.stages import settings_of, task_of
from sta.training.task import Task

TRIED = (2, 4)  # items; what one more item costs follows from the two


@dataclass(frozen=True)
class Parameters:
    """How many numbers a stage's network has.

    Attributes:
        trainable, frozen: parameters.
        largest: of the largest layer.
    """

    trainable: int
    frozen: int
    largest: int


@dataclass(frozen=True)
class Cost:
    """What one step takes: linear in the items, `each`, on top of what a step takes anyway, `base`."""

    base: float
    each: float

    def of(self, items: float) -> float:
        """Return the cost of so many items."""
        return self.base + self.each * items

    def mixed(self, other: Cost, share: float) -> Cost:
        """Return the mean cost of steps of which a share is as `other`."""
        return Cost(*((1 - share) * a + share * b for a, b in ((self.base, other.base), (self.each, other.each))))

    @classmethod
    def through(cls, few: float, more: float) -> Cost:
        """Return the line through what was measured with the numbers of items in `TRIED`."""
        each = (more - few) / (TRIED[1] - TRIED[0])
        return cls(few - TRIED[0] * each, each)


def count(recipe: Recipe, facts: Facts, stage: str) -> Parameters:
    """Return the parameters of a stage's network."""
    with torch.device("meta"):
        return counted(task_of(recipe, stage).build_network(recipe, facts, stage))


def counted(module: nn.Module) -> Parameters:
    """Return the parameters of a network; shared ones count once."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    layers = (sum(p.numel() for p in m.parameters(recurse=False)) for m in module.modules())
    return Parameters(trainable, frozen, max(layers))


@dataclass(frozen=True)
class Tried:
    """One step that was really done: operations of forward and backward, and the bytes kept between them."""

    flops: float
    saved: float


def weights_of(task: type[Task], recipe: Recipe, stage: str) -> Mapping[str, float]:
    """Return the weight of each loss of a stage."""
    return getattr(settings_of(recipe, stage), "losses", None) or task.weights


def attempt(module: nn.Module, batch: Batch, weights: Mapping[str, float], bf16: bool) -> Tried:
    """Do one step's forward and backward on the processor, and count."""
    module.train()
    torch.manual_seed(0)
    kept = _Kept(module)
    with FlopCounterMode(display=False) as counter:
        with (
            torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            losses = module(batch)
        total: Any = sum(weights[name] * value for name, value in losses.items() if name in weights)
        total.backward()
    module.zero_grad()
    return Tried(counter.get_total_flops(), kept.bytes)


class _Kept:
    """Adds up what autograd keeps for the backward pass, each piece of memory once, and no parameter."""

    def __init__(self, module: nn.Module):
        self.seen = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.bytes = 0

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


@dataclass(frozen=True)
class Step:
    """What a stage's step takes, in the number of items: operations at the mean length, memory at the longest."""

    flops: Cost
    saved: Cost


def step_of(recipe: Recipe, facts: Facts, stage: str) -> Step:
    """Try a stage on noise, with few items of the mean and of the longest length, in the recipe's precision."""
    task, plain = task_of(recipe, stage), _of_one_group(_unaugmented(recipe), stage)
    module, mean = task.build_network(plain, facts, stage), task.mean_seconds(recipe, facts)
    weights, bf16 = weights_of(task, recipe, stage), recipe.precision != "fp32"

    def costs(seconds: float) -> list[tuple[float, Cost, Cost]]:
        """Return the share of the steps, operations and memory of each phase."""
        tried: list[list[tuple[float, Tried]]] = [
            [(share, attempt(module, batch, weights, bf16)) for share, batch in task.example_phases(
                plain, facts, stage, size, seconds)] for size in TRIED
        ]  # fmt: skip
        return [
            (few[0], Cost.through(few[1].flops, more[1].flops), Cost.through(few[1].saved, more[1].saved))
            for few, more in zip(*tried, strict=True)
        ]

    (_, flops, saved), *others = costs(mean or 0.0)
    for share, other, _ in others:
        flops = flops.mixed(other, share)
    return Step(flops, costs(facts.longest)[0][2] if mean else saved)


def _unaugmented(recipe: Recipe) -> Recipe:
    """Return the recipe without augmentation, which keeps nothing for the backward pass and draws lengths at random."""
    distill = recipe.stages.distill.model_copy(update={"augment": 0.0, "accent": 0.0, "noise": 0.0, "gain": 0.0})
    return recipe.model_copy(update={"stages": recipe.stages.model_copy(update={"distill": distill})})


def _of_one_group(recipe: Recipe, stage: str) -> Recipe:
    """Return the recipe with the languages of one encoder alone, on which a batch is: the stage's own, or the first."""
    own = stage.partition("-")[2]
    return recipe.model_copy(update={"languages": recipe.groups[own or next(iter(recipe.groups))]})
