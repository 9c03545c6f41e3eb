"""The text branch: captions take the place of recordings, so that speech and text meet in the same tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sta.config.recipe import DistillStage
from sta.training.losses.base import DistillLoss, DistillOutputs, DistillSizes, Targets


class TextBranchLoss(DistillLoss):
    """The other losses on written captions, each with its own weight; it takes a CTC head, as whose output they enter.

    Its outputs are those of the captions, and its targets those of each loss by the loss's name.
    """

    branch = "text"

    def __init__(self, sizes: DistillSizes, settings: DistillStage):
        super().__init__(sizes, settings)
        self.weights, self.others = settings.losses, dict[str, DistillLoss]()

    @classmethod
    def applies(cls, sizes: DistillSizes, settings: DistillStage) -> bool:
        """Return whether captions enter: by a CTC head, and a share of the batch."""
        return bool(settings.losses.get("ctc")) and settings.text_ratio > 0

    def add_others(self, losses: Mapping[str, DistillLoss]) -> None:
        self.others = {name: loss for name, loss in losses.items() if loss.on_captions}

    def forward(self, outputs: DistillOutputs, targets: Targets) -> Tensor | None:
        losses = {name: loss(outputs, targets[name]) for name, loss in self.others.items()}
        weighted = [self.weights[name] * loss for name, loss in losses.items() if loss is not None]
        return torch.stack(weighted).sum() if weighted else None
