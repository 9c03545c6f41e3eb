"""The speech embedding sees other pictures as the teacher sees its own picture (SEED, Fang et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sta.config.recipe import DistillStage
from sta.distributed import sharding
from sta.training.losses.base import (
    DistillCorpus,
    DistillLoss,
    DistillOutputs,
    DistillSizes,
    Targets,
    similarity_distillation,
)


class ImageLoss(DistillLoss):
    """Similarity distillation against the teacher's features of the pictures.

    Phrases are left out: they say only a part of what the picture shows.

    Targets: own [B, E] and bank [M, E], unit vectors; counts [B], 0 for a phrase.
    """

    on_captions = True

    def __init__(self, sizes: DistillSizes, settings: DistillStage):
        super().__init__(sizes, settings)
        self.temperature = settings.temperature

    def targets(self, corpus: DistillCorpus, rows: np.ndarray) -> dict[str, Any]:
        counts = (~corpus.is_phrase(rows)).astype(np.float32)
        return {"own": torch.from_numpy(corpus.image_features(rows)), "counts": torch.from_numpy(counts)}

    def step_targets(self, corpus: DistillCorpus, step: int) -> dict[str, Any]:
        return {"bank": torch.from_numpy(corpus.image_features(corpus.negatives(step)))}

    def forward(self, outputs: DistillOutputs, targets: Targets) -> Tensor:
        """Compute the divergence from what the teacher says of the pictures, in nats."""
        embedding, counts = outputs.speech.embedding, targets["counts"]
        losses = similarity_distillation(embedding, targets["own"], targets["bank"], self.temperature)
        return sharding.global_mean((losses * counts).sum(), counts.sum())
