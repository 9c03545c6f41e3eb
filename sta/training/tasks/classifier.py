"""The classifier stage: the attribute classifier learns what real Garden pictures show, drawn afresh for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.config.recipe import ClassifierStage, GardenCorpus, Recipe
from sta.data.corpora.garden.corpus import world_of
from sta.data.corpora.garden.draw import draw
from sta.data.corpora.garden.world import Scene, World
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
    """A little noise and blur, as a drawing's own: the classifier must not hang on single pixels."""
    much, softened = sharding.uniform(len(pictures), 2, 1, 1, 1, device=pictures.device).unbind(1)
    noisy = pictures + 0.05 * much * sharding.normal_like(pictures)
    soft = F.avg_pool2d(F.pad(noisy, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.lerp(noisy, soft, softened)


def slots_of(world: World) -> dict[str, list[str]]:
    """What the classifier answers: kind, every slot that varies, mood."""
    varying = {slot: list(values) for slot, values in world.slots.items() if len(values) > 1}
    return {"kind": list(world.kinds), **varying, "mood": list(world.moods)}


def values_of(scenes: Sequence[Scene], slots: dict[str, list[str]]) -> np.ndarray:
    """Number of each slot's value, [n, slots]; `IGNORE_INDEX` where the slot does not apply."""
    shown = [{**s.attributes, "kind": s.kind, "mood": s.mood} for s in scenes]
    none = sharding.IGNORE_INDEX
    return np.array([[of.index(s[slot]) if slot in s else none for slot, of in slots.items()] for s in shown])


def build_module(recipe: Recipe) -> _Classification:
    """The untrained network of the stage, of a recipe on Garden."""
    assert isinstance(recipe.corpus, GardenCorpus)
    torch.manual_seed(recipe.seed)
    return _Classification(AttributeClassifier(slots_of(world_of(recipe.corpus.world)), recipe.corpus.size))


class ClassifierTask(Task):
    """Classification of every slot on pictures drawn on the fly, of all combinations."""

    Settings = ClassifierStage
    name = "classifier"
    weights: Mapping[str, float] = MappingProxyType({"read": 1.0})

    def __init__(self, workspace: Workspace):
        corpus = workspace.recipe.corpus
        assert isinstance(corpus, GardenCorpus)
        self.world, self.image_size = world_of(corpus.world), corpus.size
        self.stage, self.seed = workspace.recipe.stages.classifier, workspace.recipe.seed
        self.slots = slots_of(self.world)
        self.module = build_module(workspace.recipe)

    @classmethod
    def stages(cls, recipe: Recipe, section: str) -> list[str]:
        return [section] if isinstance(recipe.corpus, GardenCorpus) else []

    @classmethod
    def build_network(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> _Classification:
        return build_module(recipe)

    @classmethod
    def example_batch(cls, recipe: Recipe, facts: CorpusFacts, name: str, size: int, seconds: float) -> LabelledBatch:
        assert isinstance(recipe.corpus, GardenCorpus)
        slots = len(slots_of(world_of(recipe.corpus.world)))
        pixels = examples.pixels(size, recipe.corpus.size, np.random.default_rng(0))
        return LabelledBatch(pixels, torch.zeros(size, slots, dtype=torch.long))

    @classmethod
    def items_of_corpus(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> None:
        return None

    def _numbers_of(self, step: int) -> np.ndarray:
        return np.arange(step * self.stage.batch, (step + 1) * self.stage.batch)

    def items(self, step: int) -> list[str]:
        return [f"drawn-{number}" for number in self._numbers_of(step)]

    def batch(self, step: int, shard: BatchShard) -> LabelledBatch:
        numbers = shard.of(self._numbers_of(step))
        scenes = [self.world.sample(np.random.default_rng([self.seed, CLASSIFIER_SEED, int(n)])) for n in numbers]
        pixels = np.stack([np.asarray(draw(scene, self.image_size)) for scene in scenes])
        return LabelledBatch(torch.from_numpy(pixels), torch.from_numpy(values_of(scenes, self.slots)))

    def export(self, module: nn.Module, folder: Path) -> None:
        classifier = module.classifier
        assert isinstance(classifier, AttributeClassifier)
        classifier.save_pretrained(folder / "classifier")
