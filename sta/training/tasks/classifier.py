"""The classifier stage: the attribute classifier learns what real pictures show, drawn afresh for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.config.recipe import Recipe
from sta.data.corpora.base import Attributes, open_source
from sta.distributed import sharding
from sta.distributed.sharding import BatchShard
from sta.models.attribute_classifier import AttributeClassifier
from sta.models.vq import to_unit_range
from sta.training.loop import Task
from sta.training.workspace import Workspace

CLASSIFIER_SEED = 7_001  # apart from every split's


class _Reading(nn.Module):
    def __init__(self, classifier: AttributeClassifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.classifier(_disturbed(to_unit_range(batch["pixels"])))
        losses = [_error(logits[slot].float(), batch["values"][:, i]) for i, slot in enumerate(logits)]
        return {"read": torch.stack(losses).sum()}


def _error(logits: Tensor, values: Tensor) -> Tensor:
    """Mean cross-entropy over the pictures that have a value, -1 being none: scalar."""
    total = F.cross_entropy(logits, values, ignore_index=-1, reduction="sum")
    return sharding.global_mean(total, (values >= 0).sum())


def _disturbed(pictures: Tensor) -> Tensor:
    """A little noise and blur, as a drawing's own: the classifier must not hang on single pixels."""
    much, softened = sharding.uniform(len(pictures), 2, 1, 1, 1, device=pictures.device).unbind(1)
    noisy = pictures + 0.05 * much * sharding.normal_like(pictures)
    soft = F.avg_pool2d(F.pad(noisy, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.lerp(noisy, soft, softened)


def values_of(shown: Sequence[Mapping[str, str]], slots: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return the number of each slot's value, [n, slots]; -1 where the slot does not apply."""
    return np.array([[of.index(one[slot]) if slot in one else -1 for slot, of in slots.items()] for one in shown])


def attributes_of(recipe: Recipe) -> Attributes:
    """Return what a recipe's corpus knows of its pictures."""
    attributes = open_source(recipe.corpus, {}, recipe.seed).attributes()
    assert attributes is not None, "the stage is one of those corpora that know attributes"
    return attributes


def build_module(recipe: Recipe) -> _Reading:
    """Build the untrained network of the stage."""
    torch.manual_seed(recipe.seed)
    return _Reading(AttributeClassifier(attributes_of(recipe).slots(), recipe.corpus.size))


class ClassifierTask(Task):
    """Classification of every slot on pictures drawn on the fly, of all combinations."""

    name = "classifier"
    weights: Mapping[str, float] = MappingProxyType({"read": 1.0})

    def __init__(self, workspace: Workspace):
        self.attributes, self.size = attributes_of(workspace.recipe), workspace.recipe.corpus.size
        self.stage, self.seed = workspace.recipe.stages.classifier, workspace.recipe.seed
        self.slots = self.attributes.slots()
        self.module = build_module(workspace.recipe)

    def _numbers_of(self, step: int) -> np.ndarray:
        return np.arange(step * self.stage.batch, (step + 1) * self.stage.batch)

    def items(self, step: int) -> list[str]:
        return [f"drawn-{number}" for number in self._numbers_of(step)]

    def batch(self, step: int, shard: BatchShard) -> dict[str, Tensor]:
        numbers = shard.of(self._numbers_of(step))
        rngs = [np.random.default_rng([self.seed, CLASSIFIER_SEED, int(number)]) for number in numbers]
        pixels, shown = zip(*(self.attributes.draw(rng, self.size) for rng in rngs), strict=True)
        values = values_of(shown, self.slots)
        return {"pixels": torch.from_numpy(np.stack(pixels)), "values": torch.from_numpy(values)}

    def export(self, module: nn.Module, folder: Path) -> None:
        classifier = module.classifier
        assert isinstance(classifier, AttributeClassifier)
        classifier.save_pretrained(folder / "classifier")
