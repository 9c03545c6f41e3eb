"""VQ-Diffusion's transformer as published (Gu et al. 2022), with the names of diffusers' weights.

Whatever diffusers' `Transformer2DModel` over codes was saved as loads here unchanged and gives the same logits.
diffusers keeps the null condition elsewhere, so such weights draw without guidance; those trained here have one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from sta.models.decoders.transformer import CodeDecoder


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

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(self.emb(t)))[:, None].chunk(2, -1)  # [B, 1, D] each
        return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


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
        self.norm3, self.ff = nn.LayerNorm(width), _FeedForward(width, activation)

    def forward(self, x: Tensor, memory: Tensor, t: Tensor) -> Tensor:
        normed = self.norm1(x, t)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x, t), memory)
        return x + self.ff(self.norm3(x))


class PublishedDecoder(ModelMixin, ConfigMixin):
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

    config_name = "config.json"
    _repeated_blocks = ["_Block"]  # noqa: RUF012 - what diffusers' `compile_repeated_blocks` compiles

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int,
        attention_head_dim: int,
        num_layers: int,
        cross_attention_dim: int,
        num_vector_embeds: int,
        sample_size: int,
        num_embeds_ada_norm: int = 100,
        activation_fn: str = "geglu-approximate",
        attention_bias: bool = True,
        null_length: int = 0,
    ):
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
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, num_vector_embeds - 1)
        if null_length:
            self.null_tokens = nn.Parameter(torch.randn(null_length, cross_attention_dim) * 0.02)

    def draft(self, tokens: Tensor) -> None:
        """Nothing: this network has none."""

    def forward(
        self, codes: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor | None = None, drop: Tensor | None = None,
        drafted: None = None,
    ) -> Tensor:  # fmt: skip
        """Logits of x_0.

        Args:
            codes: [B, N] in 0..V, x_t.
            t: [B], time as a share of T in (0, 1].
            tokens: [B, K, C].
            embedding, drafted: not used by this network.
            drop: [B] bool, True where the null condition stands in.

        Returns:
            [B, N, V].
        """
        times = (t * self.config.num_embeds_ada_norm).round().long() - 1  # diffusers counts from 0
        if drop is not None:
            if not self.config.null_length:
                raise ValueError("these weights have no null condition: draw with guidance_scale 1")
            tokens = torch.where(drop[:, None, None], self.null_tokens.to(tokens.dtype), tokens)
        x = self.latent_image_embedding(codes)
        for block in self.transformer_blocks:
            x = block(x, tokens, times)
        logits: Tensor = self.out(self.norm_out(x))
        return logits

    def start(self, batch: int, generator: Any, device: torch.device) -> Tensor:
        """x_T: all mask, [B, N]."""
        return torch.full((batch, self.config.sample_size**2), self.config.num_vector_embeds - 1, device=device)

    guide = staticmethod(CodeDecoder.guide)
    picture = staticmethod(CodeDecoder.picture)
    reconstruct = staticmethod(CodeDecoder.reconstruct)
