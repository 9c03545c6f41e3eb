"""The cascade's recogniser: a tiny Whisper in the published format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from sta.errors import WeightsError
from sta.models.recogniser import SAMPLES_A_POSITION, WINDOW, Recogniser
from tests.release_fixtures import wave

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|ar|>", "<|translate|>", "<|transcribe|>",
           "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper of two layers that knows English and Arabic, with weights by chance."""
    made = tmp_path_factory.mktemp("whisper-tiny")
    letters = {chr(c): n for n, c in enumerate(range(33, 127))}
    tokenizer = WhisperTokenizer(vocab=letters, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    number: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=number["<|endoftext|>"],
        eos_token_id=number["<|endoftext|>"], bos_token_id=number["<|endoftext|>"],
        decoder_start_token_id=number["<|startoftranscript|>"], suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.save_pretrained(made)
    GenerationConfig(
        lang_to_id={"<|en|>": number["<|en|>"], "<|ar|>": number["<|ar|>"]},
        task_to_id={"transcribe": number["<|transcribe|>"], "translate": number["<|translate|>"]},
        no_timestamps_token_id=number["<|notimestamps|>"], is_multilingual=True,
        decoder_start_token_id=number["<|startoftranscript|>"], eos_token_id=number["<|endoftext|>"],
        pad_token_id=number["<|endoftext|>"],
    ).save_pretrained(made)  # fmt: skip
    tokenizer.save_pretrained(made)
    WhisperFeatureExtractor().save_pretrained(made)
    return made


def test_recordings_are_read_in_windows_as_long_as_they_need(folder: Path) -> None:
    recogniser = Recogniser.load(str(folder), torch.device("cpu"))
    said = [wave(0.8, seed=1), wave(1.3, seed=2)]
    texts = recogniser.transcribe(said, "en")
    assert len(texts) == 2
    assert not any("<|" in text for text in texts)
    positions = recogniser.model.model.encoder.embed_positions.num_embeddings
    assert positions == WINDOW * 16_000 // SAMPLES_A_POSITION
    recogniser.transcribe([np.tile(wave(2.0), 9)], "en")
    assert recogniser.model.model.encoder.embed_positions.num_embeddings == 18 * 16_000 // SAMPLES_A_POSITION
    assert recogniser.transcribe(said, "en") == texts, "an earlier window must not change a later one"


def test_languages_that_it_knows(folder: Path) -> None:
    recogniser = Recogniser.load(str(folder), torch.device("cpu"))
    assert [recogniser.reads(code) for code in ("en", "ar", "en-gb", "xx")] == [True, True, True, False]


def test_what_is_no_whisper_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"evaluation.recogniser '.*': transformers cannot load it as Whisper"):
        Recogniser.load(str(tmp_path), torch.device("cpu"))
