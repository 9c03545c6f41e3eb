"""What is used of transformers beyond its documented interface; seen in 5.24.0, each with a test of its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def outside_deepspeed() -> Iterator[None]:
    """Let transformers build and load whole models.

    Under ZeRO-3 accelerate keeps an `HfDeepSpeedConfig` alive. Where transformers finds one, it partitions a parameter
    as soon as it is made, and a weight norm is given an empty one. DeepSpeed partitions the whole network later anyway.
    """
    from transformers.integrations import deepspeed

    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def first_convolution(model: Any) -> Any:
    """Return the first layer of a waveform model's feature extractor: `conv`, mostly with a `layer_norm`."""
    return model.feature_extractor.conv_layers[0]


def transformer(model: Any) -> nn.Module:
    """Return the part of a waveform model that comes after its feature extractor."""
    part: nn.Module = model.encoder
    return part


def whisper_parts(encoder: Any) -> tuple[nn.Module, nn.Module, nn.Embedding, nn.ModuleList, nn.Module]:
    """Return of Whisper's encoder the two convolutions, the table of positions, the layers and the last norm.

    A layer is called with states [B, S, C] and a mask [B, 1, 1, S], True where valid, and returns states.
    """
    return encoder.conv1, encoder.conv2, encoder.embed_positions, encoder.layers, encoder.layer_norm
