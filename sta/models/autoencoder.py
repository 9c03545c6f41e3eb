"""A tokenizer without a codebook: squares of pixels to latents that latent diffusion draws, and back.

Its linear part is the best linear code of its pictures, their principal components, which keeps colours and outlines
from the first step on and is not trained; two convolutional networks learn what that leaves out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sta.distributed import sharding
from sta.models.vq import LATENT_NOISE, Quantized, ResidualBlock, Tokenizer, VQTokenizer

LIMIT = 6.0  # how far from 0 a latent goes at no cost; its mean square is 1 at the start


class Autoencoder(Tokenizer):
    """Encode pictures [B, 3, H, W] in [-1, 1] to latents [B, d, h, w] of mean square 1, about, and back.

    Args:
        size: picture side, pixels.
        codes: V, which is 0.
        code_width: d. width: channels of the networks, twice as many where latents are.
        factor: pixels per latent along a side.
    """

    @register_to_config
    def __init__(self, size: int, codes: int = 0, code_width: int = 16, width: int = 64, factor: int = 8):
        super().__init__()
        stem = factor // 2
        self.patches = nn.Conv2d(3, code_width, factor, stride=factor)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(stem), nn.Conv2d(3 * stem * stem, width, 3, padding=1), ResidualBlock(width),
            nn.ReLU(), nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), ResidualBlock(2 * width),
            nn.ReLU(), nn.Conv2d(2 * width, code_width, 1),
        )  # fmt: skip
        self.pixels = nn.ConvTranspose2d(code_width, 3, factor, stride=factor, bias=False)
        self.mean = nn.Parameter(torch.zeros(3, factor, factor), requires_grad=False)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_width, 2 * width, 3, padding=1), ResidualBlock(2 * width), ResidualBlock(2 * width),
            nn.ReLU(), nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1), ResidualBlock(width),
            ResidualBlock(width), nn.ReLU(), nn.Conv2d(width, 3 * stem * stem, 3, padding=1), nn.PixelShuffle(stem),
        )  # fmt: skip
        for part in (self.patches, self.pixels):
            part.requires_grad_(False)
        for last in (self.encoder[-1], self.decoder[-2]):
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    @torch.no_grad()
    def start_from(self, pictures: Tensor) -> None:
        """Make the linear part that of the principal components of pictures [n, 3, H, W] in [-1, 1].

        A latent's mean square is 1 over all channels, and each channel's as its component's deviation, so that what
        shows most is drawn first and counts most.
        """
        factor, width = self.config.factor, self.config.code_width
        squares = F.unfold(pictures, factor, stride=factor).transpose(1, 2).flatten(0, 1).double()  # [n * N, 3 f f]
        mean = squares.mean(0)
        variances, axes = torch.linalg.eigh((squares - mean).T.cov(correction=0))
        axes = axes[:, -width:].T  # [d, 3 f f]
        roots = variances[-width:].clamp_min(1e-8) ** 0.25
        scales = (roots * roots.square().mean().sqrt())[:, None]
        self.patches.weight.copy_((axes / scales).view_as(self.patches.weight))
        assert self.patches.bias is not None
        self.patches.bias.copy_(-(axes / scales) @ mean)
        self.pixels.weight.copy_((axes * scales).view_as(self.pixels.weight))
        self.mean.copy_(mean.view_as(self.mean))

    def forward(self, pictures: Tensor, unquantised: float = 1.0) -> tuple[Tensor, Quantized]:
        """Return reconstructions [B, 3, H, W] from latents with some noise, as latents that were drawn have it."""
        latents = self._encode(pictures)
        level = LATENT_NOISE * sharding.uniform(len(latents), 1, 1, 1, device=latents.device)
        noisy = latents + level * sharding.normal_like(latents)
        beyond = (latents.float().abs() - LIMIT).clamp_min(0).square().mean()
        codes = torch.zeros(len(latents), 0, dtype=torch.long, device=latents.device)
        return self._decode(noisy), Quantized(noisy, codes, beyond)

    def latents(self, pictures: Tensor) -> Tensor:
        """Encode pictures [B, 3, H, W] in [-1, 1] to latents [B, d, h, w]."""
        return self._encode(pictures.to(self.dtype)).float()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents [B, d, h, w] to pictures [B, 3, H, W] in [-1, 1]."""
        return self._decode(latents.to(self.dtype)).float().clamp(-1, 1)

    def _encode(self, pictures: Tensor) -> Tensor:
        latents: Tensor = self.patches(pictures) + self.encoder(pictures)
        return latents

    def _decode(self, latents: Tensor) -> Tensor:
        drawn: Tensor = self.pixels(latents) + self.decoder(latents)
        return drawn + self.mean.repeat(1, *latents.shape[2:])


def tokenizer_class(codes: int) -> type[Tokenizer]:
    """Return the tokenizer with so many codes."""
    return VQTokenizer if codes else Autoencoder
