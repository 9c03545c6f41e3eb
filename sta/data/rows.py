"""The one row schema that every corpus shares, and the corpus on disk that the stages read.

Columns: `id, image, audio, text, language, speaker, mood, label, image_id, split`; speaker, mood and
label are null where a corpus has none. A corpus is a folder of Arrow shards, memory-mapped, with `attributes.jsonl`
beside them where the truth about the pictures is known (Garden).
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from PIL import Image

from sta.data.audio import read_audio
from sta.errors import CorpusError

SPLITS = ("train", "validation", "test", "seen", "voice", "combination", "both", "swap")
TEST_SPLITS = ("seen", "voice", "combination", "both", "test")


Row = dict[str, Any]

#: What Pillow raises on files that are not what they say, beside OSError.
BROKEN_PICTURE = (
    SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, zlib.error, Image.DecompressionBombError
)  # fmt: skip


def schema() -> datasets.Features:
    """The columns' types; audio and image hold a file's bytes or its path and are not decoded on access.

    The audio column has the layout of `datasets.Audio` but not its type, which needs FFmpeg even to store bytes.
    """
    text = datasets.Value("string")
    return datasets.Features(
        {
            "id": text,
            "image": datasets.Image(decode=False),
            "audio": {"bytes": datasets.Value("binary"), "path": text},
            **{name: text for name in ("text", "language", "speaker", "mood", "label", "image_id", "split")},
        }
    )


def write_shard(rows: Iterable[Row], path: Path) -> None:
    """Write rows as one Arrow shard, complete or absent; some hundred of them are held in memory."""
    partial = path.with_suffix(".writing")
    with ArrowWriter(features=schema(), path=str(partial)) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    partial.replace(path)


@dataclass(frozen=True)
class Truth:
    """What is known of one recording's picture: its kind, every attribute, and those the caption says."""

    kind: str
    attributes: dict[str, str]
    said: dict[str, str]


@dataclass
class Corpus:
    """A prepared corpus: random access to its rows, light columns in memory, audio and pictures on disk."""

    folder: Path
    _columns: dict[str, list[Any]] = field(default_factory=dict)

    @cached_property
    def _shards(self) -> list[datasets.Dataset]:
        shards = sorted((self.folder / "shards").glob("*.arrow"))
        if not shards:
            raise CorpusError(f"{self.folder}: holds no shards/*.arrow; run the prepare stage again")
        return [datasets.Dataset.from_file(str(p)) for p in shards]

    @cached_property
    def table(self) -> datasets.Dataset:
        return datasets.concatenate_datasets(self._shards)

    @property
    def shards(self) -> int:
        """How many shards hold the rows, empty ones among them."""
        return len(self._shards)

    @cached_property
    def shard_of(self) -> np.ndarray:
        """The number of each row's shard."""
        return np.repeat(np.arange(len(self._shards)), [len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> list[Any]:
        """One light column (anything but audio and image) as a list."""
        if name not in self._columns:
            self._columns[name] = list(self.table[name])
        return self._columns[name]

    def select(self, split: str, language: str | None = None) -> np.ndarray:
        """Row numbers of a split, in one language or all."""
        rows = np.array(self.column("split")) == split
        if language is not None:
            rows &= np.array(self.column("language")) == language
        return np.flatnonzero(rows)

    def names(self, rows: Iterable[int]) -> list[str]:
        """The ids of some rows."""
        ids = self.column("id")
        return [str(ids[int(row)]) for row in rows]

    def waveform(self, row: int) -> np.ndarray:
        """The recording of a row: float32 [T], 16 kHz."""
        source = payload(self.table[row]["audio"])
        assert source is not None
        return read_audio(source)

    def picture(self, row: int) -> Image.Image:
        """The picture of a row, RGB."""
        source = payload(self.table[row]["image"])
        assert source is not None
        return read_picture(source)

    @cached_property
    def image_index(self) -> tuple[np.ndarray, np.ndarray]:
        """(row -> number of its picture, number of a picture -> first row that shows it)."""
        _, first, inverse = np.unique(self.column("image_id"), return_index=True, return_inverse=True)
        return inverse, first

    @cached_property
    def truths(self) -> dict[str, Truth]:
        """Row id -> truth; empty where the corpus does not know it."""
        path = self.folder / "attributes.jsonl"
        if not path.exists():
            return {}
        records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return {r["id"]: Truth(r["kind"], r["attributes"], r["said"]) for r in records}


def payload(value: dict[str, Any]) -> bytes | str | None:
    """What an audio or image column holds: a file's bytes, or its path."""
    return value["bytes"] if value["bytes"] is not None else value["path"]


def read_picture(source: bytes | str) -> Image.Image:
    """The picture in a file or its bytes, RGB.

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
