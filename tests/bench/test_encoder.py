"""`sta bench encoder`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import WhisperConfig

from sta.cli.main import main


@pytest.mark.parametrize("published", [False, True])
def test_recordings_a_second_are_counted(published: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration is enough, as speed does not depend on the weights."""
    WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=20, num_mel_bins=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    ).save_pretrained(tmp_path)  # fmt: skip
    options = ["--backbone", str(tmp_path)] if published else []
    assert main(["bench", "encoder", *options, "--seconds", "0.5", "--batch", "2"]) == 0
    said = re.fullmatch(
        r"([\d.]+) recordings of 0\.5 s a second, 2 at once, float32, threads: \d+\n", capsys.readouterr().out
    )
    assert said is not None
    assert float(said[1]) > 1
