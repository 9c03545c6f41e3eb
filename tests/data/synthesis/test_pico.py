"""Pico's speakers: deterministic, at one level, each with a vocal tract and a delivery that can be heard."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from sta.config.limits import SAMPLE_RATE
from sta.data.synthesis.base import LEVEL, Delivery, Voice
from sta.data.synthesis.pico import TRACTS, Pico
from sta.errors import VoiceError

TEXT = "a small bird with a red head"


@pytest.fixture
def pico() -> Pico:
    pytest.importorskip("ttspico")
    return Pico()


def speaker(accent: str = "en-us", tract: int = 100) -> Voice:
    return Voice(f"pico-{accent}-{tract}", accent, str(tract))


def centroid(wave: np.ndarray) -> float:
    """Mean frequency of the power spectrum, Hz."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    return float((power * np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)).sum() / power.sum())


def test_the_same_words_give_the_same_samples_whatever_came_before(pico: Pico) -> None:
    first = pico.speak(TEXT, speaker(), Delivery(), 190)
    pico.speak("something else", speaker("en-gb"), Delivery(pitch=20), 150)
    again = pico.speak(TEXT, speaker(), Delivery(), 190)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)


def test_every_speaker_is_another_at_the_same_pace_and_level(pico: Pico) -> None:
    voices = pico.voices(["en-us", "en-gb"])
    assert len({v.name for v in voices}) == 4 * len(TRACTS)
    waves = [pico.speak(TEXT, v, Delivery(volume=0.5), 190) for v in voices[: 2 * len(TRACTS)]]
    assert len({w.tobytes() for w in waves}) == len(waves)
    lengths = np.array([len(w) for w in waves]) / SAMPLE_RATE
    assert lengths.max() / lengths.min() < 1.15
    levels = [np.sqrt(np.mean(w**2)) for w in waves]
    np.testing.assert_allclose(levels, 0.5 * LEVEL, rtol=0.02)
    brightness = [centroid(w) for w in waves]
    assert brightness[0] < 0.85 * brightness[-2]


def test_a_delivery_is_heard(pico: Pico) -> None:
    plain = pico.speak(TEXT, speaker(), Delivery(), 190)
    slow = pico.speak(TEXT, speaker(), Delivery(rate=0.5), 190)
    assert 1.6 < len(slow) / len(plain) < 2.4
    assert not np.array_equal(pico.speak(TEXT, speaker(), Delivery(pitch=30), 190), plain)


@pytest.mark.parametrize("accent", ["ar", "en-gb-scotland"])
def test_an_accent_it_lacks_is_named(pico: Pico, accent: str) -> None:
    with pytest.raises(VoiceError, match=f"'{accent}'.*en-us, en-gb"):
        pico.voices([accent])


def test_a_voice_it_lacks_is_named(pico: Pico) -> None:
    with pytest.raises(VoiceError, match="pico-en-us-50.*known are: pico-en-us-76l"):
        pico.speak(TEXT, speaker(tract=50), Delivery(), 190)


def test_blank_text_is_refused(pico: Pico) -> None:
    with pytest.raises(VoiceError, match="no text"):
        pico.speak(" ", speaker(), Delivery(), 190)


def test_where_it_is_missing_the_line_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("sta.data.synthesis.pico.find_spec", lambda name: None if name == "ttspico" else find(name))
    with pytest.raises(VoiceError, match="pip install ttspico"):
        Pico()
