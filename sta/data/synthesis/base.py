"""The interface of a synthesiser: who speaks (`Voice`), how it is said (`Delivery`), and the engine that says it.

One engine a file; `synthesiser(name)` finds it by its module's name, or as `module:Class`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sta.config.variants import find_variant
from sta.errors import VoiceError

Wave = NDArray[np.float32]

LEVEL = 10 ** (-21 / 20)  # root mean square of every speaker's recordings at volume 1: the middle of espeak's voices
PITCH_OCTAVE = 60  # steps of espeak's pitch scale that double the frequency, about


@dataclass(frozen=True)
class Voice:
    """A speaker: an espeak language file ("en-us"), a variant of the vocal tract ("f2"), habitual pitch and rate.

    `pitch` is 0..100 with 50 the variant's own; `rate` is a factor on the words per minute.
    """

    name: str
    accent: str
    variant: str | None = None
    pitch: int = 50
    rate: float = 1.0


@dataclass(frozen=True)
class Delivery:
    """How something is said, relative to the speaker.

    `rate` is a factor, `pitch` an offset on the voice's 0..100, `range` the liveliness of the intonation 0..100 (50 is
    espeak's own), `volume` a gain (1 leaves the level), `pause` extra silence between words in units of 10 ms,
    `effort` how far a raised voice is driven into soft clipping (0 is not at all).
    """

    rate: float = 1.0
    pitch: int = 0
    range: int = 50
    volume: float = 1.0
    pause: int = 0
    effort: float = 0.0


class Synthesiser(ABC):
    """Anything that can speak: the same arguments always give the same samples."""

    @abstractmethod
    def voices(self, accents: Sequence[str]) -> list[Voice]:
        """Return all speakers it has for these accents; raises `VoiceError` for an unknown one."""

    @abstractmethod
    def speak(self, text: str, voice: Voice, delivery: Delivery, words_per_minute: int) -> Wave:
        """Return the text as float32 [T] at 16 kHz in [-1, 1]; raises `VoiceError`."""


def synthesiser(name: str) -> Synthesiser:
    """Return the synthesiser of a name that language cards use.

    Raises:
        RecipeError: there is none of that name.
        VoiceError: it is not installed.
    """
    return find_variant("sta.data.synthesis", name, Synthesiser, "speech.synthesiser")()


def octaves(pitch: float) -> float:
    """Return the factor on a speaker's frequency that espeak makes of an offset on its pitch scale, about."""
    return float(2 ** (pitch / PITCH_OCTAVE))


def require_words(text: str, voice: Voice) -> None:
    """Refuse a text that is blank with a `VoiceError`."""
    if not text.strip():
        raise VoiceError(f"there is no text for the voice {voice.name} to speak; give at least a word.")


def shape_level(wave: Wave, delivery: Delivery) -> Wave:
    """Bring speech to the level of every speaker, clip it softly by the delivery's effort, then apply its gain.

    Speakers of one level make loudness a matter of the delivery alone.
    """
    loudness = math.sqrt(float(np.mean(np.square(wave, dtype=np.float64))))
    wave = (wave * (LEVEL / max(loudness, 1e-6))).astype(np.float32, copy=False)
    if delivery.effort:
        wave = np.tanh((1 + delivery.effort) * wave)
    return np.clip(delivery.volume * wave, -1, 1).astype(np.float32, copy=False)
