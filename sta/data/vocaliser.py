"""Vowels for a script that leaves them out, so that a synthesiser need not guess them.

The model for Arabic is libtashkeel's, inside the package `piper-tts` (GPL-3.0-or-later).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from sta.data.synthesis._onnx import session
from sta.data.synthesis.base import installed

PACKAGE = "piper-tts"
VOWELLED = re.compile("[\u064b-\u0652\u0670]")
ARABIC = re.compile("[\u0621-\u064a]")
VOWEL_BEFORE_SHADDA = re.compile("([\u064b-\u0650\u0652])\u0651")


def version() -> str:
    """Return the version of what writes the vowels; raises `VoiceError` where it is not installed."""
    return f"{PACKAGE} {installed(PACKAGE)}"


def vocalise(text: str) -> str:
    """Write the short vowels into the Arabic words that have none; other words are left as they are.

    Raises:
        VoiceError: the model is not installed.
    """
    words = text.split()
    bare = [bool(ARABIC.search(word)) and not VOWELLED.search(word) for word in words]
    if not any(bare):
        return text
    found = _model().diacritize(" ".join(words)).split()
    if len(found) != len(words):
        return text
    # espeak drops a vowel that stands before its shadda
    found = [VOWEL_BEFORE_SHADDA.sub("\u0651\\1", word) for word in found]
    return " ".join(new if needs else word for word, new, needs in zip(words, found, bare, strict=True))


@lru_cache(maxsize=1)
def _model() -> Any:
    installed(PACKAGE)
    from piper.tashkeel import TASHKEEL_DIR, TashkeelDiacritizer

    model = TashkeelDiacritizer()
    model.session = session(TASHKEEL_DIR / "model.onnx")  # its own would take every core
    return model
