"""Piper's files and arguments, with a stand-in for the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sta.config.limits import SAMPLE_RATE
from sta.data.synthesis.base import LEVEL, Delivery
from sta.data.synthesis.piper import Piper
from sta.errors import NoSoundError, VoiceError


@pytest.fixture
def joe(tmp_path: Path) -> Path:
    pytest.importorskip("piper")
    (tmp_path / "joe.onnx").write_bytes(b"stands for a network")
    (tmp_path / "joe.onnx.json").write_text(json.dumps({"num_speakers": 1}))
    return tmp_path


class Tone:
    """Says a tone of a second at its own length, and nothing of a text without words."""

    config = SimpleNamespace(length_scale=2.0, sample_rate=22_050)

    def __init__(self, path: Path) -> None:
        self.path = path

    def synthesize(self, text: str, settings: Any) -> Iterator[Any]:
        assert settings.noise_scale == settings.noise_w_scale == 0
        if text != "...":
            samples = np.arange(round(settings.length_scale / 2 * 22_050)) / 9
            yield SimpleNamespace(audio_float_array=np.sin(samples).astype(np.float32))


def test_it_speaks(joe: Path) -> None:
    piper = Piper(Tone)
    (voice,) = piper.voices([str(joe)])
    assert (voice.name, voice.variant) == ("joe", None)
    wave = piper.speak("a bird", voice, Delivery(rate=0.5, volume=0.5), 165)
    assert len(wave) == pytest.approx(2 * SAMPLE_RATE, rel=0.02)
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.5 * LEVEL, rel=0.02)
    with pytest.raises(NoSoundError):
        piper.speak("...", voice, Delivery(), 165)


def test_a_file_may_hold_many_speakers(joe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (joe / "joe.onnx.json").write_text(json.dumps({"num_speakers": 2}))
    monkeypatch.setenv("STA_MODELS", str(joe.parent))
    voices = Piper().voices([joe.name, str(joe / "joe.onnx")])
    assert [(voice.name, voice.variant) for voice in voices] == 2 * [("joe#0", "0"), ("joe#1", "1")]


@pytest.mark.parametrize("lost", ["joe.onnx", "joe.onnx.json"])
def test_a_voice_that_is_missing(joe: Path, lost: str) -> None:
    (joe / lost).unlink()
    with pytest.raises(VoiceError, match="piper has no voice .*STA_MODELS"):
        Piper().voices([str(joe)])
