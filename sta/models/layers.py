"""Transformer parts shared by the speech and the picture side.

On a CPU attention is two matrix products and a softmax: in bfloat16, with a mask and short sequences, the fused kernel
is slower there.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.distributed import sharding
from sta.distributed.ahead import runs_ahead


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al. 2016) that gives its input's dtype back; its moments are of float32 in any case.

    torch's own gives float32 under autocast on a GPU, and then all that is added to it is of float32 too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., D]."""
        if not _autocasts(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = (None if part is None else part.to(x.dtype) for part in (self.weight, self.bias))
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def to_autocast(x: Tensor) -> Tensor:
    """Return x in the dtype that autocast computes in, or as it is where there is no autocast."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if _autocasts(x.device.type) else x


def _autocasts(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


class Attention(nn.Module):
    """Multi-head attention of `query` [B, Q, D] to `memory` [B, S, D], with an optional memory_mask [B, S]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.to_query = nn.Linear(width, width)
        self.to_memory = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        keys, values = self.to_memory(memory).chunk(2, -1)
        return self.out(attend(self.to_query(query), keys, values, self.heads, memory_mask))


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Compute dot-product attention (Vaswani et al. 2017, Eq. 1) of [B, Q, D] to [B, S, D], mask [B, S]: [B, Q, D]."""
    b, q, d = queries.shape
    queries, keys, values = (x.reshape(b, -1, heads, d // heads).transpose(1, 2) for x in (queries, keys, values))
    if runs_ahead(queries.device):
        fused = F.scaled_dot_product_attention(queries, keys, values, None if mask is None else mask[:, None, None])
        return fused.transpose(1, 2).reshape(b, q, d)
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(d // heads)  # [B, h, Q, S]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ values).transpose(1, 2).reshape(b, q, d)


def feed_forward(width: int, factor: int = 4, dropout: float = 0.0) -> nn.Sequential:
    """Make linear, ReLU, linear (ReLU: its backward pass is cheaper than that of GELU)."""
    return nn.Sequential(nn.Linear(width, factor * width), nn.ReLU(), drop(dropout), nn.Linear(factor * width, width))


def drop(share: float) -> nn.Module:
    """Make dropout, or nothing at all where the share is 0: drawing the mask took a fifth of a step on CPU."""
    return sharding.Dropout(share) if share else nn.Identity()


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward over frames [B, S, D]."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.norm_attention, self.norm_forward = LayerNorm(width), LayerNorm(width)
        self.attention, self.feed_forward = Attention(width, heads), feed_forward(width, 4, dropout)
        self.dropout = drop(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.norm_attention(x)
        x = x + self.dropout(self.attention(normed, normed, mask))
        return x + self.dropout(self.feed_forward(self.norm_forward(x)))


@lru_cache(maxsize=64)
def sinusoid_table(count: int, width: int, device: torch.device) -> Tensor:
    """Return sinusoidal embedding [count, width] of the positions 0, 1, ...; it is kept, and not to be changed."""
    return sinusoids(torch.arange(count, device=device), width)


def sinusoids(positions: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Compute the sinusoidal embedding [..., width] of positions [...] (Vaswani et al. 2017, section 3.5)."""
    frequencies = torch.exp(-math.log(longest) * torch.arange(width // 2, device=positions.device) / (width // 2))
    angles = positions[..., None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """Return [B, longest], True below each length."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean over valid frames: x [B, S, D], mask [B, S] -> [B, D]."""
    weights = mask[..., None].to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1).clamp_min(1)


def pooled(x: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Compute the mean of every `count` neighbouring valid frames: x [B, S, D], lengths [B] -> [B, S / count, D]."""
    if count == 1:
        return x
    x = x * length_mask(lengths, x.shape[1])[..., None]
    x = F.pad(x, (0, 0, 0, -x.shape[1] % count)).unflatten(1, (-1, count)).sum(2)
    firsts = count * torch.arange(x.shape[1], device=x.device)
    return x / (lengths[:, None] - firsts).clamp(1, count)[..., None]
