"""Results on disk: keys that see every change, folders and files that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sta.data.cache import build_folder, key_of, write_atomically
from sta.errors import StaError

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_like, json_like)
def test_keys_are_equal_when_their_parts_are(one: object, other: object) -> None:
    same = repr(one) == repr(other) or (one == other and type(one) is type(other) and not isinstance(one, dict | list))
    if same:
        assert key_of(one) == key_of(other)
    elif one != other:
        assert key_of(one) != key_of(other)
    assert len(key_of(one)) == 16


def test_key_sees_every_part_but_not_the_order_of_keys() -> None:
    parts = {"version": 1, "corpus": {"size": 48, "moods": ["happy", "sad"]}}
    assert key_of(parts) == key_of({"corpus": {"moods": ["happy", "sad"], "size": 48}, "version": 1})
    assert key_of(parts) != key_of({"version": 1, "corpus": {"size": 48, "moods": ["sad", "happy"]}})
    assert key_of(parts) != key_of({"version": 1, "corpus": {"size": 49, "moods": ["happy", "sad"]}})
    assert key_of({"a": "é"}) != key_of({"a": "e"})


def test_folder_appears_whole_and_is_made_once(tmp_path: Path) -> None:
    final, calls = tmp_path / "deep" / "made", []

    def fill(partial: Path) -> None:
        assert not final.exists()
        calls.append(partial)
        (partial / "a").write_text("1")

    assert build_folder(final, fill) == final
    assert build_folder(final, fill) == final
    assert len(calls) == 1
    assert [p.name for p in final.parent.iterdir()] == ["made"]
    assert (final / "a").read_text() == "1"


def test_an_interrupted_fill_starts_again(tmp_path: Path) -> None:
    final = tmp_path / "made"

    def broken(partial: Path) -> None:
        (partial / "first").write_text("1")
        raise KeyboardInterrupt

    def whole(partial: Path) -> None:
        assert not list(partial.iterdir())

    with pytest.raises(KeyboardInterrupt):
        build_folder(final, broken)
    assert not list(tmp_path.iterdir())
    (tmp_path / "made.partial").mkdir()
    (tmp_path / "made.partial" / "left").write_text("by a process that was killed")
    build_folder(final, whole)
    assert final.exists()


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_full_disk_is_one_sentence_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StaError, match=r"made: cannot be written \(No space left on device\)") as error:
        build_folder(tmp_path / "made", full)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


def test_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "x.json"
    write_atomically(path, b"old")
    assert path.read_bytes() == b"old"
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StaError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_file_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StaError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "x", b"")


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StaError, match="cannot be written"):
        build_folder(tmp_path / "file" / "x", lambda _: None)
