"""Kokoro-82M (Apache-2.0; https://hf.co/hexgrad/Kokoro-82M): voices near to people's, at about real time on one core.

The weights are a folder of `kokoro.onnx`, `vocab.json` (letter of the IPA -> id) and `voices/NAME.bin` (float32
[510, 256]). It reads the sounds that espeak-ng finds in a text. Pitch and its range are the voice's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sta.config.published import MODELS, locate
from sta.data.audio import trim_silence
from sta.data.synthesis._onnx import session
from sta.data.synthesis.base import Delivery, Synthesiser, Voice, Wave, finish, installed, neural_pace, require_words
from sta.data.synthesis.espeak import phonemes
from sta.errors import VoiceError

NAME = "hexgrad/Kokoro-82M"
RATE = 24_000
LONGEST = 509  # letters of a clause
#: Accent of espeak -> the letter that its voices' names begin with.
ACCENTS = {"en-us": "a", "en-gb": "b", "es": "e", "fr-fr": "f", "hi": "h", "it": "i", "pt-br": "p"}
#: espeak's letters -> the one letter that Kokoro was trained with.
LETTERS = {
    "a^ɪ": "I", "a^ʊ": "W", "e^ɪ": "A", "o^ʊ": "O", "ə^ʊ": "Q", "ɔ^ɪ": "Y",
    "d^ʒ": "ʤ", "t^ʃ": "ʧ", "t^s": "ʦ", "d^z": "ʣ", "^": "", "-": "",
}  # fmt: skip
ENGLISH = {"ə^l": "ᵊl", "ɚ": "əɹ", "r": "ɹ", "x": "k", "ç": "k", "ɐ": "ə", "ʔ": "t", "ʲ": "", "\u0303": ""}
AMERICAN = {"ɜːɹ": "ɜɹ", "ɜː": "ɜɹ", "ɾ": "T", "ɪə": "iə", "ː": ""}
BRITISH = {"e^ə": "ɛː", "iə": "ɪə"}


class Kokoro(Synthesiser):
    """Kokoro by onnxruntime.

    Args:
        folder: of the weights; None: `hexgrad/Kokoro-82M`, in a folder of the user's.
        network: what runs in the place of `kokoro.onnx`.
    """

    packages = ("onnxruntime", "espeakng-loader")

    def __init__(self, folder: Path | None = None, network: Any = None) -> None:
        self.folder, self.network = folder or Path(locate(NAME)), network

    def version(self) -> str:
        """Return the versions of what it needs, and the size of its network."""
        return f"{super().version()} {self._file('kokoro.onnx').stat().st_size}"

    def voices(self, accents: Sequence[str]) -> list[Voice]:
        """Return its speakers of each accent, and each voice that is named itself, such as `af_heart`."""
        accent_of = {first: accent for accent, first in ACCENTS.items()}
        names = [path.stem for path in sorted(self._file("voices").glob("*.bin")) if path.stem[0] in accent_of]
        if unknown := [accent for accent in accents if accent not in (*ACCENTS, *names)]:
            raise VoiceError(
                f"kokoro has no accent or voice {unknown[0]!r}; known are: {', '.join((*ACCENTS, *names))}."
            )
        wanted = {ACCENTS.get(accent, accent) for accent in accents}
        return [Voice(name, accent_of[name[0]]) for name in names if wanted & {name, name[0]}]

    def speak(self, text: str, voice: Voice, delivery: Delivery, words_per_minute: int) -> Wave:
        """Say a text; raises `VoiceError` where it cannot."""
        require_words(text, voice)
        network = self.network or session(self._file("kokoro.onnx"))
        vocabulary = json.loads(self._file("vocab.json").read_text(encoding="utf-8"))["vocab"]
        styles = np.fromfile(self._file(f"voices/{voice.name}.bin"), np.float32).reshape(LONGEST + 1, -1)
        pace = np.array([neural_pace(words_per_minute, delivery)], np.float32)
        waves = [np.zeros(0, np.float32)]
        for clause in phonemes(text, voice.accent):
            ids = [vocabulary[c] for c in letters(clause, voice.accent) if c in vocabulary][:LONGEST]
            given = {"tokens": np.array([[0, *ids, 0]]), "style": styles[len(ids)][None], "speed": pace}
            waves.append(network.run(None, given)[0].ravel())
        return finish(trim_silence(np.concatenate(waves)), RATE, text, voice, delivery)

    def _file(self, name: str) -> Path:
        installed("onnxruntime")
        if not (self.folder / name).exists():
            raise VoiceError(
                f"kokoro: {self.folder / name} is not there; put kokoro.onnx, vocab.json and voices/ into a folder "
                f"{NAME} of the folder that {MODELS} names"
            )
        return self.folder / name


def letters(clause: str, accent: str) -> str:
    """Return the letters that Kokoro reads, of espeak's for a clause."""
    english = {"en-us": {**ENGLISH, **AMERICAN}, "en-gb": {**ENGLISH, **BRITISH}}.get(accent, {})
    table = {**LETTERS, **english}
    pattern = "|".join(map(re.escape, sorted(table, key=len, reverse=True)))
    return re.sub(pattern, lambda found: table[found[0]], clause)
