"""The rate of the bottleneck: KL to a standard normal, in nats per utterance (Alemi et al. 2017)."""

from __future__ import annotations

from torch import Tensor

from sta.training.losses.base import DistillLoss, DistillOutputs, Targets


class KLLoss(DistillLoss):
    """Mean KL of the Gaussian tokens; it needs no target."""

    def forward(self, outputs: DistillOutputs, targets: Targets) -> Tensor:
        """Return the mean KL in nats."""
        return outputs.speech.kl.mean()
