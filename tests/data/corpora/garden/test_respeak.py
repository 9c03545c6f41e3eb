"""Recordings spoken anew: pace, two sentences, and an engine that may be missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sta.config.cards import load_language
from sta.data.corpora.base import Utterance
from sta.data.corpora.garden.attributes import BREATH, GardenAttributes
from sta.data.language import FULL_WORLD
from sta.data.rows import Truth
from sta.data.synthesis.espeak import speakers
from sta.errors import VoiceError

SAID = {"head": "red", "wings": "blue", "pose": "flying", "background": "forest"}


@pytest.fixture(scope="module", params=["en", "ar"])
def speaker(request: pytest.FixtureRequest) -> GardenAttributes:
    return GardenAttributes(FULL_WORLD, {request.param: load_language(request.param)}, 1.0, 0.1)


def code_of(speaker: GardenAttributes) -> str:
    (code,) = speaker.cards
    return code


def voices(speaker: GardenAttributes) -> list[str]:
    speech = speaker.cards[code_of(speaker)].speech
    return sorted(voice.name for pool in speakers(speech.voices, speech.test_voices) for voice in pool)


def utterance(speaker: GardenAttributes, voice: str | None = None, mood: str = "neutral") -> Utterance:
    text = speaker.describe(code_of(speaker), Truth("bird", SAID, SAID), np.random.default_rng(0))
    return Utterance(text, voice or voices(speaker)[0], mood, Truth("bird", SAID, SAID))


def spoken(speaker: GardenAttributes, condition: str, seed: int = 0, voice: str | None = None) -> np.ndarray:
    return speaker.respeak(code_of(speaker), condition, utterance(speaker, voice), np.random.default_rng(seed))


def test_pace(speaker: GardenAttributes) -> None:
    slow, plain, fast = (len(spoken(speaker, condition)) for condition in ("slow", "same", "fast"))
    assert slow / plain == pytest.approx(1 / 0.75, rel=0.12)
    assert fast / plain == pytest.approx(1 / 1.3, rel=0.12)


def test_two_sentences_have_a_breath_between(speaker: GardenAttributes) -> None:
    wave = spoken(speaker, "two-sentences")
    silent = np.flatnonzero(np.convolve(np.abs(wave) > 1e-4, np.ones(round(BREATH * 16_000)), "valid") == 0)
    assert len(silent) > 0
    assert 0.2 < silent[0] / len(wave) < 0.8


@pytest.mark.parametrize("condition", ["slow", "fast", "two-sentences"])
def test_the_same_seed_speaks_the_same(speaker: GardenAttributes, condition: str) -> None:
    np.testing.assert_array_equal(spoken(speaker, condition), spoken(speaker, condition))
    assert not np.array_equal(spoken(speaker, condition), spoken(speaker, condition, seed=1))


def test_moods_of_the_same_words_differ(speaker: GardenAttributes) -> None:
    spoken_in = {
        mood: speaker.respeak(code_of(speaker), "same", utterance(speaker, mood=mood), np.random.default_rng(0))
        for mood in ("neutral", "sad", "angry")
    }
    level = {mood: float(np.sqrt(np.mean(wave**2))) for mood, wave in spoken_in.items()}
    assert level["angry"] > 1.3 * level["neutral"] > 1.3**2 * level["sad"]
    assert len(spoken_in["angry"]) < len(spoken_in["neutral"]) < len(spoken_in["sad"])


def test_the_speaker_is_kept(speaker: GardenAttributes) -> None:
    names = voices(speaker)
    one, other = (spoken(speaker, "fast", voice=v) for v in (names[0], names[-1]))
    assert len(one) != len(other) or not np.array_equal(one, other)


def test_an_engine_that_is_missing_is_told(
    speaker: GardenAttributes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = "flite is not installed" if code_of(speaker) == "en" else "it speaks en only"
    with pytest.raises(VoiceError, match=said):
        spoken(speaker, "flite")
