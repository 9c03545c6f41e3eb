"""Captions as they sound: the phonemes that espeak-ng reads in them, for languages whose letters say little of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sta.config.cards import LanguageCard
from sta.data.synthesis.espeak import phonemes_of

#: Stress, the tie between letters of one sound, and the names of languages that espeak changes to within a text.
MARKS = re.compile(r"\([a-z^-]+\)|[\u02c8\u02cc^-]")


def as_phonemes(texts: Iterable[str], card: LanguageCard) -> list[str]:
    """Return normalised texts in IPA, words apart, without stress; in the accent of the card's first voice of espeak.

    Raises:
        VoiceError: espeak is not there, or does not speak the language.
    """
    accent = card.speech.voices[0] if card.speech.synthesiser == "espeak" else card.code
    read = phonemes_of(texts, accent)
    return [" ".join(MARKS.sub("", " ".join(clauses)).split()) for clauses in read]
