"""Log-mel features and convolutions that are trained here: the backbone of `encoder.backbone: null`."""

from __future__ import annotations

from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor, nn

from sta.data.audio import BANDS, HOP, Q_MEAN, Q_STD, SAMPLE_RATE, mel_features
from sta.distributed import sharding
from sta.models.backbones.base import SpeechBackbone
from sta.models.layers import drop, length_mask


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

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, D, S], zero in the padding; mask [B, S]. The padding stays zero."""
        mean, variance = self._measure(x, mask) if self.training else (self.mean, self.variance)
        scale = self.scale.float() * torch.rsqrt(variance.float() + 1e-5)  # [D]
        shift = self.shift.float() - mean.float() * scale
        return (x * scale[:, None].to(x.dtype) + shift[:, None].to(x.dtype)) * mask[:, None]

    def _measure(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [D] of the batch; the running ones follow."""
        valid = x.float() * mask[:, None]
        moments = torch.stack([valid.sum((0, 2)), valid.square().sum((0, 2)), mask.sum().expand(x.shape[1]).float()])
        total, squares, count = sharding.all_reduce_sum(moments)
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            for running, now in ((self.mean, mean), (self.variance, variance)):
                running.lerp_(now.to(running.dtype), self.momentum)
        return mean, variance


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

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames [B, S/4, D] and their lengths [B]."""
        mask = length_mask(lengths, inputs.shape[1])
        x = (inputs * mask[..., None]).transpose(1, 2)  # [B, 80, S]
        for convolution in self.stem:
            lengths = (lengths + 1) // 2
            x = convolution(x).relu()
            mask = length_mask(lengths, x.shape[2])
            x = x * mask[:, None]
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = (x + block(norm(x, mask))) * mask[:, None]
        return self.norm(x.transpose(1, 2)), lengths
