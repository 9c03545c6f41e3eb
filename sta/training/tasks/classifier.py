"""The classifier stage: the attribute classifier learns what real pictures show, drawn afresh for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.config.recipe import ClassifierStage, Recipe
from sta.data.corpora.base import Attributes, open_source
from sta.distributed import sharding
from sta.distributed.sharding import BatchShard
from sta.models.attribute_classifier import AttributeClassifier
from sta.models.vq import to_unit_range
from sta.training import examples
from sta.training.batch import Batch
from sta.training.task import CorpusFacts, Task
from sta.training.workspace import Workspace

CLASSIFIER_SEED = 7_001  # apart from every split's


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """Pictures and what they show.

    Attributes:
        pixels: uint8 [B, H, W, 3].
        values: int64 [B, slots], the number of each slot's value; `IGNORE_INDEX` where the slot does not apply.
    """

    pixels: Tensor
    values: Tensor


class _Classification(nn.Module):
    def __init__(self, classifier: AttributeClassifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: LabelledBatch) -> dict[str, Tensor]:
        logits = self.classifier(_disturbed(to_unit_range(batch.pixels)))
        pairs = zip(logits.values(), batch.values.unbind(1), strict=True)
        return {"read": torch.stack([sharding.cross_entropy(of.float(), values) for of, values in pairs]).sum()}


def _disturbed(pictures: Tensor) -> Tensor:
    """Add a little noise and blur, as a drawing has: the classifier must not hang on single pixels."""
    much, softened = sharding.uniform(len(pictures), 2, 1, 1, 1, device=pictures.device).unbind(1)
    noisy = pictures + 0.05 * much * sharding.normal_like(pictures)
    soft = F.avg_pool2d(F.pad(noisy, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.lerp(noisy, soft, softened)


def values_of(shown: Sequence[Mapping[str, str]], slots: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return the number of each slot's value, [n, slots]; `IGNORE_INDEX` where the slot does not apply."""
    none = sharding.IGNORE_INDEX
    return np.array([[of.index(one[slot]) if slot in one else none for slot, of in slots.items()] for one in shown])


def attributes_of(recipe: Recipe) -> Attributes:
    """Return what a recipe's corpus knows of its pictures."""
    attributes = open_source(recipe.corpus, {}, recipe.seed).attributes()
    assert attributes is not None, "the stage is one of those corpora that know attributes"
    return attributes


def build_module(recipe: Recipe) -> _Classification:
    """Build the untrained network of the stage."""
    torch.manual_seed(recipe.seed)
    return _Classification(AttributeClassifier(attributes_of(recipe).slots(), recipe.corpus.size))


class ClassifierTask(Task):
    """Classification of every slot on pictures drawn on the fly, of all combinations."""

    Settings = ClassifierStage
    name = "classifier"
    weights: Mapping[str, float] = MappingProxyType({"read": 1.0})

    def __init__(self, workspace: Workspace):
        self.attributes, self.image_size = attributes_of(workspace.recipe), workspace.recipe.corpus.size
        self.stage, self.seed = workspace.recipe.stages.classifier, workspace.recipe.seed
        self.slots = self.attributes.slots()
        self.module = build_module(workspace.recipe)

    @classmethod
    def stages(cls, recipe: Recipe, section: str) -> list[str]:
        """Return the stage where the corpus knows what its pictures show."""
        return [section] if recipe.corpus.knows_attributes else []

    @classmethod
    def build_network(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> _Classification:
        return build_module(recipe)

    @classmethod
    def example_batch(cls, recipe: Recipe, facts: CorpusFacts, name: str, size: int, seconds: float) -> LabelledBatch:
        """Return noise for pictures, and values."""
        slots = len(attributes_of(recipe).slots())
        pixels = examples.pixels(size, recipe.corpus.size, np.random.default_rng(0))
        return LabelledBatch(pixels, torch.zeros(size, slots, dtype=torch.long))

    @classmethod
    def items_of_corpus(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> None:
        """Return None: pictures are drawn afresh."""
        return None

    def _numbers_of(self, step: int) -> np.ndarray:
        return np.arange(step * self.stage.batch, (step + 1) * self.stage.batch)

    def items(self, step: int) -> list[str]:
        """Return the numbers of the step's scenes."""
        return [f"drawn-{number}" for number in self._numbers_of(step)]

    def batch(self, step: int, shard: BatchShard) -> LabelledBatch:
        """Draw this shard's scenes of the step."""
        numbers = shard.of(self._numbers_of(step))
        rngs = [np.random.default_rng([self.seed, CLASSIFIER_SEED, int(number)]) for number in numbers]
        pixels, shown = zip(*(self.attributes.draw(rng, self.image_size) for rng in rngs), strict=True)
        values = values_of(shown, self.slots)
        return LabelledBatch(torch.from_numpy(np.stack(pixels)), torch.from_numpy(values))

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the classifier."""
        classifier = module.classifier
        assert isinstance(classifier, AttributeClassifier)
        classifier.save_pretrained(folder / "classifier")
