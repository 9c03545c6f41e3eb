"""The one row schema that every corpus shares, and the prepared corpus on disk that the stages read.

Columns: `id, image, audio, text, language, speaker, mood, label, image_id, split, style, phrase`. A row always has a
picture, a language and a split. Without `audio` it serves tokenizer and teacher, without `text` it serves distillation
by the picture; speaker, mood, label and style (how the picture is drawn) are null where a corpus has none. `phrase`
says that the text is a few words, no whole caption. A prepared corpus is a folder of Arrow shards, memory-mapped, with
`attributes.jsonl` beside them where the truth about some pictures is known.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from sta.data.audio import read_audio
from sta.data.jsonlines import read_values
from sta.errors import CorpusError

if TYPE_CHECKING:
    import datasets

#: What training never had: engine: the synthesiser; people: a person's voice; phrase: the text; concept: the label;
#: style: how the picture is drawn.
TEST_SPLITS = ("seen", "voice", "combination", "both", "test", "engine", "people", "phrase", "concept", "style")
SPLITS = ("train", "validation", *TEST_SPLITS, "swap")

TEXTS = ("text", "language", "speaker", "mood", "label", "image_id", "split", "style")
MIXTURE = "mixture.json"  # in the folder of a mixture: how many shards each part has

Row = dict[str, Any]

#: What Pillow raises on files that are not what they say, beside OSError.
BROKEN_PICTURE = (
    SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error, Image.DecompressionBombError
)  # fmt: skip


def schema() -> datasets.Features:
    """Return the columns' types; audio and image hold a file's bytes or its path and are not decoded on access.

    The audio column has the layout of `datasets.Audio` but not its type, which needs FFmpeg even to store bytes.
    """
    import datasets

    text = datasets.Value("string")
    return datasets.Features(
        {
            "id": text,
            "image": datasets.Image(decode=False),
            "audio": {"bytes": datasets.Value("binary"), "path": text},
            **dict.fromkeys(TEXTS, text),
            "phrase": datasets.Value("bool"),
        }
    )


def file_column(source: bytes | str | None) -> dict[str, Any] | None:
    """Return what an audio or image column holds of a file's bytes or its path; None of nothing."""
    if source is None:
        return None
    return {"bytes": source, "path": None} if isinstance(source, bytes) else {"bytes": None, "path": source}


def write_shard(rows: Iterable[Row], path: Path) -> None:
    """Write rows as one Arrow shard, complete or absent; some hundred of them are held in memory.

    What a row leaves out is null, and `phrase` false.
    """
    from datasets.arrow_writer import ArrowWriter

    partial, columns = path.with_suffix(".writing"), schema()
    with ArrowWriter(features=columns, path=str(partial)) as writer:
        for row in rows:
            writer.write({**dict.fromkeys(columns), "phrase": False, **row})
        writer.finalize()
    partial.replace(path)


@dataclass(frozen=True)
class Truth:
    """What is known of one recording's picture: its kind, every attribute, and those the caption says."""

    kind: str
    attributes: dict[str, str]
    said: dict[str, str]


@dataclass(frozen=True)
class Sample:
    """A row as a corpus gives it.

    Attributes:
        row: columns of the schema; those that it leaves out are null.
        origin: the file that names it, with the line where it has lines.
        truth: what is known of its picture, if anything is.
    """

    row: Row
    origin: str
    truth: Truth | None = None


class Column:
    """One column of a corpus, of any length: values are read from the memory-mapped shards when they are asked for."""

    READ_AT_ONCE = 65_536

    def __init__(self, values: pa.ChunkedArray):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int | np.integer) -> Any:
        return self.values[int(row)].as_py()

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), self.READ_AT_ONCE):
            yield from self.values.slice(start, self.READ_AT_ONCE).to_pylist()

    def equal(self, value: str | bool) -> np.ndarray:
        """Return where the column has a value: bool [rows]."""
        return np.asarray(pc.fill_null(pc.equal(self.values, value), False))

    def counts(self, rows: np.ndarray | None = None) -> dict[str | None, int]:
        """Count how often each value occurs, in all rows or in some."""
        values = self.values if rows is None else self.values.take(pa.array(rows))
        return {pair["values"].as_py(): pair["counts"].as_py() for pair in pc.value_counts(values)}

    def valid(self) -> np.ndarray:
        """Return where the column has any value: bool [rows]."""
        return np.asarray(pc.is_valid(self.values))

    def numbered(self) -> np.ndarray:
        """Return the place of each row's value among the sorted values: [rows]; null is as the empty string."""
        coded = pc.fill_null(self.values, "").dictionary_encode().combine_chunks()
        names = coded.dictionary
        places = np.empty(len(names), np.int64)
        places[np.asarray(pc.sort_indices(names))] = np.arange(len(names))
        return places[np.asarray(coded.indices)]


@dataclass
class Corpus:
    """A prepared corpus: random access to its rows, all of which stay on disk, memory-mapped."""

    folder: Path

    @cached_property
    def _shards(self) -> list[datasets.Dataset]:
        shards = sorted((self.folder / "shards").glob("*.arrow"))
        if not shards:
            raise CorpusError(f"{self.folder}: holds no shards/*.arrow; run the prepare stage again")
        return [self._opened(path) for path in shards]

    def _opened(self, path: Path) -> datasets.Dataset:
        import datasets

        try:
            return datasets.Dataset.from_file(str(path))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise CorpusError(
                f"{path}: cut or changed ({' '.join(str(error).split()).rstrip('.')}); remove {self.folder} and run "
                "the prepare stage again"
            ) from error

    @cached_property
    def table(self) -> datasets.Dataset:
        """All rows."""
        import datasets

        return datasets.concatenate_datasets(self._shards)

    @property
    def shards(self) -> int:
        """How many shards hold the rows, empty ones among them."""
        return len(self._shards)

    @cached_property
    def shard_of(self) -> np.ndarray:
        """The number of each row's shard."""
        return np.repeat(np.arange(len(self._shards), dtype=np.int32), [len(shard) for shard in self._shards])

    @cached_property
    def part_of(self) -> np.ndarray:
        """The number of the part of a mixture that each row comes from; zeros where the corpus is no mixture."""
        path = self.folder / MIXTURE
        shards = json.loads(path.read_text(encoding="utf-8")) if path.exists() else [self.shards]
        return np.repeat(np.arange(len(shards)), shards)[self.shard_of]

    @cached_property
    def has_text(self) -> np.ndarray:
        """Where a row has a text: bool [rows]."""
        return np.asarray(pc.is_valid(self.table.data.column("text")))

    @cached_property
    def has_audio(self) -> np.ndarray:
        """Where a row has a recording: bool [rows]."""
        return np.asarray(pc.is_valid(self.table.data.column("audio")))

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> Column:
        """Return one light column: anything but audio and image; of nulls in a corpus prepared before there was one."""
        table = self.table.data
        known = name in table.column_names
        return Column(table.column(name) if known else pa.chunked_array([pa.nulls(len(self), pa.string())]))

    def select(self, split: str, language: str | None = None) -> np.ndarray:
        """Return the row numbers of a split, in one language or all."""
        rows = self.column("split").equal(split)
        if language is not None:
            rows &= self.column("language").equal(language)
        return np.flatnonzero(rows)

    def names(self, rows: Iterable[int]) -> list[str]:
        """Return the ids of some rows."""
        ids = self.column("id")
        return [str(ids[int(row)]) for row in rows]

    def waveform(self, row: int) -> np.ndarray:
        """Return the recording of a row that has one: float32 [T], 16 kHz."""
        source = payload(self.table[row]["audio"])
        assert source is not None
        return read_audio(source)

    def picture(self, row: int) -> Image.Image:
        """Return the picture of a row, RGB."""
        source = payload(self.table[row]["image"])
        assert source is not None
        return read_picture(source)

    @cached_property
    def image_index(self) -> tuple[np.ndarray, np.ndarray]:
        """(row -> number of its picture, number of a picture -> first row that shows it)."""
        picture_of = self.column("image_id").numbered()
        return picture_of, np.unique(picture_of, return_index=True)[1]

    @cached_property
    def truths(self) -> dict[str, Truth]:
        """Row id -> truth; empty where the corpus does not know it."""
        records = map(json.loads, read_values(self.folder / "attributes.jsonl"))
        return {r["id"]: Truth(r["kind"], r["attributes"], r["said"]) for r in records}


def payload(value: dict[str, Any] | None) -> bytes | str | None:
    """Return what an audio or image column holds: a file's bytes, or its path; None of nothing."""
    return None if value is None else value["bytes"] if value["bytes"] is not None else value["path"]


def read_picture(source: bytes | str) -> Image.Image:
    """Read the picture in a file or its bytes, RGB.

    Raises:
        CorpusError: it cannot be read to its end.
    """
    name = "the picture given as bytes" if isinstance(source, bytes) else source
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise CorpusError(f"{name}: no such picture") from None
    except (OSError, *BROKEN_PICTURE) as error:
        raise CorpusError(f"{name}: not a readable picture ({error})") from None
