"""Piper (https://github.com/OHF-Voice/piper1-gpl): a small VITS per voice, four times faster than real time.

An accent is a voice: a file `NAME.onnx` with its `NAME.onnx.json`, a folder that holds one, or such a folder's name in
the folder of published weights (`rhasspy/joe`). It comes with `pip install piper-tts` (GPL-3.0-or-later), which brings
its own espeak. The noise that varies a voice is left out, since it cannot be seeded; pitch is the voice's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sta.config.published import MODELS, locate
from sta.data.audio import trim_silence
from sta.data.synthesis._onnx import session
from sta.data.synthesis.base import Delivery, Synthesiser, Voice, Wave, finish, installed, neural_pace, require_words
from sta.errors import VoiceError


class Piper(Synthesiser):
    """The `piper-tts` package.

    Args:
        load: gives the `PiperVoice` of a file.
    """

    packages = ("piper-tts",)

    def __init__(self, load: Callable[[Path], Any] | None = None) -> None:
        self.load = load or _loaded

    def voices(self, accents: Sequence[str]) -> list[Voice]:
        """Return the speakers in each voice's file; `accent` is that file, `variant` their number in it."""
        installed("piper-tts")
        return [voice for accent in accents for voice in _speakers(model_file(accent))]

    def speak(self, text: str, voice: Voice, delivery: Delivery, words_per_minute: int) -> Wave:
        """Say a text; raises `VoiceError` where it cannot."""
        installed("piper-tts")
        require_words(text, voice)
        from piper import SynthesisConfig

        engine, speaker = self.load(model_file(voice.accent)), None if voice.variant is None else int(voice.variant)
        length = engine.config.length_scale / neural_pace(words_per_minute, delivery)
        settings = SynthesisConfig(speaker, length_scale=length, noise_scale=0.0, noise_w_scale=0.0)
        waves = [np.zeros(0, np.float32), *(c.audio_float_array for c in engine.synthesize(text, settings))]
        return finish(trim_silence(np.concatenate(waves)), engine.config.sample_rate, text, voice, delivery)


def model_file(name: str) -> Path:
    """Return the network of a voice.

    Raises:
        VoiceError: there is none, or no one.
    """
    place = Path(locate(name))
    found = [place] if place.suffix == ".onnx" else sorted(place.glob("*.onnx"))
    if len(found) != 1 or not found[0].with_suffix(".onnx.json").is_file():
        raise VoiceError(
            f"piper has no voice {name!r}; give NAME.onnx with NAME.onnx.json beside it, a folder of the two, or the "
            f"name of such a folder in the folder that {MODELS} names"
        )
    return found[0]


def _speakers(path: Path) -> list[Voice]:
    count = json.loads(path.with_suffix(".onnx.json").read_text(encoding="utf-8")).get("num_speakers", 1)
    if count == 1:
        return [Voice(path.stem, str(path))]
    return [Voice(f"{path.stem}#{number}", str(path), str(number)) for number in range(count)]


@lru_cache(maxsize=8)
def _loaded(path: Path) -> Any:
    from piper import PiperVoice
    from piper.config import PiperConfig

    config = json.loads(path.with_suffix(".onnx.json").read_text(encoding="utf-8"))
    return PiperVoice(session(path), PiperConfig.from_dict(config))
