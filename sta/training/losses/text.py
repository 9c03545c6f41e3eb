"""The speech embedding sees other captions as the teacher sees its own caption (SEED, Fang et al. 2021)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sta.training.losses.base import DistillCorpus
from sta.training.losses.image import ImageLoss


class TextLoss(ImageLoss):
    """Similarity distillation against the teacher's features of the captions in the languages that it reads.

    Targets: own [B, E] and bank [M, E], unit vectors; counts [B], 0 where the teacher reads no caption.
    """

    def targets(self, corpus: DistillCorpus, rows: np.ndarray) -> dict[str, Any]:
        counts = corpus.teacher_reads(rows).astype(np.float32)
        return {"own": torch.from_numpy(corpus.text_features(rows)), "counts": torch.from_numpy(counts)}

    def step_targets(self, corpus: DistillCorpus, step: int) -> dict[str, Any]:
        rows = corpus.negatives(step)
        return {"bank": torch.from_numpy(corpus.text_features(rows[corpus.teacher_reads(rows)]))}
