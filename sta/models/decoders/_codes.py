"""What decoders have in common that draw codes by mask-and-replace diffusion (VQ-Diffusion, Gu et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sta.config.recipe import Sampling
from sta.models.bottleneck import SpeechCondition
from sta.models.decoders.base import Decoder, Objective
from sta.models.diffusion import Schedule, guide, linear_schedule, q_sample, sample_timesteps, variational_loss
from sta.models.scheduler import Generators, MaskReplaceScheduler

REPLACED = 0.1  # share of the codes not masked that are uniform noise just before the end


class MaskAndReplace(Objective):
    """The losses of VQ-Diffusion on codes: of x_0 (its auxiliary loss), and the variational bound where it counts."""

    def __init__(self, decoder: Decoder, schedule: Schedule, variational: bool):
        super().__init__(decoder)
        self.schedule, self.variational = schedule, variational

    def forward(
        self, x0: Tensor, condition: SpeechCondition, drop: Tensor, drafted: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the losses of codes x_0 [B, N] at times drawn here."""
        t = sample_timesteps(len(x0), self.schedule.timesteps, x0.device)
        xt = q_sample(x0, t, self.schedule)
        share = t / self.schedule.timesteps
        logits = self.decoder(xt, share, condition.tokens, condition.embedding, drop, drafted, condition.style).float()
        losses = {"x0": F.cross_entropy(logits.flatten(0, 1), x0.flatten())}
        return losses | ({"vlb": variational_loss(logits, x0, xt, t, self.schedule)} if self.variational else {})


class CodeDiffusion(Decoder):
    """A decoder whose `forward` gives logits of x_0 [B, N, V]; `side` and `codebook` say how many."""

    target = "codes"
    loss_weights = {"x0": 1.0, "vlb": 0.0}  # noqa: RUF012

    @property
    def side(self) -> int:
        """Return the number of codes along a side of the picture."""
        return int(self.config.side)

    @property
    def codebook(self) -> int:
        """Return V, which is the mask's id."""
        return int(self.config.codebook)

    def objective(self, settings: Any, weights: Mapping[str, float]) -> MaskAndReplace:
        """Make the module that trains this decoder."""
        schedule = linear_schedule(settings.timesteps, self.codebook, REPLACED)
        return MaskAndReplace(self, schedule, bool(weights.get("vlb")))

    def build_scheduler(self, settings: Any, sampling: Sampling) -> MaskReplaceScheduler:
        """Make the sampler of mask-and-replace diffusion."""
        return MaskReplaceScheduler(
            self.codebook, settings.timesteps, REPLACED, truncation=sampling.truncation, reveal=sampling.reveal
        )

    def start(self, batch: int, generator: Generators, device: torch.device) -> Tensor:
        """Make x_T: all mask, [B, N]."""
        return torch.full((batch, self.side**2), self.codebook, device=device)

    @staticmethod
    def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Apply classifier-free guidance on log-probabilities (Tang et al. 2022, Eq. 6)."""
        return guide(conditional.float(), unconditional.float(), scale)
