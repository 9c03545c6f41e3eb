"""The tokens say the mood of the voice, where the corpus names it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sta.config.recipe import DistillStage
from sta.distributed.sharding import IGNORE_INDEX
from sta.models.token_classifier import TokenClassifier
from sta.training.losses.base import DistillCorpus, DistillLoss, DistillOutputs, DistillSizes, Targets


class MoodLoss(DistillLoss):
    """Nats per recording that has a mood and whose acoustic frames were not hidden.

    Targets: values int64 [B], `IGNORE_INDEX` where there is none.
    """

    def __init__(self, sizes: DistillSizes, settings: DistillStage):
        super().__init__(sizes, settings)
        self.classifier = TokenClassifier({"mood": sizes.moods}, sizes.tokens, sizes.token_width)

    @classmethod
    def applies(cls, sizes: DistillSizes, settings: DistillStage) -> bool:
        """Return whether the corpus names moods."""
        return sizes.moods > 0

    def targets(self, corpus: DistillCorpus, rows: np.ndarray) -> dict[str, Any]:
        return {"values": torch.from_numpy(corpus.moods(rows))}

    def forward(self, outputs: DistillOutputs, targets: Targets) -> Tensor:
        """Compute nats per recording whose mood is known."""
        values = targets["values"]
        if outputs.acoustic is not None:
            values = values.masked_fill(~outputs.acoustic, IGNORE_INDEX)
        return self.classifier.loss(outputs.speech.tokens, values[:, None])
