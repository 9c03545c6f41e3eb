"""Latent diffusion by flow matching (Lipman et al. 2023) on the tokenizer's latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from sta.config.recipe import Recipe, Sampling
from sta.distributed import sharding
from sta.models.bottleneck import SpeechCondition
from sta.models.decoders._transformer import TransformerDecoder, TransformerSettings, Trunk
from sta.models.decoders.base import Objective, PictureGrid, TokenSpace
from sta.models.flow import TIMESTEPS, flow_loss, interpolate, sample_noise_levels
from sta.models.patchify import patchify, unpatchify
from sta.models.scheduler import Generators


class FlowMatching(Objective):
    """The loss of flow matching on latents."""

    def forward(
        self, x0: Tensor, condition: SpeechCondition, drop: Tensor, drafted: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the loss of latents x_0 [B, d, h, w] at noise levels drawn here."""
        x0, t = x0.float(), sample_noise_levels(len(x0), x0.device)
        noise = sharding.normal_like(x0)
        xt = interpolate(x0, noise, t)
        velocity = self.decoder(xt, t, condition.tokens, condition.embedding, drop, drafted, condition.style)
        return {"flow": flow_loss(velocity, x0, noise)}


class LatentDecoder(TransformerDecoder):
    """Latent diffusion by flow matching: velocity of the tokenizer's latents at x_t (Lipman et al. 2023).

    Args:
        side: latents along a side of the picture.
        channels: d of a latent.
        patch_size: side of the square of latents that shares a position.
        token_width: C. embedding_width: E. tokens: K.
        draft: layers of the draft of the picture that the tokens alone give; 0: none.
        styles: names of what `SpeechCondition.style` numbers.
    """

    Settings = TransformerSettings
    title = "latent diffusion"
    target = "latents"
    loss_weights = {"flow": 1.0}  # noqa: RUF012

    @register_to_config
    def __init__(
        self, side: int, channels: int, tokens: int, token_width: int, embedding_width: int, width: int = 256,
        layers: int = 6, heads: int = 4, patch_size: int = 2, dropout: float = 0.0, draft: int = 0,
        styles: Sequence[str] = (),
    ):  # fmt: skip
        super().__init__()
        self.patch_embed = nn.Linear(patch_size * patch_size * channels, width)
        self.trunk = Trunk(
            side, channels, patch_size, tokens, token_width, embedding_width, width, layers, heads, dropout, draft,
            len(styles),
        )  # fmt: skip
        self.out = nn.Linear(width, patch_size * patch_size * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, latents: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor, drop: Tensor | None = None,
        drafted: Tensor | None = None, style: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute the velocity noise - x_0 [B, d, h, w] at latents of that shape; otherwise as of `Decoder.forward`."""
        side, patch_size = self.config.side, self.config.patch_size
        x = self.patch_embed(patchify(latents.flatten(2).transpose(1, 2).to(self.dtype), side, patch_size))
        x = unpatchify(self.out(self.trunk(x, t, tokens, embedding, drop, drafted, style)), side, patch_size)
        return x.transpose(1, 2).unflatten(2, (side, side))

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse a tokenizer that never learns to decode such latents."""
        super().check(recipe)
        if recipe.tokenizer.codes and not getattr(recipe.stages.tokenizer, "unquantised", True):
            raise ValueError(
                f"decoder.kind {recipe.decoder.kind} draws latents that skip the codebook, which the tokenizer has to "
                "learn: give stages.tokenizer.unquantised a share above 0, such as 0.5"
            )

    @classmethod
    def build(cls, settings: TransformerSettings, grid: PictureGrid, space: TokenSpace) -> LatentDecoder:
        """Make an untrained decoder."""
        return cls(grid.side, grid.channels, **cls.sizes_of(settings, space))

    def objective(self, settings: TransformerSettings, weights: Mapping[str, float]) -> FlowMatching:
        """Make the module that trains this decoder."""
        return FlowMatching(self)

    def build_scheduler(self, settings: TransformerSettings, sampling: Sampling) -> FlowMatchEulerDiscreteScheduler:
        """Make diffusers' own scheduler of flow matching."""
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS)

    def set_timesteps(self, scheduler: Any, steps: int, device: torch.device) -> None:
        """Spread `steps` evenly, the last of which ends at the picture, which flow matching has to be told."""
        steps = min(steps, scheduler.config["num_train_timesteps"])
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=device)
        scheduler.set_begin_index(0)  # or the first step looks its time up, for which a GPU has to be waited for

    def start(self, batch: int, generator: Generators, device: torch.device) -> Tensor:
        """Make x_T: noise, [B, d, h, w]."""
        shape = (batch, self.config.channels, self.config.side, self.config.side)
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
