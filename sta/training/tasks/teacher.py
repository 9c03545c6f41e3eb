"""The teacher stage: a small CLIP trained on the corpus, for machines that cannot download one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from sta.config.cards import load_teacher
from sta.config.recipe import Recipe
from sta.data.parts import ITEMS_PER_PART
from sta.data.text import Pieces
from sta.distributed.sharding import BatchShard
from sta.models.teachers.open_clip import PieceTokenizer, Preprocessing, build_own, prepare_pixels, save_own
from sta.training.loop import Task
from sta.training.sampler import build_sampler
from sta.training.workspace import Workspace


class _Clip(nn.Module):
    def __init__(self, model: nn.Module, size: int, shard: BatchShard):
        super().__init__()
        self.clip, self.preprocessing = model, Preprocessing(size)
        self.contrast = ClipLoss(local_loss=True, gather_with_grad=True, rank=shard.rank, world_size=shard.world)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = self.clip(prepare_pixels(batch["pixels"], self.preprocessing), batch["texts"])
        loss = self.contrast(out["image_features"].float(), out["text_features"].float(), out["logit_scale"])
        return {"clip": loss}


def build_module(recipe: Recipe, shard: BatchShard) -> _Clip:
    """The untrained network of the stage, of a recipe whose teacher is trained here."""
    card = load_teacher(recipe.teacher)
    torch.manual_seed(recipe.seed)
    return _Clip(build_own(card), card.image_size, shard)


class TeacherTask(Task):
    """Contrastive language-image training (Radford et al. 2021) on pictures and captions in every language."""

    name = "teacher"
    weights: Mapping[str, float] = MappingProxyType({"clip": 1.0})

    def __init__(self, workspace: Workspace, shard: BatchShard):
        self.workspace = workspace
        self.card = load_teacher(workspace.recipe.teacher)
        assert self.card.config is not None
        text = self.card.config["text_cfg"]
        self.module = build_module(workspace.recipe, shard)
        self.pieces = workspace.made("teacher's pieces") / "teacher.model"
        self.tokenize = PieceTokenizer(Pieces.load(self.pieces), text["context_length"], text["vocab_size"])
        rows = workspace.corpus.select("train")
        rows = rows[workspace.corpus.has_text[rows]]
        self.image_of, _ = workspace.corpus.image_index
        self.size = workspace.recipe.stages.teacher.batch
        stretches = self.image_of[rows] // ITEMS_PER_PART
        self.order = build_sampler(workspace, rows, rows, workspace.recipe.seed, self.size, shards=stretches)

    def _rows_of(self, step: int) -> np.ndarray:
        return self.order.take(step * self.size, self.size)

    def items(self, step: int) -> list[str]:
        return self.workspace.corpus.names(self._rows_of(step))

    def batch(self, step: int, shard: BatchShard) -> dict[str, Tensor]:
        rows = shard.of(self._rows_of(step))
        pixels = np.stack([self.workspace.pixels[self.image_of[r]] for r in rows])
        return {"pixels": torch.from_numpy(pixels), "texts": self.tokenize([self.workspace.texts[r] for r in rows])}

    def export(self, module: nn.Module, folder: Path) -> None:
        clip = module.clip
        assert isinstance(clip, nn.Module)
        save_own(clip, self.card, self.pieces, folder)
