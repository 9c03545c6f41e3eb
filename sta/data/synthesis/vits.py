"""VITS (Kim et al. 2021, arXiv:2106.06103) by transformers, such as Meta's MMS-TTS for 1,100 languages.

An accent is a model: its name on the Hub (`facebook/mms-tts-ron`), or a folder. Look at its licence: MMS-TTS is for
non-commercial use. Its noise is drawn from the hash of the text; pitch is the voice's own.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sta.config.published import MODELS, locate
from sta.data.audio import trim_silence
from sta.data.synthesis.base import Delivery, Synthesiser, Voice, Wave, finish, neural_pace, require_words
from sta.errors import NoSoundError, VoiceError, first_line


class Vits(Synthesiser):
    """`transformers.VitsModel`."""

    packages = ("transformers",)

    def voices(self, accents: Sequence[str]) -> list[Voice]:
        """Return the speakers of each model; `accent` is the model, `variant` their number in it."""
        return [voice for accent in accents for voice in _speakers(accent)]

    def speak(self, text: str, voice: Voice, delivery: Delivery, words_per_minute: int) -> Wave:
        """Say a text; raises `VoiceError` where it cannot."""
        require_words(text, voice)
        import torch

        with torch.random.fork_rng(devices=[]):  # transformers draws weights before it loads them
            model, tokenizer = _loaded(voice.accent)
        inputs = tokenizer(text, return_tensors="pt")
        if inputs["input_ids"].shape[1] < 3:  # a blank alone
            raise NoSoundError(f"the voice {voice.name} has no letter of {text!r}; give words of its language.")
        model.speaking_rate = neural_pace(words_per_minute, delivery)
        speaker = None if voice.variant is None else int(voice.variant)
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(text.encode()))
            wave = model(**inputs, speaker_id=speaker).waveform[0].numpy()
        return finish(trim_silence(wave), model.config.sampling_rate, text, voice, delivery)


def _speakers(name: str) -> list[Voice]:
    from transformers import VitsConfig

    count, short = _read(VitsConfig, name).num_speakers, Path(name).name
    return [Voice(short, name)] if count == 1 else [Voice(f"{short}#{n}", name, str(n)) for n in range(count)]


@lru_cache(maxsize=8)
def _loaded(name: str) -> tuple[Any, Any]:
    from transformers import VitsModel, VitsTokenizer

    return _read(VitsModel, name).eval(), _read(VitsTokenizer, name)


def _read(kind: Any, name: str) -> Any:
    try:
        return kind.from_pretrained(locate(name))
    except (OSError, ValueError) as error:
        raise VoiceError(
            f"vits has no voice {name!r} ({first_line(error)}); give a model's name on the Hub, a folder, or the name "
            f"of one in the folder that {MODELS} names"
        ) from error
