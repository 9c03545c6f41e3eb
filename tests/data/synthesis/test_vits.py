"""A VITS of transformers, tiny and untrained: the same text gives the same samples, at the pace and level asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sta.data.synthesis.base import LEVEL, Delivery, Wave
from sta.data.synthesis.vits import Vits
from sta.errors import NoSoundError, VoiceError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    folder = tmp_path_factory.mktemp("mms-tts-tiny")
    (folder / "letters.json").write_text(json.dumps({c: n for n, c in enumerate("_ abcdefghijklm")}))
    VitsTokenizer(str(folder / "letters.json"), pad_token="_", unk_token="_", phonemize=False).save_pretrained(folder)
    torch.manual_seed(0)
    config = VitsConfig(
        vocab_size=15, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8, flow_size=8,
        spectrogram_bins=9, num_speakers=2, speaker_embedding_size=4, upsample_initial_channel=8,
        upsample_rates=[8, 8], upsample_kernel_sizes=[16, 16], resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]], prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1, duration_predictor_flow_bins=4, duration_predictor_num_flows=2,
        duration_predictor_filter_channels=8, wavenet_dropout=0.0, sampling_rate=16_000,
    )  # fmt: skip
    VitsModel(config).save_pretrained(folder)
    return folder


def said(model: Path, text: str = "a black cab", speaker: int = 0, **delivery: float) -> Wave:
    vits = Vits()
    return vits.speak(text, vits.voices([str(model)])[speaker], Delivery(**delivery), 165)  # type: ignore[arg-type]


def test_the_same_text_gives_the_same_samples(model: Path) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = said(model)
    assert torch.equal(torch.random.get_rng_state(), state), "training draws as if nobody had spoken"
    said(model, "fade")
    np.testing.assert_array_equal(first, said(model))
    assert not np.array_equal(first, said(model, speaker=1))


def test_pace_and_level(model: Path) -> None:
    slow, own = said(model, rate=0.5), said(model, volume=0.5)
    assert len(slow) > 1.3 * len(own)
    assert np.sqrt(np.mean(own**2)) == pytest.approx(0.5 * LEVEL, rel=0.03)


def test_voices_are_the_speakers_of_each_model(model: Path) -> None:
    voices = Vits().voices([str(model)])
    assert [(voice.name, voice.accent) for voice in voices] == [(f"{model.name}#{n}", str(model)) for n in range(2)]


def test_what_cannot_be_spoken(model: Path, tmp_path: Path) -> None:
    for text in (" ", "ЖЖЖ"):
        with pytest.raises(NoSoundError):
            said(model, text)
    with pytest.raises(VoiceError, match=r"vits has no voice '.*none' \(.*STA_MODELS"):
        Vits().voices([str(tmp_path / "none")])
