"""The network of each stage without its corpus: on torch's meta device to be counted, on the processor to be tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sta.config.cards import load_teacher
from sta.config.recipe import Recipe
from sta.models.backbones import describe_backbone
from sta.plan.batches import batch_of
from sta.plan.corpus import Facts

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
        return self.base + self.each * items

    def mixed(self, other: Cost, share: float) -> Cost:
        """The mean cost of steps of which a share is as `other`."""
        return Cost(*((1 - share) * a + share * b for a, b in ((self.base, other.base), (self.each, other.each))))

    @classmethod
    def through(cls, few: float, more: float) -> Cost:
        """The line through what was measured with the numbers of items in `TRIED`."""
        each = (more - few) / (TRIED[1] - TRIED[0])
        return cls(few - TRIED[0] * each, each)


def build(recipe: Recipe, facts: Facts, stage: str, groups: list[str]) -> nn.Module:
    """The untrained network of a stage, for some of the recipe's groups."""
    if stage == "teacher":
        from sta.distributed.sharding import BatchShard
        from sta.training.tasks import teacher

        return teacher.build_module(recipe, BatchShard())
    if stage == "tokenizer":
        from sta.training.tasks import tokenizer

        return tokenizer.build_module(recipe)
    if stage == "classifier":
        from sta.training.tasks import classifier

        return classifier.build_module(recipe)
    from sta.training.tasks import decoder, distill

    backbone = describe_backbone(recipe.encoder.backbone, recipe.encoder.freeze_backbone)
    width = load_teacher(recipe.teacher).embedding_width
    heard = {
        group: distill.build_module(
            recipe, {code: facts.pieces[code] for code in recipe.groups[group]}, width, facts.moods, facts.attributes,
            backbone,
        )
        for group in groups
    }  # fmt: skip
    if stage != "decoder":
        return heard[groups[0]]
    return decoder.build_module(
        recipe, {g: m.encoder for g, m in heard.items()}, {g: m.bottleneck for g, m in heard.items()}
    )


def groups_of(recipe: Recipe, stage: str) -> list[str]:
    """The groups whose networks a stage holds: one in a distill stage, all in the decoder's."""
    return [stage.removeprefix("distill-")] if stage.startswith("distill-") else list(recipe.groups)


def count(recipe: Recipe, facts: Facts, stage: str) -> Parameters:
    """The parameters of a stage's network."""
    with torch.device("meta"):
        return counted(build(recipe, facts, stage, groups_of(recipe, stage)))


def counted(module: nn.Module) -> Parameters:
    """The parameters of a network; shared ones count once."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    layers = (sum(p.numel() for p in m.parameters(recurse=False)) for m in module.modules())
    return Parameters(trainable, frozen, max(layers))


@dataclass(frozen=True)
class Tried:
    """One step that was really done: operations of forward and backward, and the bytes kept between them."""

    flops: float
    saved: float


def weights_of(recipe: Recipe, stage: str) -> Mapping[str, float]:
    """The weight of each loss of a stage."""
    section = getattr(recipe.stages, stage.partition("-")[0])
    return getattr(section, "losses", {"clip": 1.0, "read": 1.0})


def attempt(module: nn.Module, batch: dict[str, Tensor], weights: Mapping[str, float], bf16: bool) -> Tried:
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
    plain = recipe.model_copy(update={"stages": recipe.stages.model_copy(update={"distill": _unaugmented(recipe)})})
    group = groups_of(recipe, stage)[0]
    module = build(plain, facts, stage, [group])
    weights, bf16 = weights_of(recipe, stage), recipe.precision != "fp32"

    def tried(size: int, seconds: float, without: str = "") -> Tried:
        batch = batch_of(plain, facts, stage, group, size, seconds)
        batch.pop(without, None)
        return attempt(module, batch, weights, bf16)

    mean = [tried(size, heard_in(recipe, facts, stage)) for size in TRIED]
    flops = Cost.through(*(t.flops for t in mean))
    if stage == "decoder" and recipe.stages.decoder.draft_warmup:
        first = Cost.through(*(tried(size, heard_in(recipe, facts, stage), "x0").flops for size in TRIED))
        flops = flops.mixed(first, recipe.stages.decoder.draft_warmup)
    hears = stage == "decoder" or stage.startswith("distill-")
    longest = [tried(size, facts.longest) for size in TRIED] if hears else mean
    return Step(flops, Cost.through(*(t.saved for t in longest)))


def heard_in(recipe: Recipe, facts: Facts, stage: str) -> float:
    """Mean seconds of the recordings that a stage hears: how many short phrases are among them is the recipe's."""
    distill = recipe.stages.distill
    if stage == "decoder":
        return facts.heard(recipe.stages.decoder.phrase_ratio)
    return facts.heard(distill.phrase_warmup + (1 - distill.phrase_warmup) * distill.phrase_ratio)


def _unaugmented(recipe: Recipe) -> Any:
    """The distill stage without augmentation, which keeps nothing for the backward pass and draws lengths at random."""
    return recipe.stages.distill.model_copy(update={"augment": 0.0, "accent": 0.0, "noise": 0.0})
