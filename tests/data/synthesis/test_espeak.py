"""Synthesis: the same arguments give the same samples, whatever was said before and in whichever process."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from sta.config.limits import SAMPLE_RATE
from sta.data.audio import log_mel
from sta.data.synthesis.base import LEVEL, Delivery, Voice, synthesiser
from sta.data.synthesis.espeak import TEST_VARIANTS, TRAIN_VARIANTS, Espeak, speakers, variants
from sta.errors import RecipeError, VoiceError

TEXT = "A small bird with a red head is flying."
ARABIC = "طَائِرٌ صَغِيرٌ لَهُ رَأْسٌ أَحْمَرُ وَجَنَاحَانِ أَزْرَقَانِ"
# f2 has breath noise and roughness, m3 pitch flutter, klatt3 another wave generator.
VOICES = [Voice("f2", "en-us", "f2", 60, 1.02), Voice("m3", "en-gb", "m3"), Voice("k", "ar", "klatt3", 40, 0.95)]


def speak(text: str = TEXT, voice: Voice = VOICES[1], words_per_minute: int = 165, **delivery: float) -> np.ndarray:
    return Espeak().speak(text, voice, Delivery(**delivery), words_per_minute)  # type: ignore[arg-type]


def digest(voice: Voice) -> str:
    return hashlib.sha256(speak(voice=voice).tobytes()).hexdigest()


def seconds(wave: np.ndarray) -> float:
    return len(wave) / SAMPLE_RATE


@pytest.mark.parametrize("voice", VOICES, ids=lambda v: v.name)
def test_same_samples_after_other_utterances(voice: Voice) -> None:
    first = speak(voice=voice)
    for other in VOICES:
        speak("Something else was said in between", other, rate=1.3, pitch=20)
    np.testing.assert_array_equal(first, speak(voice=voice))


def test_same_samples_in_a_fresh_process() -> None:
    code = "from tests.data.synthesis.test_espeak import *; print(*[digest(v) for v in VOICES])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [digest(v) for v in VOICES]


def test_same_samples_after_a_fork() -> None:
    here = [digest(v) for v in VOICES]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(digest, VOICES) == here


def test_waveform_is_what_it_says() -> None:
    wave = speak()
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert 1 < seconds(wave) < 5
    assert 0.2 < np.abs(wave).max() <= 1
    assert log_mel(wave).max() > 120


def test_silence_at_the_ends_is_short() -> None:
    heard = np.flatnonzero(np.abs(speak()) > 1e-3)
    assert heard[0] <= 0.08 * SAMPLE_RATE
    assert len(speak()) - heard[-1] <= 0.08 * SAMPLE_RATE


def test_louder_is_louder() -> None:
    levels = [speak(volume=v).std() for v in (0.2, 0.5, 1.0)]
    np.testing.assert_allclose(np.array(levels) / levels[-1], [0.2, 0.5, 1.0], rtol=1e-3)
    assert speak(effort=1.0).std() > levels[-1]


def test_every_speaker_is_as_loud_as_the_others() -> None:
    waves = [speak(voice=voice, volume=0.5) for voice in VOICES]
    np.testing.assert_allclose([np.sqrt(np.mean(w**2)) for w in waves], 0.5 * LEVEL, rtol=0.02)


def test_faster_is_shorter() -> None:
    lengths = [seconds(speak(rate=r)) for r in (0.7, 1.0, 1.35)]
    assert all(slow > 1.15 * fast for slow, fast in pairwise(lengths))


def test_pauses_are_longer() -> None:
    assert seconds(speak(pause=10)) > seconds(speak()) + 0.2


def test_accent_variant_and_pitch_are_heard() -> None:
    waves = [speak(voice=Voice("v", *a)) for a in (("en-us", "m1"), ("en-gb-scotland", "m1"), ("en-us", "f1"))]
    waves += [speak(voice=Voice("v", "en-us", "m1", 70)), speak(voice=Voice("v", "en-us"))]
    assert len({w.tobytes() for w in waves}) == len(waves)


def test_arabic_with_vowel_signs() -> None:
    wave = speak(ARABIC, Voice("ar", "ar", "m1"))
    assert 2 < seconds(wave) < 8
    bare = speak("طائر صغير له رأس أحمر وجناحان أزرقان", Voice("ar", "ar", "m1"))
    assert len(bare) != len(wave)


@pytest.mark.parametrize(
    ("text", "voice", "words"),
    [
        (TEXT, Voice("v", "xx-yy", "m1"), "'xx-yy'; known are: .*en-us"),
        (TEXT, Voice("v", "en-us", "m99"), "'m99' .* known are: .*klatt"),
        ("  \n", VOICES[0], "no text"),
        ("a\0b", VOICES[0], "NUL"),
        ("\u200b", VOICES[0], "no sound"),
    ],
)
def test_what_cannot_be_spoken(text: str, voice: Voice, words: str) -> None:
    with pytest.raises(VoiceError, match=words):
        speak(text, voice)


def test_synthesisers() -> None:
    assert isinstance(synthesiser("espeak"), Espeak)
    with pytest.raises(
        RecipeError, match=r"'festival' \(known: espeak, flite, kokoro, pico, piper, vits, or module:Class"
    ):
        synthesiser("festival")


def test_lists_of_variants_are_in_the_wheel_and_disjoint() -> None:
    assert set(TRAIN_VARIANTS) | set(TEST_VARIANTS) <= set(variants())
    assert not set(TRAIN_VARIANTS) & set(TEST_VARIANTS)
    assert len(set(TRAIN_VARIANTS)) == len(TRAIN_VARIANTS) >= 23


def test_speakers() -> None:
    train, test = speakers(["en-us", "en-gb"], ["en-029"])
    assert len(train) == 2 * len(TRAIN_VARIANTS)
    assert {v.accent for v in test} == {"en-029"}
    assert not {v.variant for v in train} & {v.variant for v in test}
    assert speakers(["en-us", "en-gb"], ["en-029"]) == (train, test)
    assert len({v.name for v in train + test}) == len(train) + len(test)
    assert all(25 <= v.pitch <= 75 and 0.92 <= v.rate <= 1.08 for v in train + test)
    assert {v.accent for v in speakers(["ar"], [])[1]} == {"ar"}
    with pytest.raises(VoiceError, match="klingon"):
        speakers(["klingon"], [])


@pytest.mark.parametrize("variant", [*TRAIN_VARIANTS, *TEST_VARIANTS])
def test_every_speaker_says_the_same_again(variant: str) -> None:
    voice = Voice("v", "en-us", variant)
    np.testing.assert_array_equal(speak("red", voice), speak("red", voice))
