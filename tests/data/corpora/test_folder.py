"""The corpus that users bring: every mistake in it is named, and no picture stands on two sides of a split."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sta.config.cards import load_language
from sta.data.audio import write_wav
from sta.data.corpora.folder import FolderSettings, FolderSource
from sta.data.corpora.user import split_of
from sta.data.rows import Corpus
from sta.data.unreadable import read_report, settle
from sta.errors import CorpusError

Lines = list[dict[str, Any]]


CARDS = {code: load_language(code) for code in ("en", "ar")}


def settings(root: Path, **changes: Any) -> FolderSettings:
    return FolderSettings(**{"name": "folder", "root": str(root), "validation": 0.25, "test": 0.25, **changes})


def source(root: Path, **changes: Any) -> FolderSource:
    return FolderSource(settings(root, **changes), CARDS, 0)


def noisy_png(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures with two recordings each."""
    root = tmp_path_factory.mktemp("mine")
    for number in range(20):
        Image.new("RGB", (8, 8), (number * 10, 0, 0)).save(root / f"{number}.png")
        for take in "ab":
            write_wav(root / f"{number}{take}.wav", (0.3 * np.sin(np.arange(3200) / (number + 2))).astype(np.float32))
    return root


@pytest.fixture
def lines() -> Lines:
    return [
        {"audio": f"{n}{take}.wav", "image": f"{n}.png", "text": f"picture {n}", "language": language}
        for n in range(20)
        for take, language in (("a", "en"), ("b", "ar"))
    ]


@pytest.fixture
def mine(files: Path, tmp_path: Path) -> Path:
    """A folder of its own with the same files, for a test that breaks them."""
    for path in files.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def write(root: Path, lines: Lines) -> Path:
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


def read(root: Path, lines: Lines, **changes: Any) -> list[dict[str, Any]]:
    return [sample.row for sample in source(write(root, lines), **changes).read_manifest()]


def refused(root: Path, lines: Lines, **changes: Any) -> str:
    with pytest.raises(CorpusError) as error:
        read(root, lines, **changes)
    assert "\n" not in str(error.value)
    assert str(root / "metadata.jsonl") in str(error.value)
    return str(error.value)


def test_rows_have_absolute_paths_and_the_defaults(files: Path, lines: Lines) -> None:
    lines[0] |= {"id": "first", "speaker": 7, "mood": "sad", "label": "x", "image_id": "pic", "split": "test"}
    lines[0] |= {"style": "ink"}
    rows = read(files, lines)
    assert len(rows) == 40
    assert rows[0] == {
        "id": "first", "image": {"bytes": None, "path": str(files / "0.png")},
        "audio": {"bytes": None, "path": str(files / "0a.wav")}, "text": "picture 0", "language": "en", "speaker": "7",
        "mood": "sad", "label": "x", "style": "ink", "image_id": "pic", "split": "test",
    }  # fmt: skip
    assert (rows[1]["id"], rows[1]["image_id"], rows[1]["speaker"]) == ("0b.wav", "0.png", None)


def test_rows_may_lack_a_recording_or_a_text(mine: Path, lines: Lines) -> None:
    """A picture alone, a picture with its caption, and a recording without a transcript."""
    del lines[2]["audio"], lines[2]["text"]
    lines[3]["audio"] = None
    lines[4]["text"] = " "
    lines[6]["text"] = None
    ids, reasons = kept(mine, lines, limit=0)
    assert reasons == {}
    assert {"1.png:3", "1.png:4"} < ids
    corpus = Corpus(mine / "made")
    assert np.flatnonzero(~corpus.has_audio).tolist() == [2, 3]
    assert np.flatnonzero(~corpus.has_text).tolist() == [2, 4, 6]


def test_a_language_needs_recordings_and_so_does_the_test(files: Path, lines: Lines) -> None:
    silent = [line | ({"audio": None} if line["language"] == "ar" else {}) for line in lines]
    assert "the train split has no recording in language 'ar'" in refused(files, silent)
    tested = {row["audio"]["path"] for row in read(files, lines) if row["split"] == "test"}
    mute = [line | ({"audio": None} if str(files / line["audio"]) in tested else {}) for line in lines]
    assert "the test split has 0 recordings and needs 2" in refused(files, mute)


def test_recordings_of_a_picture_stay_together(files: Path, lines: Lines) -> None:
    splits: dict[str, set[str]] = {}
    for row in read(files, lines):
        splits.setdefault(row["image_id"], set()).add(row["split"])
    assert all(len(s) == 1 for s in splits.values())
    assert set.union(*splits.values()) == {"train", "validation", "test"}


def test_splits_do_not_depend_on_the_order_of_lines(files: Path, lines: Lines) -> None:
    forward = {r["id"]: r["split"] for r in read(files, lines)}
    assert {r["id"]: r["split"] for r in read(files, lines[::-1])} == forward


def test_shares_are_about_kept() -> None:
    chosen = [split_of(f"{n}.png", settings(Path(), validation=0.2, test=0.1)) for n in range(3000)]
    assert abs(chosen.count("validation") / 3000 - 0.2) < 0.03
    assert abs(chosen.count("test") / 3000 - 0.1) < 0.03


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auido": "x"}, ["line 3", "auido", "known keys: image, language, audio, text"]),
        ({"language": "de"}, ["line 3", "language 'de'", "en, ar"]),
        ({"text": ["a bird"]}, ["line 3", "text", "string"]),
        ({"split": "dev"}, ["line 3", "split 'dev'", "train, validation, test"]),
        ({"id": "0a.wav"}, ["'0a.wav' appears twice"]),
        ({"audio": "0a.wav"}, ["'0a.wav' appears twice", "line 1 ", "line 3;", "without one is its audio"]),
    ],
)
def test_mistake_in_a_line_is_named(files: Path, lines: Lines, change: dict[str, Any], said: list[str]) -> None:
    lines[2] |= change
    text = refused(files, lines)
    assert all(part in text for part in said), text


def test_missing_key_is_named(files: Path, lines: Lines) -> None:
    del lines[2]["image"]
    assert "line 3: image: field required" in refused(files, lines)


def test_a_line_that_is_no_json(files: Path, lines: Lines) -> None:
    write(files, lines)
    (files / "metadata.jsonl").write_text("\n{'audio': 3}\n")
    with pytest.raises(CorpusError, match="line 2: the line: invalid json"):
        source(files).read_manifest()


def test_a_mended_file_makes_another_version(mine: Path, lines: Lines) -> None:
    """Else what the mended file sounds or looks like would be looked for in what was made of the old one."""
    found = [source(write(mine, lines)).version()]
    assert source(write(mine, lines)).version() == found[0], "a manifest written again says the same"
    for name in ("3b.wav", "3.png"):
        data = (mine / name).read_bytes()
        (mine / name).write_bytes(data + b"\0")
        found.append(source(mine).version())
        (mine / name).write_bytes(data)
        os.utime(mine / name, ns=(1, 1))
        found.append(source(mine).version())
    (mine / "3.png").unlink()
    found.append(source(mine).version())
    found.append(source(write(mine, lines[1:])).version())
    (mine / "metadata.jsonl").unlink()
    found.append(source(mine).version())
    assert len({json.dumps(version) for version in found}) == len(found)


def test_the_version_of_a_broken_manifest_is_not_what_says_so(mine: Path, lines: Lines) -> None:
    write(mine, lines)
    (mine / "metadata.jsonl").write_bytes(b"{'audio': 3}\n\xff\n")
    assert source(mine).version() == source(mine).version()


@pytest.mark.parametrize("character", ["\u2028", "\u0085"])
def test_only_a_newline_ends_a_line(mine: Path, lines: Lines, character: str) -> None:
    """JSON allows U+2028 and U+0085 inside a string; `str.splitlines` would cut there."""
    lines[0]["text"] = f"a red{character}bird"
    lines[1] |= {"id": f"left{character}out", "audio": "nowhere.wav"}
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (mine / "metadata.jsonl").write_text(text, encoding="utf-8")
    samples = source(mine).read_manifest()
    assert (samples[0].row["text"], samples[-1].origin) == (lines[0]["text"], "metadata.jsonl, line 40")
    (mine / "made").mkdir()
    source(mine).shards()[0].write(0, mine / "made")
    settle(mine / "made", [(1, 0.5)], mine / "unreadable.jsonl")
    assert [entry.id for entry in read_report(mine / "made")] == [lines[1]["id"]]


def test_a_byte_order_mark_is_no_part_of_the_first_line(mine: Path, lines: Lines) -> None:
    write(mine, lines)
    manifest = mine / "metadata.jsonl"
    manifest.write_bytes(codecs.BOM_UTF8 + manifest.read_bytes().replace(b"\n", b"\r\n"))
    assert len(source(mine).read_manifest()) == 40
    before = source(mine).version()
    (mine / "0a.wav").unlink()  # of the first line
    assert source(mine).version() != before


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"metadata\.jsonl: cannot be read .*corpus\.root must hold"):
        source(tmp_path).read_manifest()
    with pytest.raises(CorpusError, match=r"metadata\.jsonl: not there; corpus\.root must hold"):
        source(tmp_path).check()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_said(files: Path, lines: Lines, split: str) -> None:
    other = {"train": "validation", "validation": "train"}[split]
    text = refused(files, [line | {"split": other} for line in lines])
    assert f"its 40 rows leave the {split} split empty" in text
    assert "corpus.validation and corpus.test" in text
    assert "its 0 rows" in refused(files, [])


def test_a_language_without_training_rows_is_said(files: Path, lines: Lines) -> None:
    """It would fail after the whole corpus was read, in SentencePiece; without test rows it is only not evaluated."""
    split = {"en": "train", "ar": "test"}
    kept = [line for n, line in enumerate(lines) if (n < 20) == (line["language"] == "en")]
    named = [line | {"split": "validation" if n < 2 else split[line["language"]]} for n, line in enumerate(kept)]
    assert "the train split has no recording in language 'ar'; add rows or name splits" in refused(files, named)
    trained = [line | {"split": "train"} if line["audio"] == "15b.wav" else line for line in named]
    assert len(read(files, trained)) == 20


def test_a_picture_that_is_trained_on_is_not_tested(files: Path, lines: Lines) -> None:
    named = [line | {"split": ["train", "validation", "test"][n // 2 % 3]} for n, line in enumerate(lines)]
    assert len(read(files, named)) == 40
    named[1] |= {"split": "test"}
    text = refused(files, named)
    assert "picture '0.png' is in the train split and in another; name one split for all rows of a picture" in text


# --- unreadable files -----------------------------------------------------------------------------------------


def kept(root: Path, lines: Lines, limit: float = 0.5) -> tuple[set[str], dict[str, str]]:
    """(ids kept, id -> reason of the others)."""
    made = root / "made"
    made.mkdir()
    for number, shard in enumerate(source(write(root, lines)).shards()):
        shard.write(number, made)
    settle(made, [(1, limit)], root / "unreadable.jsonl")
    return set(Corpus(made).column("id")), {str(e.id): e.reason for e in read_report(made)}


def test_readable_files_leave_no_report(mine: Path, lines: Lines) -> None:
    ids, reasons = kept(mine, lines, limit=0.0)
    assert len(ids) == 40
    assert reasons == {}
    assert not list(mine.rglob("*unreadable*.jsonl"))


def test_each_unreadable_file_is_named_with_its_reason(mine: Path, lines: Lines) -> None:
    (mine / "0a.wav").unlink()
    (mine / "1a.wav").write_text("this is text, not sound")
    (mine / "2.png").write_bytes(noisy_png(40)[:500])
    (mine / "3.png").unlink()
    (mine / "4.png").write_text("this is text, not a picture")
    (mine / "5b.wav").write_bytes(b"")
    (mine / "6.png").unlink()
    (mine / "6.png").mkdir()
    ids, reasons = kept(mine, lines)
    assert set(reasons) == {f"{n}.wav" for n in ("0a", "1a", "2a", "2b", "3a", "3b", "4a", "4b", "5b", "6a", "6b")}
    assert ids == {line["audio"] for line in lines} - set(reasons)
    for name, file, said in [
        ("0a", "0a.wav", "does not exist"),
        ("1a", "1a.wav", "not audio"),
        ("2a", "2.png", "truncated"),
        ("3b", "3.png", "no such picture"),
        ("4a", "4.png", "not a readable picture"),
        ("5b", "5b.wav", "empty"),
        ("6a", "6.png", "not a readable picture"),
    ]:
        assert str(mine / file) in reasons[f"{name}.wav"]
        assert said in reasons[f"{name}.wav"]


def test_a_path_with_a_nul_is_set_aside(mine: Path, lines: Lines) -> None:
    lines[0]["audio"] = "a\0b"
    lines[2]["image"] = "a\0b"
    write(mine, lines)
    assert source(mine).version()
    reasons = kept(mine, lines)[1]
    assert set(reasons) == {"a\0b", lines[2]["audio"]}
    assert all("null" in reason for reason in reasons.values()), reasons


def test_png_broken_in_the_middle_is_set_aside(mine: Path, lines: Lines) -> None:
    data = noisy_png(300)
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    (mine / "2.png").write_bytes(data[:second] + b"\0\1\2\3" + data[second + 4 :])
    assert set(kept(mine, lines)[1]) == {"2a.wav", "2b.wav"}


def test_a_decompression_bomb_is_set_aside(mine: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    (mine / "2.png").write_bytes(noisy_png(40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert set(kept(mine, lines)[1]) == {"2a.wav", "2b.wav"}


def test_an_entry_names_the_line_and_the_bytes(mine: Path, lines: Lines) -> None:
    (mine / "1a.wav").write_text("this is text, not sound")
    (mine / "3.png").unlink()
    kept(mine, lines)
    sound, no_picture, _ = read_report(mine / "made")
    assert (sound.id, sound.shard, sound.rows) == ("1a.wav", "metadata.jsonl, line 3", 1)
    assert sound.sha256 == hashlib.sha256(b"this is text, not sound").hexdigest()
    assert (no_picture.id, no_picture.sha256) == ("3a.wav", None)


def test_too_many_unreadable_stop_and_name_the_first(mine: Path, lines: Lines) -> None:
    for number in range(3):
        (mine / f"{number}a.wav").unlink()
    assert len(kept(mine, lines, limit=3 / 40)[0]) == 37
    shutil.rmtree(mine / "made")
    with pytest.raises(
        CorpusError, match=r"3 of 40 samples.*corpus\.max_unreadable 0\.05.*0a\.wav does not exist"
    ) as error:
        kept(mine, lines, limit=0.05)
    assert "\n" not in str(error.value)
    assert not (mine / "made").exists()
    assert len((mine / "unreadable.jsonl").read_text().splitlines()) == 3
