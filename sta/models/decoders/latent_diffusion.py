"""Latent diffusion by flow matching (Lipman et al. 2023) on the tokenizer's latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from pydantic import Field
from torch import Tensor, nn

from sta.config.recipe import Recipe, Sampling
from sta.distributed import sharding
from sta.models.bottleneck import SpeechCondition
from sta.models.decoders._transformer import TransformerDecoder, TransformerSettings, Trunk
from sta.models.decoders.base import Objective, PictureGrid, StepCallback, TokenSpace
from sta.models.flow import TIMESTEPS, flow_loss, interpolate, sample_noise_levels
from sta.models.patchify import patchify, unpatchify
from sta.models.scheduler import Generators


class FlowMatching(Objective):
    """The loss of flow matching on latents."""

    def forward(
        self, x0: Tensor, condition: SpeechCondition, drop: Tensor, drafted: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the loss of latents x_0 [B, d, h, w] at noise levels drawn here."""
        x0, most = x0.float(), self.decoder.config.draft_start
        t = most * sample_noise_levels(len(x0), x0.device)
        noise = sharding.normal_like(x0)
        xt = interpolate(x0, noise, t)
        velocity = self.decoder(xt, t, condition.tokens, condition.embedding, drop, drafted, condition.style)
        return {"flow": flow_loss(velocity, x0, noise)}


class _Settings(TransformerSettings):
    draft_start: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of noise in what drawing starts from, the rest of which is the draft; 1: noise alone"
    )


class LatentDecoder(TransformerDecoder):
    """Latent diffusion by flow matching: velocity of the tokenizer's latents at x_t (Lipman et al. 2023).

    Args:
        side: latents along a side of the picture.
        channels: d of a latent.
        patch_size: side of the square of latents that shares a position.
        token_width: C. embedding_width: E. tokens: K.
        draft: layers of the draft of the picture that the tokens alone give; 0: none.
        styles: names of what `SpeechCondition.style` numbers.
        draft_embedding: whether the draft reads the global embedding, too.
        condition: `tokens`, or `embedding`, which then stands for them too.
        draft_hidden: width of a draft of fully connected layers; 0: of attention.
        draft_memory: keys of its memory; 0: none.
        embedding_tokens: how many tokens the embedding gives; 0: as many as there are speech tokens.
        draft_start: share of noise that drawing starts from, on the draft (shallow diffusion, Liu et al. 2022).
    """

    Settings = _Settings
    title = "latent diffusion"
    target = "latents"
    loss_weights = {"flow": 1.0}  # noqa: RUF012

    @register_to_config
    def __init__(
        self, side: int, channels: int, tokens: int, token_width: int, embedding_width: int, width: int = 256,
        layers: int = 6, heads: int = 4, patch_size: int = 2, dropout: float = 0.0, draft: int = 0,
        styles: Sequence[str] = (), draft_start: float = 1.0, draft_embedding: bool = False,
        condition: str = "tokens", draft_hidden: int = 0, embedding_tokens: int = 0,
        draft_memory: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.patch_embed = nn.Linear(patch_size * patch_size * channels, width)
        self.trunk = Trunk(
            side, channels, patch_size, tokens, token_width, embedding_width, width, layers, heads, dropout, draft,
            len(styles), draft_embedding, condition, draft_hidden, embedding_tokens,
            draft_memory,
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
        settings: Any = recipe.decoder
        if settings.draft_start < 1 and not settings.draft:
            raise ValueError(
                "decoder.draft_start below 1 starts from a draft: give decoder.draft some layers, such as 2"
            )
        if recipe.tokenizer.codes and not getattr(recipe.stages.tokenizer, "unquantised", True):
            raise ValueError(
                f"decoder.kind {recipe.decoder.kind} draws latents that skip the codebook, which the tokenizer has to "
                "learn: give stages.tokenizer.unquantised a share above 0, such as 0.5"
            )

    @classmethod
    def build(cls, settings: _Settings, grid: PictureGrid, space: TokenSpace) -> LatentDecoder:
        """Make an untrained decoder."""
        return cls(grid.side, grid.channels, draft_start=settings.draft_start, **cls.sizes_of(settings, space))

    def objective(self, settings: TransformerSettings, weights: Mapping[str, float]) -> FlowMatching:
        """Make the module that trains this decoder."""
        return FlowMatching(self)

    def build_scheduler(self, settings: TransformerSettings, sampling: Sampling) -> FlowMatchEulerDiscreteScheduler:
        """Make diffusers' own scheduler of flow matching."""
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS)

    def set_timesteps(self, scheduler: Any, steps: int, device: torch.device) -> None:
        """Spread `steps` evenly, the last of which ends at the picture, which flow matching has to be told."""
        steps = min(steps, scheduler.config["num_train_timesteps"])
        most = self.config.draft_start
        scheduler.set_timesteps(sigmas=np.linspace(most, most / steps, steps), device=device)
        scheduler.set_begin_index(0)  # or the first step looks its time up, for which a GPU has to be waited for

    def start(self, batch: int, generator: Generators, device: torch.device) -> Tensor:
        """Make x_T: noise, [B, d, h, w]."""
        shape = (batch, self.config.channels, self.config.side, self.config.side)
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

    @torch.no_grad()
    def sample(
        self, scheduler: Any, condition: SpeechCondition, start: Tensor, steps: int, guidance: float,
        generator: Generators = None, on_step: StepCallback | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw x_0 from noise, or from the draft with a share of it; otherwise as of `Decoder.sample`."""
        if self.trunk.draft is not None and self.config.draft_start < 1:
            drafted = self.draft(condition)
            assert drafted is not None
            known = self.trunk.draft.predicted(drafted)
            start = interpolate(known, start, start.new_full((len(start),), self.config.draft_start))
        return super().sample(scheduler, condition, start, steps, guidance, generator, on_step)
