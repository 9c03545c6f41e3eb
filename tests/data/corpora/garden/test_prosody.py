"""Moods: only in the delivery, kept apart by jitter, and heard across speakers nobody has heard before."""

from __future__ import annotations

import numpy as np
import pytest

from sta.data.audio import log_mel
from sta.data.corpora.garden.prosody import JITTER, PROSODY, delivery
from sta.data.corpora.garden.world import MOODS
from sta.data.synthesis.base import Voice
from sta.data.synthesis.espeak import Espeak, speakers

TEXTS = ("This bird has a red head and blue wings.", "A pink flower with a white centre in the forest.")


def test_every_mood_has_a_prosody() -> None:
    assert tuple(PROSODY) == MOODS


@pytest.mark.parametrize("mood", MOODS)
def test_jitter_stays_near_and_repeats(mood: str) -> None:
    draws = [delivery(mood, np.random.default_rng(seed)) for seed in range(200)]
    mean = PROSODY[mood]
    assert draws == [delivery(mood, np.random.default_rng(seed)) for seed in range(200)]
    for cue in ("rate", "volume"):
        ratios = np.array([getattr(d, cue) for d in draws]) / getattr(mean, cue)
        assert 1 - JITTER <= ratios.min() < ratios.max() <= 1 + JITTER
    assert all(abs(d.pitch - mean.pitch) <= 2 and abs(d.range - mean.range) <= 4 for d in draws)
    assert all(d.volume <= 1 for d in draws)


def test_unknown_mood() -> None:
    with pytest.raises(KeyError):
        delivery("bored", np.random.default_rng(0))


def features(text: str, voice: Voice, mood: str, rng: np.random.Generator) -> list[float]:
    """Level, rate and brightness, as any listener has them without knowing the speaker."""
    wave = Espeak().speak(text, voice, delivery(mood, rng), 165)
    frames = log_mel(wave).astype(np.float32) / 12
    return [np.log(wave.std()), np.log(len(text) / len(wave)), frames.max(), frames[:, 50:].mean() - frames.mean()]


def test_moods_are_heard_in_unseen_speakers() -> None:
    """Linear discriminant over four plain features; an encoder that also hears pitch has an easier task."""
    rng = np.random.default_rng(0)
    train, test = speakers(["en-us", "en-gb"], ["en-029"])
    known, unknown = (
        np.array([[features(t, v, m, rng) for v in voices for t in TEXTS] for m in MOODS])  # [moods, clips, 4]
        for voices in (train[::2], test)
    )
    means = known.mean(axis=1)  # [moods, 4]
    within = np.cov((known - means[:, None]).reshape(-1, 4).T)
    gap = unknown[:, :, None] - means  # [moods, clips, moods, 4]
    nearest = np.einsum("mcki,ij,mckj->mck", gap, np.linalg.inv(within), gap).argmin(axis=2)
    assert (nearest == np.arange(len(MOODS))[:, None]).mean() > 0.95
