"""What the frames say, piece by piece: connectionist temporal classification (Graves et al. 2006)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sta.distributed import sharding
from sta.training.losses.base import DistillCorpus, DistillLoss, DistillOutputs, Targets


class CTCLoss(DistillLoss):
    """Nats per piece of the caption, of the recordings that have one; without this loss the encoder has no CTC head.

    Targets: pieces int64 [sum of lengths], one caption after the other; lengths, those of each on the host; known [B],
    0 where there is no caption; weights [B], 1 / pieces.
    """

    reads_pieces = of_readings = True

    def targets(self, corpus: DistillCorpus, rows: np.ndarray) -> dict[str, Any]:
        """Return the captions' pieces and their counts."""
        captions, known = corpus.captions(rows), corpus.has_text(rows).astype(np.float32)
        lengths = tuple(len(caption) for caption in captions)
        return {
            "pieces": torch.tensor([piece for caption in captions for piece in caption], dtype=torch.long),
            "lengths": lengths,
            "known": torch.from_numpy(known),
            "weights": torch.from_numpy(known / np.maximum(np.array(lengths, np.float32), 1)),
        }

    def forward(self, outputs: DistillOutputs, targets: Targets) -> Tensor:
        """Compute nats per piece."""
        logits, input_lengths = outputs.encoder.ctc_logits, outputs.input_lengths
        assert logits is not None
        if input_lengths is None:
            input_lengths = outputs.encoder.ctc_lengths
        losses = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1), targets["pieces"], input_lengths,
            torch.tensor(targets["lengths"]), reduction="none", zero_infinity=True,
        )  # fmt: skip
        return sharding.global_mean((losses * targets["weights"]).sum(), targets["known"].sum())
