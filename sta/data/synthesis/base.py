"""The interface of a synthesiser: who speaks (`Voice`), how it is said (`Delivery`), and the engine that says it.

One engine a file; `synthesiser(name)` finds it by its module's name, or as `module:Class`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import ClassVar

import numpy as np
import soxr
from numpy.typing import NDArray

from sta.config.limits import SAMPLE_RATE
from sta.config.variants import find_variant
from sta.errors import NoSoundError, VoiceError

Wave = NDArray[np.float32]

ENGINES = "sta.data.synthesis"  # where they lie
LEVEL = 10 ** (-21 / 20)  # root mean square of every speaker's recordings at volume 1: the middle of espeak's voices
PITCH_OCTAVE = 60  # steps of espeak's pitch scale that double the frequency, about
NEURAL_PACE, PACES = 165, (0.5, 2.0)  # a neural voice's own words a minute on espeak's scale; factors that it bears


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
    """Anything that can speak: the same arguments always give the same samples.

    Attributes:
        packages: those that it needs, by their names on the package index.
    """

    packages: ClassVar[tuple[str, ...]] = ()

    def version(self) -> str:
        """Return what changes when its sounds may; raises `VoiceError` where it is not installed."""
        return " ".join(f"{package} {installed(package)}" for package in self.packages)

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
    return find_variant(ENGINES, name, Synthesiser, "speech.synthesiser")()


def installed(package: str) -> str:
    """Return the version of a package; raises `VoiceError`, which says what installs it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise VoiceError(f"{package} is not installed; `pip install {package}` brings it") from None


def octaves(pitch: float) -> float:
    """Return the factor on a speaker's frequency that espeak makes of an offset on its pitch scale, about."""
    return float(2 ** (pitch / PITCH_OCTAVE))


def require_words(text: str, voice: Voice) -> None:
    """Refuse a text that is blank with a `VoiceError`."""
    if not text.strip():
        raise NoSoundError(f"there is no text for the voice {voice.name} to speak; give at least a word.")


def neural_pace(words_per_minute: int, delivery: Delivery) -> float:
    """Return the factor on a neural voice's own speed."""
    return float(np.clip(words_per_minute * delivery.rate / NEURAL_PACE, *PACES))


def finish(wave: Wave, rate: float, text: str, voice: Voice, delivery: Delivery) -> Wave:
    """Bring what an engine said of a text, [T] at `rate`, to 16 kHz and to the level of its delivery.

    Raises:
        NoSoundError: it is silent.
    """
    if not wave.any():
        raise NoSoundError(f"the voice {voice.name} has no sound for the text {text!r}; give words of its language.")
    return shape_level(soxr.resample(wave, rate, SAMPLE_RATE) if rate != SAMPLE_RATE else wave, delivery)


def shape_level(wave: Wave, delivery: Delivery) -> Wave:
    """Bring speech to the level of every speaker, clip it softly by the delivery's effort, then apply its gain.

    Speakers of one level make loudness a matter of the delivery alone.
    """
    loudness = math.sqrt(float(np.mean(np.square(wave, dtype=np.float64))))
    wave = (wave * (LEVEL / max(loudness, 1e-6))).astype(np.float32, copy=False)
    if delivery.effort:
        wave = np.tanh((1 + delivery.effort) * wave)
    return np.clip(delivery.volume * wave, -1, 1).astype(np.float32, copy=False)
