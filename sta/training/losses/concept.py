"""The speech embedding says of which label its picture is: InfoNCE against what the teacher makes of all labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sta.config.recipe import DistillStage
from sta.distributed import sharding
from sta.training.losses.base import DistillCorpus, DistillLoss, DistillOutputs, DistillSizes, Targets


class ConceptLoss(DistillLoss):
    """Nats per item, that the nearest centroid is its own label's (van den Oord et al. 2018).

    Names of one thing so meet across languages, where the teacher's own vectors of single words do not. Rows without a
    label, and phrases, are left out.

    Targets: values int64 [B], `IGNORE_INDEX` of those that are left out; centroids [labels, E], unit vectors.
    """

    on_captions = True

    def __init__(self, sizes: DistillSizes, settings: DistillStage):
        super().__init__(sizes, settings)
        self.temperature = settings.temperature

    def targets(self, corpus: DistillCorpus, rows: np.ndarray) -> dict[str, Any]:
        """Return the numbers of the rows' labels."""
        values = np.where(corpus.is_phrase(rows), sharding.IGNORE_INDEX, corpus.concepts.of_row[rows])
        return {"values": torch.from_numpy(values)}

    def step_targets(self, corpus: DistillCorpus, step: int) -> dict[str, Any]:
        return {"centroids": torch.from_numpy(corpus.concepts.centroids)}

    def forward(self, outputs: DistillOutputs, targets: Targets) -> Tensor | None:
        """Compute nats per item that has a label."""
        embedding = outputs.speech.embedding
        if not len(targets["centroids"]):
            return None
        with torch.autocast(embedding.device.type, enabled=False):
            logits = embedding.float() @ targets["centroids"].T / self.temperature  # [B, labels]
            return sharding.cross_entropy(logits, targets["values"])
