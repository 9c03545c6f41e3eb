"""Captions as they sound."""

from __future__ import annotations

import pytest

from sta.config.cards import load_language
from sta.data.phonemes import as_phonemes


@pytest.mark.parametrize(
    ("language", "text", "sounds"),
    [("en", "a knight", "ɐ naɪt"), ("fr", "eau", "o"), ("ca", "dues cadires", "duəs kəðiɾəs")],
)
def test_letters_become_sounds_without_stress(language: str, text: str, sounds: str) -> None:
    assert as_phonemes([text], load_language(language)) == [sounds]


def test_each_text_has_its_own_and_they_may_be_empty() -> None:
    read = as_phonemes(["a night", "", "a knight", "the sea, the see"], load_language("en"))
    assert read[0] == read[2]
    assert read[1] == ""
    assert len(set(read[3].split()[1::2])) == 1, read


def test_nothing_is_left_of_the_marks_of_other_languages() -> None:
    """espeak names the language that it changes to."""
    (read,) = as_phonemes(["une week-end de football à new york"], load_language("fr"))
    assert not set("()^-\u02c8\u02cc") & set(read)
