"""espeak-ng, which speaks every language here, and the speakers that are made of it.

It comes as a wheel (`espeakng-loader`: the library and the data of 100+ languages) and is driven through
ctypes. It is GPL-3 and stays behind the `Synthesiser` interface.
"""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sta.data.synthesis.base import Delivery, Synthesiser, Voice, Wave, finish, require_words
from sta.errors import VoiceError

#: espeak variants that speakers are made of; each is a vocal tract of its own. Left out are whispers, robots, croaks,
#: and those whose own speed, or level outside -23 to -18 dB, would blur a mood. Variants whose mean spectra
#: differ by less than 2.2 dB (Alex and m6, m4 and m5) are on the same side. Reed is left out too: it never sounds
#: twice the same.
TRAIN_VARIANTS = (
    *("f1", "f3", "f5", "m1", "m3", "m4", "m5", "m6", "Alex", "Annie", "Michael"),
    *("adam", "aunty", "boris", "edward", "grandma", "iven4", "kaukovalta", "klatt3", "marcelo", "michel"),
    *("quincy", "shelby"),
)
TEST_VARIANTS = ("f2", "f4", "m2", "m7", "Mario", "david", "max", "robert", "steph")


def speakers(accents: Sequence[str], test_accents: Sequence[str]) -> tuple[list[Voice], list[Voice]]:
    """Return fixed training and test speakers, which share no variant.

    Training has every accent of `accents` in every training variant; the test has every accent of
    `test_accents`, or of `accents` where a language has no accent to spare, in every test variant.
    """
    train = [voice for voice in Espeak().voices(accents) if voice.variant in TRAIN_VARIANTS]
    test = [voice for voice in Espeak().voices(test_accents or accents) if voice.variant in TEST_VARIANTS]
    return train, test


# --- espeak ----------------------------------------------------------------------------------------------------

ESPEAK_RATE = 22_050
RETRIEVAL, UTF8, POSITION_CHARACTER = 2, 1, 1
TIED_IPA = 0x02 | 0x80 | ord("^") << 8  # of espeak_TextToPhonemes: IPA, with this tie
PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "range": 4, "gap": 7}
SLOWEST, FASTEST = 80, 450
EDGE_SECONDS = 0.05
SILENCE = 8  # of 32768

SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak(Synthesiser):
    """espeak-ng, one utterance at a time.

    The library keeps the phase of its pitch flutter, filters and noise from one utterance to the next, in
    static variables that no call resets. It is therefore loaded for each utterance and unloaded after it (0.3 ms),
    which makes the samples a function of the arguments alone and leaves nothing for a fork to inherit.
    """

    packages = ("espeakng-loader",)

    def voices(self, accents: Sequence[str]) -> list[Voice]:
        """Return every accent in every variant."""
        return [speaker(accent, variant) for accent in accents for variant in TRAIN_VARIANTS + TEST_VARIANTS]

    def speak(self, text: str, voice: Voice, delivery: Delivery, words_per_minute: int) -> Wave:
        """Say a text; raises `VoiceError` where there is nothing to say."""
        require_words(text, voice)
        require_no_nul(text)
        settings = {
            "rate": round(np.clip(words_per_minute * voice.rate * delivery.rate, SLOWEST, FASTEST)),
            "volume": 100,
            "pitch": round(np.clip(voice.pitch + delivery.pitch, 0, 99)),
            "range": round(np.clip(delivery.range, 0, 99)),
            "gap": delivery.pause,
        }
        samples = trim(synthesise(text, engine_voice(voice), settings))
        return finish(samples.astype(np.float32) / np.float32(32768), ESPEAK_RATE, text, voice, delivery)


def require_no_nul(text: str) -> None:
    """Refuse a text of which espeak would read a part only."""
    if "\0" in text:
        raise VoiceError(f"the text {text!r} holds a NUL character, where espeak would stop; remove it.")


def speaker(accent: str, variant: str) -> Voice:
    """Return the one speaker with this accent and variant: base pitch 25..75 and rate within 8 %, by hash."""
    language_file(accent)
    first, second = hashlib.sha256(f"{accent}+{variant}".encode()).digest()[:2]
    return Voice(f"{accent}+{variant}", accent, variant, 25 + round(50 * first / 255), 0.92 + 0.16 * second / 255)


def engine_voice(voice: Voice) -> str:
    """Return espeak's name of a voice; espeak itself takes an unknown variant for none, so it is checked here."""
    name = language_file(voice.accent)
    if voice.variant is None:
        return name
    if voice.variant not in variants():
        known = ", ".join(variants())
        raise VoiceError(f"espeak has no variant {voice.variant!r} for the voice {voice.name}; known are: {known}.")
    return f"{name}+{voice.variant}"


def language_file(accent: str) -> str:
    """Return the language file, such as "gmw/en-US", that a code such as "en-us" stands for."""
    known = languages()
    if accent.lower() not in known:
        raise VoiceError(f"espeak has no language or accent {accent!r}; known are: {', '.join(sorted(known))}.")
    return known[accent.lower()]


@lru_cache(maxsize=1)
def languages() -> dict[str, str]:
    """Language code -> language file, from the wheel's data; a file's own name wins over the codes inside it."""
    root = data_folder() / "lang"
    files = sorted(path for path in root.rglob("*") if path.is_file())
    codes: dict[str, str] = {path.name.lower(): path.relative_to(root).as_posix() for path in files}
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("language "):
                codes.setdefault(line.split()[1].lower(), path.relative_to(root).as_posix())
    return codes


@lru_cache(maxsize=1)
def variants() -> tuple[str, ...]:
    """Return all variants of the vocal tract in the wheel's data, novelties included."""
    return tuple(sorted(path.name for path in (data_folder() / "voices" / "!v").iterdir()))


@lru_cache(maxsize=1)
def data_folder() -> Path:
    """Return where the wheel's data lies."""
    return Path(loader().get_data_path())


def loader():  # type: ignore[no-untyped-def]
    """Return the wheel's own module, imported when somebody speaks."""
    try:
        import espeakng_loader
    except ImportError:
        raise VoiceError("espeak is not installed; `pip install espeakng-loader` brings it.") from None
    return espeakng_loader


# --- the engine ------------------------------------------------------------------------------------------------

_lock = threading.Lock()


def _renew_lock() -> None:
    """Make a new lock: a fork may copy the lock while another thread holds it."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def synthesise(text: str, name: str, settings: dict[str, int]) -> NDArray[np.int16]:
    """Speak with a fresh engine; int16 [T] at 22,050 Hz. `settings` are espeak's own units."""
    pieces: list[bytes] = []

    @SYNTH_CALLBACK
    def collect(samples, count, _events):  # type: ignore[no-untyped-def]
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    with _lock, fresh_engine() as engine:
        engine.espeak_SetSynthCallback(collect)
        if engine.espeak_SetVoiceByName(name.encode()):
            raise VoiceError(f"espeak cannot load its voice {name!r}; install espeakng-loader again.")
        for key, value in settings.items():
            engine.espeak_SetParameter(PARAMETERS[key], value, 0)
        data = text.encode()
        engine.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, POSITION_CHARACTER, 0, UTF8, None, None)
    return np.frombuffer(b"".join(pieces), np.int16)


def phonemes(text: str, accent: str) -> list[str]:
    """Return the sounds of a text clause by clause, as espeak reads it: IPA, `^` between letters of one sound."""
    (clauses,) = phonemes_of([text], accent)
    return clauses


def phonemes_of(texts: Iterable[str], accent: str) -> list[list[str]]:
    """Return what `phonemes` gives of each text; to start espeak once for all is a hundred times as fast."""
    found = []
    with _lock, fresh_engine() as engine:
        engine.espeak_SetVoiceByName(language_file(accent).encode())
        read = engine.espeak_TextToPhonemes
        read.restype, read.argtypes = ctypes.c_char_p, (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_int)
        for text in texts:
            require_no_nul(text)
            clauses, data = [], ctypes.create_string_buffer(text.encode())
            rest = ctypes.c_void_p(ctypes.addressof(data))
            while rest.value:
                clauses.append(read(ctypes.byref(rest), UTF8, TIED_IPA).decode())
            found.append([clause for clause in clauses if clause.strip()])
    return found


@contextmanager
def fresh_engine() -> Iterator[ctypes.CDLL]:
    """Load espeak-ng and initialise it with a fixed seed for its breath noise, and unloaded at the end."""
    folder = data_folder()
    engine = ctypes.CDLL(loader().get_library_path())
    try:
        if engine.espeak_Initialize(RETRIEVAL, 0, os.fsencode(folder), 0) != ESPEAK_RATE:
            raise VoiceError(f"espeak cannot start from its data in {folder}; install espeakng-loader again.")
        engine.espeak_ng_SetRandSeed(ctypes.c_long(1))
        yield engine
        engine.espeak_Terminate()
    finally:
        unload(engine)


def unload(engine: ctypes.CDLL) -> None:
    """Unload the library, and with it all that it keeps."""
    if sys.platform == "win32":
        _ctypes.FreeLibrary(engine._handle)
    else:
        _ctypes.dlclose(engine._handle)


def trim(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """Shorten silence at either end to 50 ms; nothing is left of samples that are all silent."""
    heard = np.flatnonzero((samples > SILENCE) | (samples < -SILENCE))
    if not len(heard):
        return samples[:0]
    edge = round(EDGE_SECONDS * ESPEAK_RATE)
    return samples[max(0, heard[0] - edge) : heard[-1] + 1 + edge]
