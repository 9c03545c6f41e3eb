"""Vowels are written into Arabic words that have none, and into nothing else."""

from __future__ import annotations

import pytest

from sta.config.cards import load_language
from sta.data.vocaliser import VOWEL_BEFORE_SHADDA, VOWELLED, version, vocalise
from sta.errors import VoiceError


def test_only_bare_words_change() -> None:
    pytest.importorskip("piper")
    said = vocalise("صورة تُفَّاحَة 3 red")
    first, *others = said.split()
    assert VOWELLED.search(first)
    assert VOWELLED.sub("", first) == "صورة"
    assert others == ["تُفَّاحَة", "3", "red"]
    assert vocalise(said) == said
    assert not VOWEL_BEFORE_SHADDA.search(vocalise("تفاحة كلاب بطة")), "espeak would drop the vowel"


@pytest.mark.parametrize("text", ["a red apple", "", load_language("ar").test_sentence])
def test_what_needs_nothing_is_left_alone(text: str) -> None:
    assert vocalise(text) == text


def test_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sta.data.vocaliser.PACKAGE", "no-such-package")
    with pytest.raises(VoiceError, match="pip install no-such-package"):
        version()
