"""The tokens hold the caption's words, in their order: a small decoder reads it back from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sta.config.recipe import DistillStage
from sta.models.captioner import Captioner, pad_captions
from sta.training.losses.base import DistillCorpus, DistillLoss, DistillOutputs, DistillSizes, Targets


class CaptionLoss(DistillLoss):
    """Nats per piece of the caption, where there is one.

    Targets: pieces int64 [B, L], padded with `IGNORE_INDEX`, which is all of a row without a caption.
    """

    on_captions = True
    reads_pieces = True

    def __init__(self, sizes: DistillSizes, settings: DistillStage):
        super().__init__(sizes, settings)
        self.captioner = Captioner(sizes.vocabulary, sizes.token_width)

    def targets(self, corpus: DistillCorpus, rows: np.ndarray) -> dict[str, Any]:
        return {"pieces": torch.from_numpy(pad_captions(corpus.captions(rows), corpus.has_text(rows)))}

    def forward(self, outputs: DistillOutputs, targets: Targets) -> Tensor:
        """Compute nats per piece."""
        loss: Tensor = self.captioner(outputs.speech.tokens, targets["pieces"])
        return loss
