"""Mood as prosody, and who speaks: how a Garden caption is said, never which words.

The speaker's own pitch and level are unknown to the listener, so moods differ in several cues at once: loudness,
rate, height and liveliness of the intonation, each far enough apart to hold across speakers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sta.config.cards import LanguageCard
from sta.data.synthesis.base import Delivery, Voice, synthesiser
from sta.data.synthesis.espeak import speakers
from sta.errors import VoiceError

#: Moods before jitter; the order of loudness is angry, happy, neutral, fearful, sad.
PROSODY = {
    "neutral": Delivery(rate=0.95, pitch=-2, range=40, volume=0.42),
    "happy": Delivery(rate=1.12, pitch=22, range=95, volume=0.66),
    "sad": Delivery(rate=0.72, pitch=-14, range=10, volume=0.18),
    "angry": Delivery(rate=1.2, pitch=-8, range=60, volume=1.0, effort=1.0),
    "fearful": Delivery(rate=1.35, pitch=26, range=15, volume=0.27),
}
JITTER = 0.04


def delivery(mood: str, rng: np.random.Generator) -> Delivery:
    """Draw how `mood` sounds this time: each cue within 4 % of the mood's own, independently."""
    mean = PROSODY[mood]
    rate, pitch, liveliness, volume = 1 + JITTER * rng.uniform(-1, 1, 4)
    return Delivery(
        rate=mean.rate * rate,
        # The offset is on a scale of 100 that starts at the voice's base, so its jitter is 4 % of 50.
        pitch=round(mean.pitch + 50 * (pitch - 1)),
        range=min(99, round(mean.range * liveliness)),
        volume=min(1.0, mean.volume * volume),
        effort=mean.effort,
    )


def speak(
    card: LanguageCard, text: str, mood: str, seed: int, new_voice: bool, tempo: float = 1.0, others: float = 0.0,
    name: str | None = None,
) -> tuple[np.ndarray, str]:  # fmt: skip
    """Say `text` in a mood, in a voice drawn by `seed` from the training or the test speakers, or of a `name`.

    `others` is the chance of one of the card's other engines, if it names any. Returns the waveform, float32 [T] at
    16 kHz, and the speaker's name.
    """
    rng = np.random.default_rng(seed)
    by_other = bool(card.speech.other_engines) and np.random.default_rng([seed, 1]).random() < others
    pool = other_speakers(card) if by_other else _speakers(card)[new_voice]
    engine, voice = _find_speaker(card, name) if name else pool[int(rng.integers(len(pool)))]
    pace = round(card.speech.words_per_minute * tempo)
    return synthesiser(engine).speak(text, voice, delivery(mood, rng), pace), voice.name


def _speakers(card: LanguageCard) -> tuple[list[tuple[str, Voice]], list[tuple[str, Voice]]]:
    """Return the training and test speakers of the card's own engine."""
    train, test = _named(tuple(card.speech.voices), tuple(card.speech.test_voices))
    return [(card.speech.synthesiser, v) for v in train], [(card.speech.synthesiser, v) for v in test]


def _find_speaker(card: LanguageCard, name: str) -> tuple[str, Voice]:
    known = {voice.name: (engine, voice) for pool in _speakers(card) for engine, voice in pool}
    if name not in known:
        raise VoiceError(
            f"voice '{name}' does not speak {card.code}; {len(known)} do, such as {', '.join(list(known)[:5])}: an "
            "accent of the card (speech.voices, speech.test_voices), + and a variant of espeak"
        )
    return known[name]


def other_speakers(card: LanguageCard) -> list[tuple[str, Voice]]:
    """Return the training speakers of the card's other engines, with the engine of each."""
    return [(e, v) for e, accents in card.speech.other_engines.items() for v in synthesiser(e).voices(accents)]


@lru_cache
def _named(voices: tuple[str, ...], test_voices: tuple[str, ...]) -> tuple[list[Voice], list[Voice]]:
    return speakers(voices, test_voices)
