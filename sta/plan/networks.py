"""The network of each stage without its corpus: on torch's meta device to be counted, on the processor to be tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sta.config.recipe import Recipe
from sta.training.batch import Batch
from sta.training.stages import task_of, weights_of
from sta.training.task import CorpusFacts

TRIED = (2, 4)  # items; what more of them cost follows from the two


@dataclass(frozen=True)
class Parameters:
    """How many numbers a stage's network has."""

    trainable: int
    frozen: int


@dataclass(frozen=True)
class Cost:
    """The cost of a step: operations of forward and backward, and the bytes kept between them."""

    flops: float
    saved: float


def count(recipe: Recipe, facts: CorpusFacts, stage: str) -> Parameters:
    """Return the parameters of a stage's network."""
    with torch.device("meta"):
        return counted(task_of(recipe, stage).build_network(recipe, facts, stage))


def counted(module: nn.Module) -> Parameters:
    """Return the parameters of a network; shared ones count once."""
    trainable, frozen = (sum(p.numel() for p in module.parameters() if p.requires_grad is on) for on in (True, False))
    return Parameters(trainable, frozen)


def attempt(module: nn.Module, batch: Batch, weights: Mapping[str, float], bf16: bool) -> Cost:
    """Do one step's forward and backward on the processor, and count each piece of memory once, and no parameter."""
    module.train()
    torch.manual_seed(0)
    kept = {p.untyped_storage().data_ptr(): 0 for p in module.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with FlopCounterMode(display=False) as counter:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            losses = module(batch)
        total: Any = sum(weights[name] * value for name, value in losses.items() if name in weights)
        total.backward()
    module.zero_grad()
    return Cost(counter.get_total_flops(), sum(kept.values()))


def step_of(recipe: Recipe, facts: CorpusFacts, stage: str, batch: int, held: int) -> Cost:
    """Return the operations of a step on `batch` recordings of the mean length, and what `held` of the longest keep.

    Both are linear in the number of items: few are tried, on noise, in the recipe's precision.
    """
    task, plain = task_of(recipe, stage), _plain(recipe, stage)
    module, mean = task.build_network(plain, facts, stage), task.mean_seconds(recipe, facts)
    weights, bf16 = weights_of(recipe, stage), recipe.precision != "fp32"

    def tried(seconds: float) -> list[Cost]:
        noise = [task.example_batch(plain, facts, stage, items, seconds) for items in TRIED]
        return [attempt(module, few, weights, bf16) for few in noise]

    usual = tried(mean or 0.0)
    longest = tried(facts.longest) if mean else usual
    return Cost(line([cost.flops for cost in usual], batch), line([cost.saved for cost in longest], held))


def line(costs: list[float], items: float) -> float:
    """Return the cost of so many items, by what those of `TRIED` cost."""
    few, more = costs
    return few + (items - TRIED[0]) * (more - few) / (TRIED[1] - TRIED[0])


def _plain(recipe: Recipe, stage: str) -> Recipe:
    """Return the recipe with one encoder's languages, as a batch has, and without augmentation, which draws lengths."""
    distill = recipe.stages.distill.model_copy(update={"augment": 0.0, "accent": 0.0, "noise": 0.0, "gain": 0.0})
    languages = recipe.groups[stage.partition("-")[2] or next(iter(recipe.groups))]
    stages = recipe.stages.model_copy(update={"distill": distill})
    return recipe.model_copy(update={"languages": languages, "stages": stages})
