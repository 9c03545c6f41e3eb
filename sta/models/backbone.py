"""Speech backbones of transformers: HuBERT, wav2vec2, WavLM, Whisper's encoder and their relatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sta.config.limits import SAMPLE_RATE
from sta.errors import WeightsError, first_line
from sta.models.layers import length_mask


class Backbone(nn.Module):
    """Waveforms [B, T, 1] to frames [B, S, D]: a learned sum over the backbone's layers, then a projection.

    The weights of the sum follow SUPERB (Yang et al. 2021). A frozen backbone stays in evaluation mode.

    Args:
        width: D.
        description: of `describe`: the backbone's own config, and whether it is frozen and wants its input normalised.
    """

    def __init__(self, width: int, description: dict[str, Any]):
        super().__init__()
        from transformers import AutoConfig, AutoModel

        settings = dict(description["config"])
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = AutoModel.from_config(config)
        self.is_whisper = config.model_type == "whisper"
        self.model = model.encoder if self.is_whisper else model
        self.normalise, self.frozen = description["normalise"], description["frozen"]
        layers = (config.encoder_layers if self.is_whisper else config.num_hidden_layers) + 1
        self.layer_weights = nn.Parameter(torch.zeros(layers))
        self.project = nn.Linear(config.d_model if self.is_whisper else config.hidden_size, width)
        self.norm = nn.LayerNorm(width)
        if not self.is_whisper:
            _PaddedNorm.put_into(self.model.feature_extractor.conv_layers[0])
        if self.frozen:
            self.model.requires_grad_(False)
        self.train(self.training)

    @staticmethod
    def describe(name_or_path: str, frozen: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(the description a `Backbone` is built from, the published weights of its model).

        Raises:
            WeightsError: no such model on disk or on the Hub, or one that is not a speech model.
        """
        from transformers import AutoModel
        from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor

        try:
            model = AutoModel.from_pretrained(name_or_path)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            where = "folder" if Path(name_or_path).exists() else "name"
            raise WeightsError(
                f"encoder.backbone '{name_or_path}': this {where} does not load as a transformers speech model "
                f"({first_line(error)})"
            ) from error
        config = model.config.to_dict()
        speech = config["model_type"] == "whisper" or hasattr(model, "feature_extractor")
        if not speech:
            raise WeightsError(
                f"encoder.backbone '{name_or_path}': a {config['model_type']} model takes no waveform; use a HuBERT, "
                "wav2vec2, WavLM or Whisper model"
            )
        try:
            normalise = bool(getattr(AutoFeatureExtractor.from_pretrained(name_or_path), "do_normalize", True))
        except (OSError, ValueError):
            normalise = True
        part = model.encoder if config["model_type"] == "whisper" else model
        return {"config": config, "normalise": normalise, "frozen": frozen}, part.state_dict()

    @staticmethod
    def outline(name_or_path: str, frozen: bool) -> dict[str, Any]:
        """As the description of `describe`, from the model's configuration alone, for who needs only its size.

        Raises:
            WeightsError: there is none on disk or on the Hub.
        """
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(name_or_path).to_dict()
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"encoder.backbone '{name_or_path}': its configuration is not to be had ({first_line(error)})"
            ) from error
        return {"config": config, "normalise": True, "frozen": frozen}

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Returns frames [B, S, D] and their lengths [B]."""
        wave = samples.squeeze(-1)
        hidden, lengths = self._whisper(wave, lengths) if self.is_whisper else self._waveform(wave, lengths)
        mixed = sum(w * h for w, h in zip(self.layer_weights.softmax(0), hidden, strict=True))
        return self.norm(self.project(mixed)), lengths

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames of recordings that have so many samples: [B] to [B], on any device."""
        if self.is_whisper:
            return (-(-lengths // 320)).clamp(max=self.model.config.max_source_positions)
        frames: Tensor = self.model._get_feat_extract_output_lengths(lengths).to(lengths)
        return frames

    def _waveform(self, wave: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        mask = torch.arange(wave.shape[1], device=wave.device) < lengths[:, None]
        if self.normalise:
            count = lengths[:, None]
            mean = (wave * mask).sum(1, keepdim=True) / count
            variance = ((wave - mean).pow(2) * mask).sum(1, keepdim=True) / count
            wave = (wave - mean) * torch.rsqrt(variance + 1e-7) * mask
        norm = getattr(self.model.feature_extractor.conv_layers[0], "layer_norm", None)
        if isinstance(norm, _PaddedNorm):
            norm.samples = lengths
        hidden = self.model(wave, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        return hidden, self.model._get_feat_extract_output_lengths(lengths).to(lengths)

    def _whisper(self, wave: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        from transformers import WhisperFeatureExtractor

        config = self.model.config
        seconds = config.max_source_positions * 2 // 100
        extract = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds)
        clips = [w[:n].cpu().numpy() for w, n in zip(wave, lengths.tolist(), strict=True)]
        mel = extract(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features.to(wave)
        hidden = self.model(mel, output_hidden_states=True).hidden_states
        valid = (-(-lengths // 320)).clamp(max=config.max_source_positions)
        longest = int(valid.max())
        return tuple(h[:, :longest] for h in hidden), valid


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
