"""A Whisper of random weights, small enough for tests, saved as the published ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig, WhisperModel

SETTINGS: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 50,
    "max_target_positions": 8, "vocab_size": 20, "num_mel_bins": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "encoder_layerdrop": 0.1,
}  # fmt: skip


def write_whisper(folder: Path, seed: int = 0) -> Path:
    """Write the model to a folder; a second is all that its table has room for."""
    torch.manual_seed(seed)
    model = WhisperModel(WhisperConfig(**SETTINGS))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    model.save_pretrained(folder)
    return folder
