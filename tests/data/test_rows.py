"""The corpus on disk: rows, splits, pictures and what is known of them."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets.arrow_writer import ArrowWriter
from PIL import Image

from sta.data.audio import wav_bytes, write_wav
from sta.data.rows import SPLITS, TEST_SPLITS, Column, Corpus, Truth, schema, write_shard
from sta.errors import CorpusError

WAVE = (0.5 * np.sin(np.arange(8000) / 5)).astype(np.float32)


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def row(name: str, split: str, language: str, image_id: str, colour: str = "red", **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "image": {"bytes": png(colour), "path": None}, "audio": {"bytes": wav_bytes(WAVE), "path": None},
        "text": f"text of {name}", "language": language, "speaker": None, "mood": None, "label": None,
        "image_id": image_id, "split": split, **changes,
    }  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "shards").mkdir()
    first = [row("a", "train", "en", "z", "red"), row("b", "train", "ar", "z", "red")]
    second = [row("c", "test", "en", "y", "blue", mood="sad"), row("d", "train", "en", "y", "blue")]
    write_shard(second, tmp_path / "shards" / "00001.arrow")
    write_shard(first, tmp_path / "shards" / "00000.arrow")
    return Corpus(tmp_path)


def test_rows_keep_the_order_of_the_shards(corpus: Corpus) -> None:
    assert len(corpus) == 4
    assert list(corpus.column("id")) == ["a", "b", "c", "d"]
    assert corpus.column("text")[2] == "text of c"
    assert list(corpus.column("mood")) == [None, None, "sad", None]
    assert list(corpus.table.features) == list(schema())


def test_a_column_counts_and_finds_its_values(corpus: Corpus) -> None:
    mood = corpus.column("mood")
    assert len(mood) == 4
    assert mood.equal("sad").tolist() == [False, False, True, False]
    assert mood.counts() == {None: 3, "sad": 1}
    assert corpus.column("split").counts(np.array([0, 2, 3])) == {"train": 2, "test": 1}
    assert mood[np.int64(2)] == mood[-2] == "sad"


def test_a_column_that_an_older_corpus_lacks_is_null(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "old" / "shards").mkdir(parents=True)
    with ArrowWriter(path=str(tmp_path / "old" / "shards" / "00000.arrow")) as writer:
        for of in corpus.table.remove_columns("style"):
            writer.write(of)
        writer.finalize()
    style = Corpus(tmp_path / "old").column("style")
    assert list(style) == [None] * 4
    assert style.counts(np.array([1, 2])) == {None: 2}


def test_a_column_is_read_in_parts(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Column, "READ_AT_ONCE", 3)
    assert list(corpus.column("id")) == ["a", "b", "c", "d"]


def test_values_are_numbered_as_python_sorts_them() -> None:
    words = [["b", "Z", "ا"], ["é", "b", "a", "zz"], ["Z"]]
    flat = [word for chunk in words for word in chunk]
    numbers = Column(pa.chunked_array(words, pa.string())).numbered()
    assert numbers.tolist() == np.unique(flat, return_inverse=True)[1].tolist()


def test_columns_stay_on_disk(tmp_path: Path) -> None:
    """A corpus of many captions may be larger than memory: to look at some of them must not take it all in."""
    (tmp_path / "shards").mkdir()
    rows = (row(f"r{n}", "train", "en", "z", "red") | {"text": "x" * 10_000} for n in range(400))
    write_shard(rows, tmp_path / "shards" / "00000.arrow")
    column, before = Corpus(tmp_path).column("text"), pa.total_allocated_bytes()
    tracemalloc.start()
    assert sum(len(column[n]) for n in range(0, 400, 7)) == 580_000
    peak = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert peak < 100_000, "of four million characters"


def test_select_by_split_and_language(corpus: Corpus) -> None:
    assert corpus.select("train").tolist() == [0, 1, 3]
    assert corpus.select("train", "en").tolist() == [0, 3]
    assert corpus.select("test", "ar").tolist() == []


def test_pictures_are_counted_once(corpus: Corpus) -> None:
    picture_of, first = corpus.image_index
    assert picture_of.tolist() == [1, 1, 0, 0]
    assert first.tolist() == [2, 0]
    assert [corpus.column("image_id")[i] for i in first] == ["y", "z"]


def test_payloads_come_from_bytes_or_from_a_path(corpus: Corpus, tmp_path: Path) -> None:
    np.testing.assert_allclose(corpus.waveform(0), WAVE, atol=1e-4)
    assert corpus.picture(2).getpixel((0, 0)) == (0, 0, 255)
    write_wav(tmp_path / "x.wav", WAVE[:4000])
    (tmp_path / "x.png").write_bytes(png("lime"))
    beside = tmp_path / "other"
    (beside / "shards").mkdir(parents=True)
    paths: dict[str, Any] = {
        k: {"bytes": None, "path": str(tmp_path / f)} for k, f in (("audio", "x.wav"), ("image", "x.png"))
    }
    write_shard([row("e", "train", "en", "x", **paths)], beside / "shards" / "00000.arrow")
    other = Corpus(beside)
    np.testing.assert_allclose(other.waveform(0), WAVE[:4000], atol=1e-4)
    assert other.picture(0).getpixel((0, 0)) == (0, 255, 0)


def test_truths(corpus: Corpus) -> None:
    assert corpus.truths == {}
    record = {"id": "a", "kind": "bird", "attributes": {"head": "red"}, "said": {}}
    (corpus.folder / "attributes.jsonl").write_text(json.dumps(record) + "\n")
    assert Corpus(corpus.folder).truths == {"a": Truth("bird", {"head": "red"}, {})}


def test_no_shards_is_said(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no shards"):
        len(Corpus(tmp_path))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_cut_shard_is_one_sentence(corpus: Corpus, kept: float) -> None:
    path = sorted((corpus.folder / "shards").glob("*.arrow"))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CorpusError, match=f"{path.name}: cut or changed .*; remove {corpus.folder} and") as error:
        len(Corpus(corpus.folder))
    assert "\n" not in str(error.value)


def test_a_shard_is_whole_or_absent(tmp_path: Path) -> None:
    def interrupted() -> Iterator[dict[str, Any]]:
        yield row("a", "train", "en", "z")
        raise KeyboardInterrupt

    path = tmp_path / "00000.arrow"
    with pytest.raises(KeyboardInterrupt):
        write_shard(interrupted(), path)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.arrow"))
    write_shard([row("a", "train", "en", "z")], path)
    assert [p.name for p in tmp_path.iterdir()] == ["00000.arrow"]


def test_split_names_agree() -> None:
    assert set(TEST_SPLITS) < set(SPLITS)
