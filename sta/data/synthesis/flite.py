"""flite, a second engine for English: never used in training, so that the evaluation can ask for an unheard one.

It is no wheel: the command is installed by `apt-get install flite` (Debian, Ubuntu) or `brew install flite`.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from sta.data.synthesis.base import Delivery, Synthesiser, Voice, Wave, finish, octaves
from sta.errors import VoiceError

TIMEOUT = 60


@dataclass(frozen=True)
class _Speaker:
    """A voice of flite by measurement: words a minute on espeak's scale, mean and deviation of its pitch in Hz."""

    words_per_minute: float
    pitch: float
    deviation: float


SPEAKERS = {
    "kal16": _Speaker(168, 95, 11),
    "awb": _Speaker(163, 130, 15),
    "rms": _Speaker(148, 100, 13),
    "slt": _Speaker(172, 180, 20),
}


class Flite(Synthesiser):
    """The `flite` command, one process per utterance."""

    def version(self) -> str:
        """Return where it is; raises `VoiceError` where it is not installed."""
        return command()

    def voices(self, accents: Sequence[str]) -> list[Voice]:
        """Return its speakers of English."""
        others = [a for a in accents if a.split("-")[0] != "en"]
        if others:
            raise VoiceError(f"flite has no voice for {others[0]!r}; it speaks en only.")
        return [Voice(f"flite-{name}", "en-us", name) for name in SPEAKERS]

    def speak(self, text: str, voice: Voice, delivery: Delivery, words_per_minute: int) -> Wave:
        """Say a text; raises `VoiceError` where it cannot."""
        if voice.variant not in SPEAKERS:
            raise VoiceError(f"flite has no voice {voice.variant!r}; known are: {', '.join(SPEAKERS)}.")
        speaker = SPEAKERS[voice.variant]
        features = {
            "duration_stretch": speaker.words_per_minute / (words_per_minute * voice.rate * delivery.rate),
            "int_f0_target_mean": speaker.pitch * octaves(delivery.pitch),
            "int_f0_target_stddev": speaker.deviation * delivery.range / 50,
        }
        samples, rate = _run(text, voice.variant, features)
        return finish(samples, rate, text, voice, delivery)


def command() -> str:
    """Return where flite is.

    Raises:
        VoiceError: it is not installed; says how to.
    """
    found = shutil.which("flite")
    if found is None:
        raise VoiceError("flite is not installed, so the unheard engine is left out; `apt-get install flite` brings it")
    return found


def _run(text: str, voice: str, features: dict[str, float]) -> tuple[Wave, int]:
    """Return float32 [T] at flite's own level, and its rate."""
    settings = [part for key, value in features.items() for part in ("--setf", f"{key}={value:.4f}")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        arguments = [command(), "-voice", voice, *settings, "-t", text, "-o", str(path)]
        try:
            subprocess.run(arguments, check=True, capture_output=True, timeout=TIMEOUT)
            samples, rate = soundfile.read(path, dtype="float32")
            return samples, rate
        except (subprocess.SubprocessError, OSError, soundfile.SoundFileError) as error:
            raise VoiceError(f"flite could not say {text!r} in the voice {voice}: {error}") from error
