"""The teacher stage: a CLIP trained on the corpus, small and whole, or as heads upon frozen published towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from open_clip.loss import ClipLoss, gather_features
from torch import Tensor, nn
from torch.nn import functional as F

from sta.config.cards import TrainedClipCard, load_teacher
from sta.config.recipe import Recipe, TeacherStage
from sta.data.parts import ITEMS_PER_PART
from sta.distributed import sharding
from sta.distributed.sharding import BatchShard
from sta.distributed.team import Team
from sta.errors import TrainingError
from sta.models.teachers._towers import build_clip, tower_widths, without_trunks
from sta.models.teachers.base import teacher_class
from sta.models.teachers.trained_clip import preprocessing_of, save, tokenizer_of
from sta.training import examples
from sta.training.batch import Batch
from sta.training.concepts import label_numbers
from sta.training.sampler import build_sampler
from sta.training.task import CorpusFacts, Task
from sta.training.teacher_features import TowerFeatures, cache_towers, distinct_texts
from sta.training.workspace import Workspace


@dataclass(frozen=True)
class CaptionedBatch(Batch):
    """Pictures and their captions.

    Attributes:
        pixels: uint8 [B, H, W, 3], or float32 [B, F] of a frozen image tower.
        texts: int64 [B, L], ids of the tokenizer, or float32 [B, F] of a frozen text tower.
        items: int64 [B, 3], the numbers of each item's label (below 0 where it has none), picture and text; or [B, 0].
    """

    pixels: Tensor
    texts: Tensor
    items: Tensor


class _Clip(nn.Module):
    def __init__(self, card: TrainedClipCard, positives: str, shard: BatchShard, weights: bool):
        super().__init__()
        whole = build_clip(card, weights and set(card.published) != set(card.frozen))  # features have those of others
        self.preprocessing, self.frozen, self.positives = preprocessing_of(whole, card), card.frozen, positives
        self.clip = without_trunks(whole, card.frozen)
        self.contrast = ClipLoss(local_loss=True, gather_with_grad=True, rank=shard.rank, world_size=shard.world)
        self.shard = shard

    def forward(self, batch: CaptionedBatch) -> dict[str, Tensor]:
        images = batch.pixels if "image" in self.frozen else self.preprocessing.normalise(batch.pixels)
        image = F.normalize(self.clip.encode_image(images).float(), dim=-1)
        read = self.clip.text.proj if "text" in self.frozen else self.clip.encode_text
        text, scale = F.normalize(read(batch.texts).float(), dim=-1), self.clip.logit_scale.exp()
        if self.positives == "pair":
            return {"clip": self.contrast(image, text, scale)}
        return {"clip": label_contrast(image, text, batch.items, scale, self.shard)}


def label_contrast(image: Tensor, text: Tensor, items: Tensor, scale: Tensor, shard: BatchShard) -> Tensor:
    """Contrast pictures with captions, where all of one label, picture or text are positives of one another.

    Each direction is the supervised contrastive loss outside of the logarithm (Khosla et al. 2020, Eq. 2); without two
    alike in a batch it is CLIP's.

    Args:
        image, text: unit vectors [B, E].
        items: int64 [B, n], numbers of which one that two items share makes them alike; below 0: shared with none.
    """
    images, texts = image, text
    if shard.world > 1:
        images, texts = gather_features(image, text, True, True, shard.rank, shard.world)
    every = sharding.all_gather(items).unflatten(0, (-1, shard.world)).transpose(0, 1).flatten(0, 1)  # rank by rank
    alike = ((items[:, None] == every[None]) & (items[:, None] >= 0)).any(-1)  # [B, n * B]
    weights = alike / alike.sum(1, keepdim=True)
    directions = (scale * image @ texts.T, scale * text @ images.T)
    return torch.stack([-(weights * logits.log_softmax(1)).sum(1).mean() for logits in directions]).mean()


def build_module(recipe: Recipe, shard: BatchShard, weights: bool = True) -> _Clip:
    """Return the network of the stage, of a recipe whose teacher is trained here; published towers have weights."""
    torch.manual_seed(recipe.seed)
    return _Clip(card_of(recipe), recipe.stages.teacher.positives, shard, weights)


def card_of(recipe: Recipe) -> TrainedClipCard:
    """Return the card of a teacher that this stage trains."""
    card = load_teacher(recipe.teacher)
    assert isinstance(card, TrainedClipCard)
    return card


class TeacherTask(Task):
    """Contrastive language-image training (Radford et al. 2021) on pictures and captions in every language."""

    Settings = TeacherStage
    name = "teacher"
    weights: Mapping[str, float] = MappingProxyType({"clip": 1.0})

    def __init__(self, workspace: Workspace, shard: BatchShard, towers: Mapping[str, TowerFeatures]):
        self.workspace, self.towers = workspace, towers
        self.card = card_of(workspace.recipe)
        self.module = build_module(workspace.recipe, shard)
        self.pieces = None
        if self.card.pieces is not None:
            self.pieces = workspace.made("teacher's pieces") / "teacher.model"
        self.tokenize = tokenizer_of(self.card, self.pieces)
        rows = workspace.corpus.select("train")
        rows = rows[workspace.corpus.has_text[rows]]
        self.image_of, _ = workspace.corpus.image_index
        self.alike = list[np.ndarray]()
        if workspace.recipe.stages.teacher.positives == "label":
            rows = rows[~workspace.corpus.column("phrase").equal(True)[rows]]
            if not len(rows):
                raise TrainingError(
                    "stage teacher: all captions of the corpus are phrases, which stages.teacher.positives=label "
                    "leaves out; set it to pair"
                )
            self.alike = [label_numbers(workspace.corpus), self.image_of, distinct_texts(workspace)[0]]
        self.batch_size = workspace.recipe.stages.teacher.batch
        stretches = self.image_of[rows] // ITEMS_PER_PART
        self.order = build_sampler(workspace, rows, rows, workspace.recipe.seed, self.batch_size, shards=stretches)

    @classmethod
    def stages(cls, recipe: Recipe, section: str) -> list[str]:
        """Return the stage where the card is of a teacher that is trained here."""
        return [section] if teacher_class(load_teacher(recipe.teacher)).trained_here else []

    @classmethod
    def fill_caches(cls, workspace: Workspace, name: str, device: torch.device, team: Team) -> None:
        """Compute what frozen towers make of the corpus."""
        cache_towers(workspace, device, team)

    @classmethod
    def build(cls, workspace: Workspace, name: str, device: torch.device, shard: BatchShard) -> TeacherTask:
        return cls(workspace, shard, cache_towers(workspace, device))

    @classmethod
    def build_network(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> _Clip:
        return build_module(recipe, BatchShard(), weights=False)

    @classmethod
    def example_batch(cls, recipe: Recipe, facts: CorpusFacts, name: str, size: int, seconds: float) -> CaptionedBatch:
        """Return noise for pictures, and random tokens."""
        card, rng = card_of(recipe), np.random.default_rng(0)
        text, pixels = card.config["text_cfg"], examples.pixels(size, card.image_size, rng)
        texts = torch.from_numpy(rng.integers(text.get("vocab_size", 100), size=(size, text["context_length"])))
        if card.frozen:
            with torch.device("meta"):
                widths = tower_widths(build_clip(card, weights=False), card)
            noise = {tower: torch.randn(size, width) for tower, width in widths.items()}
            pixels, texts = noise.get("image", pixels), noise.get("text", texts)
        return CaptionedBatch(pixels, texts, torch.arange(3 * size).view(size, 3))

    def _rows_of(self, step: int) -> np.ndarray:
        return self.order.take(step * self.batch_size, self.batch_size)

    def items(self, step: int) -> list[str]:
        """Return the ids of the step's rows."""
        return self.workspace.corpus.names(self._rows_of(step))

    def batch(self, step: int, shard: BatchShard) -> CaptionedBatch:
        """Return this shard's pictures and captions of the step."""
        rows = shard.of(self._rows_of(step))
        items = np.array([numbers[rows] for numbers in self.alike], np.int64).reshape(-1, len(rows)).T
        return CaptionedBatch(self._pictures(rows), self._captions(rows), torch.from_numpy(items))

    def _pictures(self, rows: np.ndarray) -> Tensor:
        if (tower := self.towers.get("image")) is not None:
            return torch.from_numpy(tower[self.image_of[rows]])
        return torch.from_numpy(np.stack([self.workspace.teacher_pixels[self.image_of[r]] for r in rows]))

    def _captions(self, rows: np.ndarray) -> Tensor:
        if (tower := self.towers.get("text")) is not None:
            return torch.from_numpy(tower[rows])
        return self.tokenize([self.workspace.texts[r] for r in rows])

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the weights as open_clip loads them; those of frozen towers stay where they are."""
        clip = module.clip
        assert isinstance(clip, nn.Module)
        save(clip, self.card, self.pieces, folder)
