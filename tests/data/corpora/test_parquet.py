"""Parquet shards as a corpus: every layout is read, every mistake is named, and a tear costs no more than it must."""

from __future__ import annotations

import hashlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sta.config.cards import load_language
from sta.data.corpora.parquet import ParquetSettings, ParquetSource
from sta.data.corpora.user import split_of
from sta.data.rows import Corpus, Sample
from sta.data.unreadable import Unreadable, read_report, rows_lost, settle
from sta.errors import CorpusError
from tests.parquet_fixtures import FILE, cut, sample, scratch, write_parquet

CARDS = {code: load_language(code) for code in ("en", "ar")}


def settings(shards: object, **changes: Any) -> ParquetSettings:
    return ParquetSettings(**{"name": "parquet", "shards": str(shards), **changes})


def source(path: object) -> ParquetSource:
    return ParquetSource(settings(path), CARDS, 0)


def found(path: Path) -> list[Any]:
    return [item for shard in source(path).shards() for item in shard.samples()]


def rows(path: Path) -> list[dict[str, Any]]:
    items = found(path)
    assert all(isinstance(item, Sample) for item in items)
    return [item.row for item in items]


def refused(path: Path) -> str:
    with pytest.raises(CorpusError) as error:
        found(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def prepared(path: Path, folder: Path, limit: float = 0.5) -> tuple[Corpus, list[Unreadable]]:
    folder.mkdir(exist_ok=True)
    shards = source(path).shards()
    for number, shard in enumerate(shards):
        shard.write(number, folder)
    settle(folder, [(len(shards), limit)], folder.with_name("beside.jsonl"))
    return Corpus(folder), read_report(folder)


# --- what is read -----------------------------------------------------------------------------------------------


def test_rows_have_every_column_of_the_schema(tmp_path: Path) -> None:
    given = sample(3, speaker="anna", mood="sad", style="ink")
    (row,) = rows(write_parquet(tmp_path / "a.parquet", [given]))
    files = {name: {"bytes": given[name]["bytes"], "path": None} for name in ("image", "audio")}
    assert row == {**given, **files, "label": "0"}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary())]), FILE])
def test_bytes_in_any_layout(tmp_path: Path, kind: pa.DataType) -> None:
    given = [sample(number) for number in range(3)]
    sounds = [s["audio"]["bytes"] for s in given]
    plain = sounds if not pa.types.is_struct(kind) else [{"bytes": sound} for sound in sounds]
    changed = [{**s, "audio": sound} for s, sound in zip(given, plain, strict=True)]
    path = write_parquet(tmp_path / "a.parquet", changed, audio=kind)
    assert [row["audio"]["bytes"] for row in rows(path)] == sounds


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.struct([("path", pa.string())]), FILE])
def test_paths_are_relative_to_the_shard(tmp_path: Path, kind: pa.DataType) -> None:
    path: Any = "clips/x.wav" if not pa.types.is_struct(kind) else {"path": "clips/x.wav"}
    shard = write_parquet(tmp_path / "deep" / "a.parquet", [sample(0, audio=path)], audio=kind)
    assert rows(shard)[0]["audio"] == {"bytes": None, "path": str(tmp_path / "deep" / "clips" / "x.wav")}


def test_what_a_row_does_not_say_is_filled_in(tmp_path: Path) -> None:
    given = [{k: sample(n)[k] for k in ("image", "language")} for n in range(40)]
    write_parquet(tmp_path / "in" / "a.parquet", given[:20])
    write_parquet(tmp_path / "in" / "b.parquet", given[20:])
    made = rows(tmp_path / "in")
    assert [row["id"] for row in made[19:21]] == ["a.parquet:19", "b.parquet:0"]
    assert made[0]["image_id"] == made[1]["image_id"] != made[2]["image_id"], "the same picture has the same name"
    assert made[0]["image_id"] == hashlib.sha256(given[0]["image"]["bytes"]).hexdigest()[:16]
    assert [row["split"] for row in made] == [split_of(row["image_id"], settings("")) for row in made]
    assert {made[0][name] for name in ("speaker", "mood", "label")} == {None}
    assert made[0]["audio"] is made[0]["text"] is None, "a picture alone"


def test_text_may_be_a_dictionary_and_other_columns_are_left_alone(tmp_path: Path) -> None:
    given = [sample(n, duration=0.2) for n in range(4)]
    path = write_parquet(tmp_path / "a.parquet", given, language=pa.dictionary(pa.int8(), pa.string()))
    assert [row["language"] for row in rows(path)] == ["en"] * 4
    assert "duration" not in rows(path)[0]


def test_a_file_a_folder_and_a_pattern(tmp_path: Path) -> None:
    for name in ("x/b.parquet", "x/a.parquet", "y/a.parquet"):
        write_parquet(tmp_path / name, [sample(0)])

    def names(shards: Path) -> list[str]:
        return [shard.name for shard in source(shards).shards()]

    assert names(tmp_path / "x" / "b.parquet") == ["b.parquet"]
    assert names(tmp_path / "x") == ["a.parquet", "b.parquet"]
    assert names(tmp_path / "*" / "*.parquet") == ["x/a.parquet", "x/b.parquet", "y/a.parquet"]
    assert names(tmp_path / "**" / "a.parquet") == ["x/a.parquet", "y/a.parquet"]
    with pytest.raises(CorpusError, match=r"corpus\.shards: '.*z' is no Parquet file; give one, a folder"):
        names(tmp_path / "z")


def test_a_shard_is_read_as_a_stream(tmp_path: Path) -> None:
    """The first rows come without the row groups behind them, one of which cannot be read."""
    path = write_parquet(tmp_path / "a.parquet", [sample(n) for n in range(100)], group=50)
    scratch(path, 1)
    (shard,) = source(path).shards()
    assert len(list(islice(shard.samples(), 50))) == 50


def test_the_version_sees_that_a_shard_has_changed(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [sample(0)])
    before = source(path).version()
    assert source(path).version() == before
    named = settings(path, licence="cc0-1.0", dataset="me/birds")
    assert ParquetSource(named, CARDS, 0).version() == before, "what the model card says makes no other corpus"
    write_parquet(tmp_path / "a.parquet", [sample(0), sample(1)])
    assert source(path).version() != before


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["image", "language"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    given = {k: v for k, v in sample(0).items() if k != column}
    path = write_parquet(tmp_path / "a.parquet", [given])
    assert f"{path}: has no column '{column}' (it has id, " in refused(path)
    assert "needs image, language, and may have audio, text, id, speaker" in refused(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audio": 3}, "column 'audio' is int64; store it as bytes, a path, or a struct of bytes and path"),
        ({"image": {"data": b""}}, "column 'image' is struct<data: binary>; store it as bytes"),
        ({"audio": [0.5, 0.25]}, "column 'audio' is list<"),
        ({"text": 0.5}, "column 'text' is double; store it as text"),
        ({"speaker": ["anna"]}, "column 'speaker' is list<"),
        ({"language": "de"}, "row 1: language 'de' is not in the recipe's languages (en, ar)"),
        ({"language": None}, "row 1: has no language; give one of the recipe's (en, ar)"),
        ({"split": "dev"}, "row 1: split 'dev' is not one of train, validation, test"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (column,) = changes
    given = [sample(0), sample(1, **changes)]
    if column not in ("language", "split"):
        given[0][column] = changes[column]
    inferred: dict[str, Any] = {} if column not in ("audio", "image") else {column: None}
    path = write_parquet(tmp_path / "a.parquet", given, **inferred)
    assert str(path) in refused(path)
    assert said in refused(path)


# --- what is set aside ------------------------------------------------------------------------------------------


def test_a_torn_shard_is_one_entry(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / "in" / f"{number}.parquet", [sample(10 * number + n) for n in range(10)])
    cut(tmp_path / "in" / "1.parquet")
    corpus, entries = prepared(tmp_path / "in", tmp_path / "made")
    assert list(corpus.column("id")) == [f"s{n:04d}" for n in (*range(10), *range(20, 30))]
    (entry,) = entries
    assert (entry.id, entry.shard, entry.rows) == (None, "1.parquet", None)
    assert entry.reason.startswith("the shard is torn (")
    assert entry.sha256 == hashlib.sha256((tmp_path / "in" / "1.parquet").read_bytes()).hexdigest()
    assert corpus.shard_of.tolist() == [0] * 10 + [2] * 10
    assert rows_lost(entries, len(corpus), corpus.shards) == 10, "it counts as much as another shard"


def test_a_tear_within_costs_one_row_group(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [sample(n) for n in range(30)], group=10)
    scratch(path, 1)
    corpus, (entry,) = prepared(path, tmp_path / "made")
    assert list(corpus.column("id")) == [f"s{n:04d}" for n in (*range(10), *range(20, 30))]
    assert (entry.id, entry.rows) == (None, 10)
    assert entry.reason.startswith("a row group of the shard is torn (")


def test_samples_are_set_aside_with_id_reason_and_hash(tmp_path: Path) -> None:
    given = [sample(n) for n in range(20)]
    torn = given[4]["image"]["bytes"][:200]
    given[2]["audio"] = {"bytes": b"no sound", "path": None}
    given[4]["image"] = {"bytes": torn, "path": None}
    given[8]["image"] = None
    given[10]["image"] = {"bytes": None, "path": "nowhere.png"}
    corpus, entries = prepared(write_parquet(tmp_path / "a.parquet", given), tmp_path / "made")
    assert len(corpus) == 16
    assert [entry.id for entry in entries] == [f"s{n:04d}" for n in (2, 4, 8, 10)]
    assert {entry.shard for entry in entries} == {"a.parquet"}
    said = ("not audio", "truncated", "has no image", "no such picture")
    assert all(what in entry.reason for what, entry in zip(said, entries, strict=True))
    hashes = [hashlib.sha256(data).hexdigest() for data in (b"no sound", torn)]
    assert [entry.sha256 for entry in entries[:2]] == hashes
    assert entries[2].sha256 is entries[3].sha256 is None


def test_rows_may_lack_a_recording_or_a_text(tmp_path: Path) -> None:
    given = [sample(n) for n in range(10)]
    given[2]["audio"], given[3]["audio"] = None, {"bytes": None, "path": None}
    given[4]["text"], given[6]["text"] = None, "  "
    corpus, entries = prepared(write_parquet(tmp_path / "a.parquet", given), tmp_path / "made", limit=0)
    assert (len(corpus), entries) == (10, [])
    assert np.flatnonzero(~corpus.has_audio).tolist() == [2, 3]
    assert np.flatnonzero(~corpus.has_text).tolist() == [4, 6]
    assert not corpus.column("phrase").equal(True).any()


def test_a_shard_that_is_there_is_not_read_again(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [sample(0), sample(1, audio={"bytes": b"", "path": None})])
    _, entries = prepared(path, tmp_path / "made")
    cut(path)
    corpus, again = prepared(path, tmp_path / "made")
    assert len(corpus) == 1
    assert again == entries


def test_all_shards_torn(tmp_path: Path) -> None:
    for number in range(2):
        cut(write_parquet(tmp_path / "in" / f"{number}.parquet", [sample(number)]))
    with pytest.raises(
        CorpusError, match=r"2 of 2 samples cannot be read.*the first is 0\.parquet \(the shard is torn"
    ):
        prepared(tmp_path / "in", tmp_path / "made")
    assert not (tmp_path / "made").exists()
    assert len((tmp_path / "beside.jsonl").read_text().splitlines()) == 2
