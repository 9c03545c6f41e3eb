"""Log-mel features and convolutions that are trained here: the backbone of `encoder.backbone: null`."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sta.data.audio import BANDS, HOP, Q_MEAN, Q_STD, SAMPLE_RATE, mel_features
from sta.distributed import sharding
from sta.models.backbones.base import SpeechBackbone
from sta.models.layers import drop, length_mask
from sta.private import foreach_lerp_

EPSILON = 1e-5  # of the frames' variance


class FrameNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015) of [B, D, S] over the valid frames of all ranks; padding is left out.

    Evaluation uses running statistics, so that a recording's frames do not depend on its batch.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, momentum: float = 0.1):
        super().__init__()
        self.momentum = momentum
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
        """Normalise x [B, D, S], zero in the padding, which stays zero.

        Args:
            mask: [B, S].
            count: valid frames of all ranks, where the caller knows them.
        """
        if self.training:
            if count is None:
                count = sharding.all_reduce_sum(mask.sum().float())
            normed, mean, variance = _BatchNorm.apply(x, self.scale, self.shift, mask[:, None], count)  # type: ignore[no-untyped-call]
            with torch.no_grad():
                foreach_lerp_([self.mean, self.variance], [mean, variance], self.momentum)
            return normed  # type: ignore[no-any-return]
        scale = self.scale.float() * torch.rsqrt(self.variance.float() + EPSILON)  # [D]
        shift = self.shift.float() - self.mean.float() * scale
        return (x * scale[:, None].to(x.dtype) + shift[:, None].to(x.dtype)) * mask[:, None]


class _BatchNorm(torch.autograd.Function):
    """Batch norm of valid frames over all ranks; its gradient in closed form takes half of autograd's operations."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, scale: Tensor, shift: Tensor, mask: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return normed frames, mean and variance [D]; x [B, D, S] is zero where mask [B, 1, S] is false."""
        wide = x.float()
        sums = torch.stack([wide.sum((0, 2)), wide.square().sum((0, 2))])
        context.ranks = sharding.ranks()
        mean, square = (sharding.plain_sum(sums, context.ranks) / count).unbind(0)
        variance = torch.addcmul(square, mean, mean, value=-1).clamp_min_(0)
        inverse = torch.rsqrt(variance + EPSILON)
        factor = scale * inverse
        normed = torch.addcmul((shift - mean * factor)[:, None], wide, factor[:, None]) * mask
        context.save_for_backward(x, mean, inverse, factor, count, mask)
        context.mark_non_differentiable(mean, variance)
        return normed.to(x.dtype), mean, variance

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, scale and shift (Ioffe & Szegedy 2015, section 3)."""
        x, mean, inverse, factor, count, mask = context.saved_tensors
        gradient = gradients[0].float() * mask
        centred = (x.float() - mean[:, None]) * inverse[:, None]
        own = torch.stack([(gradient * centred).sum((0, 2)), gradient.sum((0, 2))])
        by_scale, by_shift = (sharding.plain_sum(own.clone(), context.ranks) / count).unbind(0)
        inner = gradient - torch.addcmul(by_shift[:, None], centred, by_scale[:, None])
        return (inner * factor[:, None] * mask).to(x.dtype), own[0], own[1], None, None


class LogMelBackbone(SpeechBackbone):
    """Log-mel [B, S, 80] to acoustic frames [B, S/4, D]: two strided and several residual convolutions.

    The residual ones are dilated in turn, so that five of them see 1.7 s: a whole word of a slow speaker, for which
    the CTC head may have but one piece.
    """

    feature_kind = "logmel"
    features_per_second = SAMPLE_RATE // HOP
    augments = True
    cached_features = staticmethod(mel_features)
    dilations = (1, 2, 4)

    def __init__(self, width: int, convolutions: int, dropout: float):
        super().__init__()
        self.stem = nn.ModuleList([nn.Conv1d(BANDS, width, 5, 2, 2), nn.Conv1d(width, width, 5, 2, 2)])
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation), nn.ReLU(), drop(dropout),
                nn.Conv1d(width, width, 1),
            )
            for dilation in islice(cycle(self.dilations), convolutions)
        )  # fmt: skip
        self.norms = nn.ModuleList(FrameNorm(width) for _ in range(convolutions))
        self.norm = nn.LayerNorm(width)

    @classmethod
    def example_features(cls, rng: np.random.Generator, length: int, changes: float) -> np.ndarray:
        """Return random frames [length, 80], each held until the speech changes."""
        hold = max(1, round(cls.features_per_second / changes))
        frames = rng.integers(256, size=(-(-length // hold), BANDS), dtype=np.uint8)
        return frames.repeat(hold, 0)[:length]

    def inputs(self, features: Tensor) -> Tensor:
        """Return log-mel frames uint8 [B, S, 80] as floats of about unit variance."""
        return (features.float() - Q_MEAN) / Q_STD

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Return a frame for every four, two strided convolutions apart."""
        for _ in self.stem:
            lengths = (lengths + 1) // 2
        return lengths

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames [B, S/4, D] and their lengths [B]."""
        mask = length_mask(lengths, inputs.shape[1])
        x = (inputs * mask[..., None]).transpose(1, 2)  # [B, 80, S]
        for convolution in self.stem:
            lengths = (lengths + 1) // 2
            x = convolution(x).relu()
            mask = length_mask(lengths, x.shape[2])
            x = x * mask[:, None]
        count = sharding.all_reduce_sum(mask.sum().float()) if self.training else None
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = (x + block(norm(x, mask, count))) * mask[:, None]
        return self.norm(x.transpose(1, 2)), lengths
