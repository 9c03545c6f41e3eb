"""Kokoro's letters, voices and failures, with a stand-in network on a folder of two voices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sta.config.limits import SAMPLE_RATE
from sta.data.synthesis.base import LEVEL, Delivery, Voice
from sta.data.synthesis.espeak import phonemes
from sta.data.synthesis.kokoro import LONGEST, RATE, Kokoro, letters
from sta.errors import NoSoundError, VoiceError


class Network:
    """Says a tone of 50 ms a letter at speed 1, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[dict[str, np.ndarray]] = []

    def run(self, outputs: Any, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.given.append(given)
        samples = RATE / 20 * (given["tokens"].shape[1] - 2) / given["speed"][0]
        return [np.sin(np.arange(round(samples)) / 9).astype(np.float32)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "voices").mkdir()
    (tmp_path / "kokoro.onnx").write_bytes(b"stands for a network")
    (tmp_path / "vocab.json").write_text(json.dumps({"vocab": {c: n for n, c in enumerate("bɜdˈ ɹə", 1)}}))
    for name in ("af_ann", "am_bob", "ef_eva", "jf_jun"):
        np.full((LONGEST + 1, 4), np.arange(LONGEST + 1)[:, None], np.float32).tofile(tmp_path / f"voices/{name}.bin")
    return tmp_path


@pytest.fixture
def kokoro(folder: Path) -> Kokoro:
    pytest.importorskip("onnxruntime")
    return Kokoro(folder, Network())


ANN = Voice("af_ann", "en-us")


def test_the_network_gets_letters_style_and_speed(kokoro: Kokoro) -> None:
    wave = kokoro.speak("a bird", ANN, Delivery(rate=0.5, volume=0.5), 165)
    (given,) = kokoro.network.given
    count = given["tokens"].shape[1] - 2
    assert given["tokens"][0].tolist() == [0, 7, 5, 4, 1, 2, 6, 3, 0][:1] + given["tokens"][0, 1:-1].tolist() + [0]
    assert {*"bɜd"} <= {"bɜdˈ ɹə"[i - 1] for i in given["tokens"][0, 1:-1]}
    assert given["style"].tolist() == [[count] * 4]
    assert given["speed"] == pytest.approx(0.5)
    assert wave.dtype == np.float32
    assert len(wave) == pytest.approx(0.1 * count * SAMPLE_RATE, rel=0.05)
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.5 * LEVEL, rel=0.02)


def test_voices_are_found_by_accent_or_by_name(kokoro: Kokoro) -> None:
    assert [voice.name for voice in kokoro.voices(["en-us"])] == ["af_ann", "am_bob"]
    assert kokoro.voices(["es", "am_bob"]) == [Voice("am_bob", "en-us"), Voice("ef_eva", "es")]
    with pytest.raises(VoiceError, match="no accent or voice 'ja'; known are: en-us,.*pt-br, af_ann, am_bob"):
        kokoro.voices(["ja"])


@pytest.mark.parametrize(
    ("text", "accent", "heard"),
    [("church boat", "en-us", "ʧˈɜɹʧ bˈOt"), ("boat", "en-gb", "bˈQt"), ("coche", "es", "kˈoʧe")],
)
def test_letters_are_those_of_its_training(text: str, accent: str, heard: str) -> None:
    (clause,) = phonemes(text, accent)
    assert letters(clause, accent) == heard


def test_phonemes_come_clause_by_clause() -> None:
    assert len(phonemes("one bird, two birds", "en-us")) == 2
    assert phonemes("...", "en-us") == []


def test_nothing_to_say(kokoro: Kokoro) -> None:
    for text in (" ", "..."):
        with pytest.raises(NoSoundError):
            kokoro.speak(text, ANN, Delivery(), 165)


def test_where_weights_are_missing(tmp_path: Path, kokoro: Kokoro) -> None:
    with pytest.raises(VoiceError, match="voices is not there; put kokoro.onnx, .* hexgrad/Kokoro-82M .*STA_MODELS"):
        Kokoro(tmp_path / "none").voices(["en-us"])
    before = kokoro.version()
    (kokoro.folder / "kokoro.onnx").write_bytes(b"other")
    assert kokoro.version() != before
