"""VQ tokenizer: pictures to codes and back (van den Oord 2017), with the codebook of Yu et al. 2022.

Codes are compared on the unit sphere, the codebook follows its codes by moving averages, and entries
that nothing uses are put where pictures are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from sta.distributed import sharding

LATENT_NOISE = 0.1  # at most, of a latent's component whose root mean square is 1 / sqrt(d)


@dataclass(frozen=True)
class Quantized:
    """Quantised latents [B, d, h, w] with straight-through gradient, codes [B, N], and the commitment loss."""

    latents: Tensor
    codes: Tensor
    commit: Tensor


class Codebook(nn.Module):
    """V unit vectors of width d, kept by exponential moving averages."""

    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, width: int, decay: float = 0.98, dead_below: float = 0.02):
        super().__init__()
        self.decay, self.dead_below = decay, dead_below
        vectors = F.normalize(torch.randn(codes, width), dim=-1)
        self.register_buffer("vectors", vectors)
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", vectors.clone())

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [B, d, h, w]."""
        b, d, h, w = latents.shape
        flat = F.normalize(latents.float().permute(0, 2, 3, 1).reshape(-1, d), dim=-1)
        codes = (flat @ self.vectors.float().T).argmax(-1)
        if self.training:
            self._follow(flat.detach().view(b, h * w, d), codes)
        chosen = self.vectors.float()[codes]
        commit = F.mse_loss(flat, chosen)
        through = flat + (chosen - flat).detach()
        return Quantized(through.view(b, h, w, d).permute(0, 3, 1, 2), codes.view(b, h * w), commit)

    @torch.no_grad()
    def _follow(self, latents: Tensor, codes: Tensor) -> None:
        """Return latents [B, N, d], unit vectors, and the entries [B * N] they went to."""
        flat, everyone = latents.flatten(0, 1), sharding.all_gather(latents).flatten(0, 1)
        counts = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(codes, dtype=torch.float))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, flat)
        counts, sums = sharding.all_reduce_sum(counts), sharding.all_reduce_sum(sums)
        spare = everyone[sharding.replicated_integers(len(everyone), len(self.counts), flat.device)]
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = self.counts < self.dead_below * self.counts.mean()
        self.sums.copy_(torch.where(dead[:, None], spare * self.counts.mean(), self.sums))
        self.counts.copy_(torch.where(dead, self.counts.mean(), self.counts))
        self.vectors.copy_(F.normalize(self.sums, dim=-1))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm around a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, D, h, w] to the same."""
        return x + self.body(x)


class Tokenizer(ModelMixin, ConfigMixin, ABC):
    """What encodes pictures [B, 3, H, W] in [-1, 1] to codes or latents, and decodes them; its `size` is their side."""

    config_name = "config.json"

    @property
    def side(self) -> int:
        """Return the number of codes or latents along a side of the picture."""
        return int(self.config.size // self.config.factor)

    def start_from(self, pictures: Tensor) -> None:
        """Set the weights before training by pictures [n, 3, H, W] in [-1, 1]; by default as they are."""

    def encode_as(self, pictures: Tensor, target: Literal["codes", "latents"]) -> Tensor:
        """Return what a decoder draws of pictures [B, 3, H, W] in [-1, 1]: codes [B, N] or latents [B, d, h, w]."""
        return self.encode(pictures) if target == "codes" else self.latents(pictures)

    def encode(self, pictures: Tensor) -> Tensor:
        """Map pictures [B, 3, H, W] in [-1, 1] to codes [B, N]."""
        raise NotImplementedError(f"{type(self).__name__} has no codes")

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, N] to pictures [B, 3, H, W] in [-1, 1]."""
        raise NotImplementedError(f"{type(self).__name__} has no codes")

    @abstractmethod
    def latents(self, pictures: Tensor) -> Tensor:
        """Encode pictures [B, 3, H, W] in [-1, 1] to latents [B, d, h, w] of mean square 1, about."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents [B, d, h, w] to pictures [B, 3, H, W] in [-1, 1]."""


class VQTokenizer(Tokenizer):
    """Encode pictures [B, 3, H, W] in [-1, 1] to codes [B, N], N = (H / factor) * (W / factor), and back.

    Args:
        size: picture side, pixels.
        codes: V.
        factor: pixels per code along a side: 2, 4 or 8.
    """

    @register_to_config
    def __init__(self, size: int, codes: int = 256, code_width: int = 8, width: int = 64, factor: int = 4):
        super().__init__()
        halvings = {2: 1, 4: 2, 8: 3}[factor]
        down: list[nn.Module] = [nn.Conv2d(3, width // 2, 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(code_width, width, 3, padding=1), ResidualBlock(width), ResidualBlock(width)]
        channels = width // 2
        for _ in range(halvings):
            down += [nn.ReLU(), nn.Conv2d(channels, width, 4, stride=2, padding=1)]
            channels = width
        for level in range(halvings):
            following = width // 2 if level == halvings - 1 else width
            up += [nn.ReLU(), nn.ConvTranspose2d(width, following, 4, stride=2, padding=1)]
        down += [ResidualBlock(width), ResidualBlock(width), nn.ReLU(), nn.Conv2d(width, code_width, 1)]
        self.encoder = nn.Sequential(*down)
        self.codebook = Codebook(codes, code_width)
        self.decoder = nn.Sequential(*up, nn.ReLU(), nn.Conv2d(width // 2, 3, 3, padding=1))

    def forward(self, pictures: Tensor, unquantised: float = 0.0) -> tuple[Tensor, Quantized]:
        """Return reconstructions [B, 3, H, W], and what was quantised.

        Each picture is decoded from latents that skip the codebook with chance `unquantised`; they carry some noise, as
        latents that were drawn do.
        """
        latents = self.encoder(pictures)
        quantized = self.codebook(latents)
        through = quantized.latents
        if unquantised:
            skips, noise = sharding.uniform(len(pictures), 2, 1, 1, 1, device=pictures.device).unbind(1)
            smooth = F.normalize(latents.float(), dim=1)
            smooth = F.normalize(smooth + LATENT_NOISE * noise * sharding.normal_like(smooth), dim=1)
            through = torch.where(skips < unquantised, smooth, through)
        return self.decoder(through.to(pictures.dtype)), quantized

    def encode(self, pictures: Tensor) -> Tensor:
        """Map pictures [B, 3, H, W] in [-1, 1] to codes [B, N]."""
        codes: Tensor = self.codebook(self.encoder(pictures.to(self.dtype))).codes
        return codes

    def latents(self, pictures: Tensor) -> Tensor:
        """Encode pictures [B, 3, H, W] in [-1, 1] to latents [B, d, h, w], not yet quantised, of mean square 1."""
        return F.normalize(self.encoder(pictures.to(self.dtype)).float(), dim=1) * self.config.code_width**0.5

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, N] to pictures [B, 3, H, W] in [-1, 1]."""
        return self.decode_latents(
            self.codebook.vectors[codes].view(len(codes), self.side, self.side, -1).permute(0, 3, 1, 2)
        )

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents [B, d, h, w] of any length, without the codebook, to pictures [B, 3, H, W] in [-1, 1].

        Meant for a tokenizer that was trained with a share of unquantised latents.
        """
        smooth = F.normalize(latents.float(), dim=1)
        pictures: Tensor = self.decoder(smooth.to(self.dtype)).float().clamp(-1, 1)
        return pictures


def to_unit_range(pixels: Tensor) -> Tensor:
    """Turn uint8 [B, H, W, 3] to floats in [-1, 1], [B, 3, H, W]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(pictures: Tensor) -> Tensor:
    """Turn floats in [-1, 1], [B, 3, H, W], to uint8 [B, H, W, 3]; the inverse of `to_unit_range`."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
