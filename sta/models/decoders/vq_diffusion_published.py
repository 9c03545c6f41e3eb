"""VQ-Diffusion's transformer as published (Gu et al. 2022), with the names of diffusers' weights.

Whatever diffusers' `Transformer2DModel` over codes was saved as loads here unchanged and gives the same logits.
diffusers keeps the null condition elsewhere, so such weights draw without guidance; those trained here have one. The
network is this package's own, since diffusers has deprecated its own for codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor, nn

from sta.config.recipe import DecoderSettings, Positive, Recipe, check_multiple
from sta.models.decoders._codes import CodeDiffusion
from sta.models.decoders.base import PictureGrid, TokenSpace
from sta.models.layers import LayerNorm, to_autocast


class _Places(nn.Module):
    """A code's embedding with those of its row and column."""

    def __init__(self, codes: int, side: int, width: int):
        super().__init__()
        self.emb = nn.Embedding(codes, width)
        self.height_emb, self.width_emb = nn.Embedding(side, width), nn.Embedding(side, width)

    def forward(self, codes: Tensor) -> Tensor:
        place = self.height_emb.weight[:, None] + self.width_emb.weight[None]  # [h, w, D]
        return self.emb(codes) + place.flatten(0, 1)


class _TimeNorm(nn.Module):
    """Layer norm, scaled and shifted by time; the scales and shifts of all T times are a table."""

    def __init__(self, width: int, timesteps: int):
        super().__init__()
        self.emb = nn.Embedding(timesteps, width)
        self.linear = nn.Linear(width, 2 * width)
        self.norm = LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(self.emb(t)))[:, None].chunk(2, -1)  # [B, 1, D] each
        return self.norm(x) * (1 + scale) + shift


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int, memory_width: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_width, bias=bias)
        self.to_k, self.to_v = (nn.Linear(memory_width, heads * head_width, bias=bias) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(heads * head_width, width)])

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        parts = (self.to_q(x), self.to_k(memory), self.to_v(memory))
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed: Tensor = self.to_out[0](F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))
        return mixed


class _GatedLinear(nn.Module):
    """GEGLU (Shazeer 2020)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.proj(x).chunk(2, -1)
        return values * F.gelu(gates)


class _ApproximateGELU(nn.Module):
    """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"geglu": _GatedLinear, "geglu-approximate": _ApproximateGELU}


class _FeedForward(nn.Module):
    def __init__(self, width: int, activation: str):
        super().__init__()
        inner = 4 * width
        self.net = nn.ModuleList([ACTIVATIONS[activation](width, inner), nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class _Block(nn.Module):
    def __init__(
        self, width: int, heads: int, head_width: int, memory_width: int, timesteps: int, activation: str, bias: bool
    ):
        super().__init__()
        self.norm1, self.norm2 = _TimeNorm(width, timesteps), _TimeNorm(width, timesteps)
        self.attn1 = _Attention(width, heads, head_width, width, bias)
        self.attn2 = _Attention(width, heads, head_width, memory_width, bias)
        self.norm3, self.ff = LayerNorm(width), _FeedForward(width, activation)

    def forward(self, x: Tensor, memory: Tensor, t: Tensor) -> Tensor:
        normed = self.norm1(x, t)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x, t), memory)
        return x + self.ff(self.norm3(x))


class _Settings(DecoderSettings):
    width: Positive = 256
    layers: Positive = 6
    heads: Positive = 4
    timesteps: Positive = Field(100, description="T of mask-and-replace")


class PublishedDecoder(CodeDiffusion):
    """Belief in a picture's codes x_0 given noisy codes x_t; arguments as in diffusers' `Transformer2DModel`.

    Args:
        num_attention_heads, attention_head_dim: their product is the width D.
        num_layers: blocks.
        cross_attention_dim: C, width of the tokens.
        num_vector_embeds: V + 1, the mask included.
        sample_size: codes along a side; N is its square.
        num_embeds_ada_norm: T.
        activation_fn: `geglu`, or `geglu-approximate` as the published weights have.
        null_length: tokens of the null condition, for weights trained here; 0 where the weights have none.
    """

    Settings = _Settings
    title = "VQ-Diffusion as published"
    _repeated_blocks = ["_Block"]  # noqa: RUF012 - what diffusers' `compile_repeated_blocks` compiles

    @register_to_config
    def __init__(
        self, num_attention_heads: int, attention_head_dim: int, num_layers: int, cross_attention_dim: int,
        num_vector_embeds: int, sample_size: int, num_embeds_ada_norm: int = 100,
        activation_fn: str = "geglu-approximate", attention_bias: bool = True, null_length: int = 0,
    ):  # fmt: skip
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.latent_image_embedding = _Places(num_vector_embeds, sample_size, width)
        self.transformer_blocks = nn.ModuleList(
            _Block(
                width, num_attention_heads, attention_head_dim, cross_attention_dim, num_embeds_ada_norm,
                activation_fn, attention_bias,
            )
            for _ in range(num_layers)
        )  # fmt: skip
        self.norm_out = LayerNorm(width)
        self.out = nn.Linear(width, num_vector_embeds - 1)
        if null_length:
            self.null_tokens = nn.Parameter(torch.randn(null_length, cross_attention_dim) * 0.02)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse a width that the heads do not divide."""
        settings = recipe.decoder
        assert isinstance(settings, _Settings)
        check_multiple("decoder.width", settings.width, settings.heads, "which decoder.heads is")

    @classmethod
    def build(cls, settings: _Settings, grid: PictureGrid, space: TokenSpace) -> PublishedDecoder:
        """Make an untrained decoder, with a null condition."""
        return cls(
            settings.heads, settings.width // settings.heads, settings.layers, cross_attention_dim=space.token_width,
            num_vector_embeds=grid.codes + 1, sample_size=grid.side, num_embeds_ada_norm=settings.timesteps,
            null_length=space.tokens,
        )  # fmt: skip

    @property
    def side(self) -> int:
        """Return the number of codes along a side of the picture."""
        return int(self.config.sample_size)

    @property
    def codebook(self) -> int:
        """Return V, which is the mask's id."""
        return int(self.config.num_vector_embeds) - 1

    @property
    def sizes(self) -> dict[str, int]:
        """Return its width, layers and heads."""
        heads = self.config.num_attention_heads
        return {"width": heads * self.config.attention_head_dim, "layers": self.config.num_layers, "heads": heads}

    def forward(
        self, codes: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor | None = None, drop: Tensor | None = None,
        drafted: Tensor | None = None, style: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute logits of x_0 [B, N, V] of codes [B, N] in 0..V, by the tokens alone, at times above 0."""
        times = (t * self.config.num_embeds_ada_norm).round().long() - 1  # diffusers counts from 0
        if drop is not None:
            if not self.config.null_length:
                raise ValueError("these weights have no null condition: draw with guidance_scale 1")
            tokens = torch.where(drop[:, None, None], self.null_tokens.to(tokens.dtype), tokens)
        x = to_autocast(self.latent_image_embedding(codes))
        for block in self.transformer_blocks:
            x = block(x, tokens, times)
        logits: Tensor = self.out(self.norm_out(x))
        return logits
