"""A decoder of somebody's own: latents in one pass from the speech tokens, without steps or a scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sta.config.recipe import DecoderSettings, Positive
from sta.models.bottleneck import SpeechCondition
from sta.models.decoders.base import Decoder, Objective, PictureGrid, StepCallback, TokenSpace


class OnePassSettings(DecoderSettings):
    hidden: Positive = 8


class SquaredError(Objective):
    def forward(
        self, x0: Tensor, condition: SpeechCondition, drop: Tensor, drafted: Tensor | None
    ) -> dict[str, Tensor]:
        return {"l2": (self.decoder.paint(condition.tokens) - x0.float()).square().mean()}


class OnePass(Decoder):
    Settings = OnePassSettings
    title = "a picture in one pass"
    target = "latents"
    loss_weights = {"l2": 1.0}  # noqa: RUF012

    @register_to_config
    def __init__(self, side: int, channels: int, tokens: int, token_width: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(tokens * token_width, hidden), nn.ReLU(), nn.Linear(hidden, channels * side * side)
        )

    @classmethod
    def build(cls, settings: OnePassSettings, grid: PictureGrid, space: TokenSpace) -> OnePass:
        return cls(grid.side, grid.channels, space.tokens, space.token_width, settings.hidden)

    def objective(self, settings: OnePassSettings, weights: Mapping[str, float]) -> SquaredError:
        return SquaredError(self)

    def start(self, batch: int, generator: Any, device: torch.device) -> Tensor:
        return torch.zeros(batch, self.config.channels, self.config.side, self.config.side, device=device)

    def paint(self, tokens: Tensor) -> Tensor:
        latents: Tensor = self.net(tokens.flatten(1))
        return latents.unflatten(1, (self.config.channels, self.config.side, self.config.side))

    @torch.no_grad()
    def sample(
        self, scheduler: Any, condition: SpeechCondition, start: Tensor, steps: int, guidance: float,
        generator: Any = None, on_step: StepCallback | None = None,
    ) -> Tensor:  # fmt: skip
        x = start + self.paint(condition.tokens.to(self.dtype))
        return x if on_step is None else on_step(0, torch.tensor(0.0), x)
