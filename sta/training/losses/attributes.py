"""The tokens say plainly what the caption names: S2IGAN's distinctive loss (Wang et al. 2020) for every attribute."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sta.config.recipe import DistillStage
from sta.models.token_classifier import TokenClassifier
from sta.training.losses.base import DistillCorpus, DistillLoss, DistillOutputs, DistillSizes, Targets


class AttributesLoss(DistillLoss):
    """Nats per attribute, that it is not named being one of its values.

    Targets: values int64 [B, attributes].
    """

    on_captions = True

    def __init__(self, sizes: DistillSizes, settings: DistillStage):
        super().__init__(sizes, settings)
        self.classifier = TokenClassifier(sizes.attributes, sizes.tokens, sizes.token_width)

    def targets(self, corpus: DistillCorpus, rows: np.ndarray) -> dict[str, Any]:
        """Return the values that the rows' captions name."""
        return {"values": torch.from_numpy(corpus.attributes(rows))}

    def forward(self, outputs: DistillOutputs, targets: Targets) -> Tensor:
        """Compute nats per attribute."""
        return self.classifier.loss(outputs.speech.tokens, targets["values"])
