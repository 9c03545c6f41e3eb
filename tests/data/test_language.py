"""Validation of a language file, on the packaged ones and on broken copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from sta.config import yamlfile
from sta.config.cards import load_language
from sta.data.language import check
from sta.errors import RecipeError, VoiceError

PACKAGED = yamlfile.names("languages")


def broken(folder: Path, old: str, new: str) -> str:
    text = yamlfile.find("en", "languages").read_text(encoding="utf-8")
    assert old in text
    path = folder / "en.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return str(path)


def test_both_are_there() -> None:
    assert {"ar", "en"} <= set(PACKAGED)


@pytest.mark.parametrize("code", PACKAGED)
def test_packaged_language_holds(code: str) -> None:
    lines = list(check(code))
    assert lines[0].startswith(str(yamlfile.find(code, "languages")))
    assert [line.partition(":")[0] for line in lines[1:4]] == ["normaliser", "speech", "garden"]
    assert len(lines) == (7 if load_language(code).garden else 4)


def test_the_fewest_pieces_that_an_error_asks_for_are_enough(tmp_path: Path) -> None:
    assert len(list(check(broken(tmp_path, "vocab_size: 500", "vocab_size: 24")))) == 7


def test_without_a_grammar_it_serves_folders(tmp_path: Path) -> None:
    text = yamlfile.find("en", "languages").read_text(encoding="utf-8")
    path = tmp_path / "en.yaml"
    head = text[: text.index("\ngarden:")]
    path.write_text(head, encoding="utf-8")
    assert list(check(str(path)))[-1].startswith("garden: no grammar")
    path.write_text(head.replace("vocab_size: 500", "vocab_size: 10"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"vocab_size of .*en.yaml: .* cannot make 10 pieces from 1 texts"):
        list(check(str(path)))


def test_a_packaged_copy_that_kept_its_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would pass for Swahili and for English; by its path a card may have any file name."""
    path = tmp_path / "sw.yaml"
    path.write_bytes(yamlfile.find("en", "languages").read_bytes())
    said = r"sw.yaml: key 'code' is 'en': .* write code: sw, or name the file en.yaml"
    assert "English (en)" in next(check(str(path)))
    monkeypatch.setattr(yamlfile, "packaged", lambda folder: tmp_path)
    for read in (lambda: next(check("sw")), lambda: load_language("sw")):
        with pytest.raises(RecipeError, match=said):
            read()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("direction: ltr", "direction: up", "'direction'"),
        ("voices: [en-us,", "voices: [en-us, en-us,", "en-us twice in voices"),
        ("test_sentence: a small", "test_sentence: '...' # ", "'normaliser'"),
        ("    meadow: in the meadow\n", "", "meadow"),
        ("    red: {plain: red, a: a red}", "    red: {plain: red}", "red"),
        ("strip_invisible", "strip_invisble", "did you mean 'strip_invisible'?"),
        ("vocab_size: 500", "vocab_size: 23", "with 23 different characters; it needs at least 24"),
    ],
)
def test_a_broken_copy_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        list(check(broken(tmp_path, old, new)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    meadow: in the meadow\n", ""),
        ("strip_invisible", "strip_invisble"),
        ("vocab_size: 500", "vocab_size: 20"),
    ],
    ids=["grammar", "step", "pieces"],
)
def test_the_error_names_the_file_that_was_checked(tmp_path: Path, old: str, new: str) -> None:
    path = broken(tmp_path, old, new)
    with pytest.raises(RecipeError) as error:
        list(check(path))
    assert path in str(error.value)


def test_an_unknown_voice_is_named(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="'en-moon'"):
        list(check(broken(tmp_path, "en-gb-scotland", "en-moon")))
