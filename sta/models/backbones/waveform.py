"""Models of transformers that take waveforms: wav2vec 2.0 (Baevski et al. 2020), HuBERT and their relatives.

Each is a stack of strided convolutions, the feature extractor, below a transformer. Padding is kept out of all of it,
so that a recording's frames are those that it has alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sta.models.backbones.pretrained import PretrainedBackbone
from sta.models.layers import length_mask
from sta.private import first_convolution, transformer


class WaveformBackbone(PretrainedBackbone):
    """A waveform model. Of SEW, which squeezes two frames into one, the squeezed frames are taken."""

    model_types = (
        *("data2vec-audio", "hubert", "sew", "sew-d", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer"),
        "wavlm",
    )
    frames: Tensor

    def adapt_model(self) -> None:
        """Let norms and convolutions over time see the frames of a recording only."""
        _PaddedNorm.put_into(first_convolution(self.model))
        for module in transformer(self.model).modules():
            if isinstance(module, nn.Conv1d) and module.padding != (0,):
                module.register_forward_pre_hook(self._clear_padding)

    def hidden_states(self, wave: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the states of all layers [B, S, C] and their lengths [B]."""
        config = self.model.config
        squeeze = getattr(config, "squeeze_factor", 1)
        if self.normalise:
            wave = _normalised(wave, lengths)
        norm = getattr(first_convolution(self.model), "layer_norm", None)
        if isinstance(norm, _PaddedNorm):
            norm.samples = lengths
        layers = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        frames = lengths
        for kernel, stride in layers:
            frames = (frames - kernel) // stride + 1
        self.frames = covered = frames // squeeze * squeeze
        for kernel, stride in reversed(layers):
            covered = (covered - 1) * stride + kernel
        mask = length_mask(covered, wave.shape[1]).long()
        return self.model(wave, attention_mask=mask, output_hidden_states=True).hidden_states, self.frames // squeeze

    def _clear_padding(self, convolution: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """Before a convolution over frames [B, C, S]: transformers clears the padding before the first of them only."""
        return inputs[0] * length_mask(self.frames, inputs[0].shape[-1])[:, None]


def _normalised(wave: Tensor, lengths: Tensor) -> Tensor:
    """Return waveforms [B, T] with mean 0 and variance 1, zero in the padding."""
    mask, count = length_mask(lengths, wave.shape[1]), lengths[:, None]
    mean = wave.sum(1, keepdim=True) / count
    variance = ((wave - mean).pow(2) * mask).sum(1, keepdim=True) / count
    return (wave - mean) * torch.rsqrt(variance + 1e-7) * mask


class _PaddedNorm(nn.GroupNorm):
    """The norm over time after the first convolution of the base models, for recordings that are padded to a batch.

    Each channel is normalised by its mean and deviation over the frames that are a recording's own, so that its frames
    are those that it has alone. Names and values of the weights are as published.

    Attributes:
        samples: [B], those that each recording of the next forward pass has.
    """

    samples: Tensor

    def __init__(self, norm: nn.GroupNorm, kernel: int, stride: int):
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.kernel, self.stride = kernel, stride

    @staticmethod
    def put_into(layer: Any) -> None:
        """Put one in the place of the norm of a convolution, where that is one over time; the large models' is not."""
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            layer.layer_norm = _PaddedNorm(norm, layer.conv.kernel_size[0], layer.conv.stride[0])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, S], the largest tensor of the network, of which autograd keeps one copy."""
        frames = (self.samples - self.kernel) // self.stride + 1
        own, count = x * length_mask(frames, x.shape[-1])[:, None], frames[:, None, None]
        mean = own.sum(-1, keepdim=True, dtype=torch.float) / count
        square = torch.linalg.vector_norm(own, dim=-1, keepdim=True, dtype=torch.float).square() / count
        scale = self.weight[:, None] * torch.rsqrt((square - mean.square()).clamp_min(0) + self.eps)
        return torch.addcmul(self.bias[:, None] - mean * scale, x, scale).to(x.dtype)
