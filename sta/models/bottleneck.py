"""The speech information bottleneck: the frames give K Gaussian tokens, by K learned queries or by detectors.

A variational information bottleneck (Alemi et al. 2017): the KL to a standard normal bounds how many
bits of the recording get through. Training samples the tokens, evaluation takes the means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from sta.distributed import sharding
from sta.models.layers import Attention, LayerNorm, TransformerLayer

WINDOW = 5  # frames that a detector sees


@dataclass(frozen=True)
class SpeechCondition:
    """What drives the decoder.

    Attributes:
        tokens: [B, K, C], sampled in training, the means otherwise.
        embedding: [B, E], unit norm, in the teacher's space.
        kl: [B], nats per utterance.
        style: int64 [B], which of the decoder's `styles` to draw in, their count for any; None: any.
    """

    tokens: Tensor
    embedding: Tensor
    kl: Tensor
    style: Tensor | None = None

    def __getitem__(self, items: slice | Tensor) -> SpeechCondition:
        """Return some utterances of the batch, by a slice or their numbers [n]."""
        style = None if self.style is None else self.style[items]
        return SpeechCondition(self.tokens[items], self.embedding[items], self.kl[items], style)

    @property
    def bits(self) -> Tensor:
        """Return the rate [B] in bits per utterance."""
        return self.kl / math.log(2)


def mean_condition(conditions: Sequence[SpeechCondition]) -> SpeechCondition:
    """Average what several readings of the same recordings gave, with embeddings of unit norm again."""
    tokens, embedding, kl = (
        torch.stack([getattr(one, name) for one in conditions]).mean(0) for name in ("tokens", "embedding", "kl")
    )
    return SpeechCondition(tokens, F.normalize(embedding, dim=-1), kl)


class QueryLayer(nn.Module):
    """The queries read the frames, then one another."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.self_attention = TransformerLayer(width, heads)

    def forward(self, queries: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """Map queries [B, K, D] to the same, having seen frames [B, S, D] of mask [B, S]."""
        return self.self_attention(queries + self.cross_attention(self.norm(queries), frames, mask))


class Detectors(nn.Module):
    """Many units that each look for something in a window of frames [B, S, D], pooled over time: [B, K, 2 C].

    A unit finds a part of a word wherever it stands, as convolutions with max-pooling over time do (Collobert et al.
    2011; Kim 2014), and what follows is linear. So words are learnt in few steps, where queries first have to learn
    where to look (recipes/LOG.md).
    """

    def __init__(self, frame_width: int, tokens: int, width: int, units: int):
        super().__init__()
        self.tokens = tokens
        self.units = nn.Linear(WINDOW * frame_width, units)
        self.norm = LayerNorm(2 * units)
        self.read = nn.Linear(2 * units, tokens * 2 * width)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        seen = mask[..., None].to(frames.dtype)
        beside = F.pad(frames * seen, (0, 0, WINDOW // 2, WINDOW // 2)).unfold(1, WINDOW, 1).flatten(2)
        found = F.relu(self.units(beside)) * seen
        pooled = self.norm(torch.cat([found.amax(1), found.sum(1) / WINDOW], -1))
        return self.read(pooled).unflatten(-1, (self.tokens, -1))  # type: ignore[no-any-return]


class SpeechBottleneck(ModelMixin, ConfigMixin):
    """Frames [B, S, D] to K Gaussian tokens [B, K, C] and a global embedding [B, E].

    Args:
        frame_width: D. embedding_width: E. tokens: K. width: C.
        layers, heads: of the queries.
        detectors: how many `Detectors` read the frames in the place of queries; 0: queries do.
    """

    config_name = "config.json"
    _repeated_blocks = ["QueryLayer"]  # noqa: RUF012 - what diffusers' `compile_repeated_blocks` compiles

    @register_to_config
    def __init__(
        self, frame_width: int, embedding_width: int, tokens: int = 16, width: int = 64, layers: int = 2,
        heads: int = 4, detectors: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.pool = Detectors(frame_width, tokens, width, detectors) if detectors else None
        if self.pool is None:
            self.queries = nn.Parameter(torch.randn(tokens, frame_width) * 0.5)
            self.query_layers = nn.ModuleList(QueryLayer(frame_width, heads) for _ in range(layers))
            self.norm = LayerNorm(frame_width)
            self.gaussian = nn.Linear(frame_width, 2 * width)
        self.embed = nn.Sequential(
            nn.Linear(tokens * width, 2 * frame_width), nn.ReLU(), nn.Linear(2 * frame_width, embedding_width)
        )
        last = self.gaussian.bias if self.pool is None else self.pool.read.bias
        with torch.no_grad():
            last.unflatten(0, (-1, 2 * width))[:, width:] = -3.0  # start with little noise

    def forward(self, frames: Tensor, mask: Tensor, language: Tensor, noise: Tensor | None = None) -> SpeechCondition:
        """Compute the tokens, which training samples.

        Args:
            frames: [B, S, D]; mask: [B, S].
            language: [B], numbers of the encoder's `languages`, for what a language has of its own; today nothing.
            noise: [B, K, C], standard normal, which training draws if it is not given.
        """
        read = self._queried(frames, mask) if self.pool is None else self.pool(frames, mask)
        mean, log_variance = read.float().chunk(2, -1)  # [B, K, C] each
        log_variance = log_variance.clamp(-8, 4)
        tokens = mean
        if self.training:
            tokens = mean + (0.5 * log_variance).exp() * (sharding.normal_like(mean) if noise is None else noise)
        return SpeechCondition(
            tokens, F.normalize(self.embed(tokens.flatten(1)).float(), dim=-1), gaussian_kl(mean, log_variance)
        )

    def _queried(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Return what the queries read, [B, K, 2 C]."""
        x = self.queries.expand(len(frames), -1, -1).to(frames.dtype)
        for layer in self.query_layers:
            x = layer(x, frames, mask)
        read: Tensor = self.gaussian(self.norm(x))
        return read


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute KL(N(mean, exp(log_variance)) || N(0, 1)) in nats, summed over all but the batch: [B, ...] -> [B]."""
    return 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
