"""SVOX Pico, a second engine for six accents: speakers whose sounds espeak does not make, to train on.

It has one speaker per accent. Others are made of her by playing faster or slower than recorded, which shortens or
lengthens the vocal tract, while the engine speaks slower or faster to make up for it. Its intonation cannot be made
livelier or flatter, so a delivery's `range` is not heard. It comes with `pip install ttspico` (Apache-2.0), which
compiles C.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from sta.config.limits import SAMPLE_RATE
from sta.data.synthesis.base import Delivery, Synthesiser, Voice, Wave, finish, octaves, require_words
from sta.errors import VoiceError

ACCENTS = {"en-us": "en-US", "en-gb": "en-GB", "de": "de-DE", "es": "es-ES", "fr-fr": "fr-FR", "it": "it-IT"}
#: At the engine's own rate, on espeak's scale.
WORDS_PER_MINUTE = {"en-us": 160, "en-gb": 157, "de": 164, "es": 132, "fr-fr": 160, "it": 158}
HABITS = (38, 62)  # two speakers of every vocal tract: a lower and a higher voice, on espeak's scale of pitch
TRACTS = (76, 80, 84, 88, 92, 96, 100, 106)  # playing speed in percent: less is a longer vocal tract
DEEPER = 2.6  # pitch goes with this power of the playing speed: longer vocal tracts have deeper voices
RATES, PITCHES = (20, 500), (50, 200)  # percent of its own, what the engine accepts


class Pico(Synthesiser):
    """The `ttspico` package, a fresh engine per utterance, since one keeps its state.

    Raises:
        VoiceError: it is not installed; says how to.
    """

    packages = ("ttspico",)

    def __init__(self) -> None:
        if find_spec("ttspico") is None:
            raise VoiceError("pico is not installed; `pip install ttspico` brings it (it needs a C compiler)")

    def voices(self, accents: Sequence[str]) -> list[Voice]:
        """Return its speakers of these accents."""
        unknown = [a for a in accents if a not in ACCENTS]
        if unknown:
            raise VoiceError(f"pico has no accent {unknown[0]!r}; known are: {', '.join(ACCENTS)}.")
        return [
            Voice(f"pico-{accent}-{tract}{'lh'[habit > 50]}", accent, str(tract), habit)
            for accent in accents
            for tract in TRACTS
            for habit in HABITS
        ]

    def speak(self, text: str, voice: Voice, delivery: Delivery, words_per_minute: int) -> Wave:
        """Say a text; raises `VoiceError` where it cannot."""
        if voice.accent not in ACCENTS or voice.variant is None or voice.variant not in map(str, TRACTS):
            known = ", ".join(v.name for v in self.voices(list(ACCENTS)))
            raise VoiceError(f"pico has no voice {voice.name!r}; known are: {known}.")
        require_words(text, voice)
        speed = int(voice.variant) / 100
        wanted = words_per_minute * voice.rate * delivery.rate / WORDS_PER_MINUTE[voice.accent]
        samples = _synthesise(
            text, ACCENTS[voice.accent],
            rate=round(np.clip(100 * wanted / speed, *RATES)),
            pitch=round(np.clip(100 * speed ** (DEEPER - 1) * octaves(voice.pitch - 50 + delivery.pitch), *PITCHES)),
        )  # fmt: skip
        return finish(samples, round(SAMPLE_RATE * speed), text, voice, delivery)


def _synthesise(text: str, language: str, rate: int, pitch: int) -> Wave:
    """Return float32 [T] at 16 kHz."""
    from ttspico import TtsEngine

    engine = TtsEngine(language)
    engine.rate, engine.pitch = rate, pitch
    return np.frombuffer(engine.speak(text) or b"", np.int16).astype(np.float32) / np.float32(32768)
