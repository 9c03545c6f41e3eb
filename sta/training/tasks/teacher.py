"""The teacher stage: a small CLIP trained on the corpus, for machines that cannot download one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from sta.config.cards import TrainedClipCard, load_teacher
from sta.config.recipe import Recipe, TeacherStage
from sta.data.parts import ITEMS_PER_PART
from sta.distributed.sharding import BatchShard
from sta.models.teachers.base import Preprocessing, teacher_class
from sta.models.teachers.trained_clip import build, save, tokenizer_of
from sta.training import examples
from sta.training.batch import Batch
from sta.training.sampler import build_sampler
from sta.training.task import CorpusFacts, Task
from sta.training.workspace import Workspace


@dataclass(frozen=True)
class CaptionedBatch(Batch):
    """Pictures and their captions.

    Attributes:
        pixels: uint8 [B, H, W, 3].
        texts: int64 [B, L], ids of `PieceTokenizer`.
    """

    pixels: Tensor
    texts: Tensor


class _Clip(nn.Module):
    def __init__(self, model: nn.Module, size: int, shard: BatchShard):
        super().__init__()
        self.clip, self.preprocessing = model, Preprocessing(size)
        self.contrast = ClipLoss(local_loss=True, gather_with_grad=True, rank=shard.rank, world_size=shard.world)

    def forward(self, batch: CaptionedBatch) -> dict[str, Tensor]:
        out = self.clip(self.preprocessing.normalise(batch.pixels), batch.texts)
        loss = self.contrast(out["image_features"].float(), out["text_features"].float(), out["logit_scale"])
        return {"clip": loss}


def build_module(recipe: Recipe, shard: BatchShard) -> _Clip:
    """Return the untrained network of the stage, of a recipe whose teacher is trained here."""
    card = card_of(recipe)
    torch.manual_seed(recipe.seed)
    return _Clip(build(card), card.image_size, shard)


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

    def __init__(self, workspace: Workspace, shard: BatchShard):
        self.workspace = workspace
        self.card = card_of(workspace.recipe)
        self.module = build_module(workspace.recipe, shard)
        self.pieces = workspace.made("teacher's pieces") / "teacher.model"
        self.tokenize = tokenizer_of(self.card, self.pieces)
        rows = workspace.corpus.select("train")
        rows = rows[workspace.corpus.has_text[rows]]
        self.image_of, _ = workspace.corpus.image_index
        self.batch_size = workspace.recipe.stages.teacher.batch
        stretches = self.image_of[rows] // ITEMS_PER_PART
        self.order = build_sampler(workspace, rows, rows, workspace.recipe.seed, self.batch_size, shards=stretches)

    @classmethod
    def stages(cls, recipe: Recipe, section: str) -> list[str]:
        """Return the stage where the card is of a teacher that is trained here."""
        return [section] if teacher_class(load_teacher(recipe.teacher)).trained_here else []

    @classmethod
    def build(cls, workspace: Workspace, name: str, device: torch.device, shard: BatchShard) -> TeacherTask:
        return cls(workspace, shard)

    @classmethod
    def build_network(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> _Clip:
        return build_module(recipe, BatchShard())

    @classmethod
    def example_batch(cls, recipe: Recipe, facts: CorpusFacts, name: str, size: int, seconds: float) -> CaptionedBatch:
        """Return noise for pictures, and random tokens."""
        card, rng = card_of(recipe), np.random.default_rng(0)
        text, pixels = card.config["text_cfg"], examples.pixels(size, card.image_size, rng)
        texts = rng.integers(text["vocab_size"], size=(size, text["context_length"]))
        return CaptionedBatch(pixels, torch.from_numpy(texts))

    def _rows_of(self, step: int) -> np.ndarray:
        return self.order.take(step * self.batch_size, self.batch_size)

    def items(self, step: int) -> list[str]:
        """Return the ids of the step's rows."""
        return self.workspace.corpus.names(self._rows_of(step))

    def batch(self, step: int, shard: BatchShard) -> CaptionedBatch:
        """Return this shard's pictures and captions of the step."""
        rows = shard.of(self._rows_of(step))
        pixels = np.stack([self.workspace.teacher_pixels[self.image_of[r]] for r in rows])
        return CaptionedBatch(torch.from_numpy(pixels), self.tokenize([self.workspace.texts[r] for r in rows]))

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the weights as open_clip loads them."""
        clip = module.clip
        assert isinstance(clip, nn.Module)
        save(clip, self.card, self.pieces, folder)
