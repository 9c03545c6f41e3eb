"""The corpus that users bring as Parquet: shards of any size, read row group by row group and never whole.

Columns: those of `sta/data/rows.py`, of which image and language are needed. Audio and image are structs of bytes and
path, as Hugging Face stores them, or bytes, or paths, which are relative to the shard's folder. Where a row names no
split, one is drawn by its picture. A torn shard gives the rows that can be read; the rest is set aside.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sta.config.cards import LanguageCard
from sta.config.recipe import CorpusSettings
from sta.config.yamlfile import AbsolutePath
from sta.data.corpora.base import CorpusShard
from sta.data.corpora.user import UserSettings, UserSource, check_row, split_of, text_or_none
from sta.data.rows import Sample, file_column
from sta.data.unreadable import Found, Unreadable, hash_of
from sta.errors import CorpusError

NEEDED = ("image", "language")
FILES = ("audio", "image")
WORDS = ("text", "language", "id", "speaker", "mood", "label", "style", "image_id", "split")
ROWS_AT_ONCE = 32
READ_AT_ONCE = 1 << 20  # bytes; without it a whole column of a row group is read, which may be gigabytes
TORN = (OSError, pa.ArrowException, UnicodeDecodeError)


class ParquetSettings(UserSettings):
    """Parquet shards of the row schema in `sta/data/rows.py`, read as a stream."""

    shards: AbsolutePath = Field(description="a Parquet file, a folder of them, or a pattern such as data/*.parquet")
    by_shards: bool = Field(
        False, description="train in an order in which each rank reads shards of its own: for more than fits in memory"
    )


class ParquetSource(UserSource):
    """Parquet shards, in the order of their names."""

    Settings: ClassVar[type[CorpusSettings]] = ParquetSettings
    settings: ParquetSettings

    def __init__(self, settings: ParquetSettings, cards: Mapping[str, LanguageCard], seed: int):
        super().__init__(settings, cards, seed)
        self.by_shards, self.place = settings.by_shards, Path(settings.shards)

    def check(self) -> None:
        """Refuse a path or pattern that names no shard."""
        self.shards()

    def shards(self) -> list[ParquetShard]:
        """Return the shards that the settings mean."""
        pattern = self.place / "*.parquet" if self.place.is_dir() else self.place
        found = sorted(glob.glob(str(pattern), recursive=True))
        paths = [Path(path).resolve() for path in found if Path(path).is_file()]
        if not paths:
            raise CorpusError(
                f"corpus.shards: '{self.settings.shards}' is no Parquet file; give one, a folder that holds *.parquet, "
                "or a pattern such as data/*.parquet"
            )
        root = Path(os.path.commonpath([path.parent for path in paths]))
        languages = tuple(self.cards)
        return [ParquetShard(path, path.relative_to(root).as_posix(), self.settings, languages) for path in paths]

    def version(self) -> object:
        """Return what tells one state of the shards from another: path, size and time of change of each."""
        states = [(str(shard.path), shard.path.stat()) for shard in self.shards()]
        return [super().version(), [[path, state.st_size, state.st_mtime_ns] for path, state in states]]


@dataclass(frozen=True)
class ParquetShard(CorpusShard):
    """One shard; the report, and the ids of rows without one, have its `name`."""

    path: Path
    name: str
    settings: ParquetSettings
    languages: tuple[str, ...]

    def __len__(self) -> int:
        """Return the rows that it says it has; 0 where it is torn."""
        try:
            return int(pq.read_metadata(self.path).num_rows)
        except TORN:
            return 0

    def samples(self) -> Iterator[Found]:
        """Yield the rows, and what is lost."""
        try:
            file = pq.ParquetFile(self.path, buffer_size=READ_AT_ONCE, page_checksum_verification=True)
        except TORN as error:
            yield self._torn(error, None)
            return
        with file:
            yield from self._rows(file)

    def _rows(self, file: pq.ParquetFile) -> Iterator[Found]:
        columns = self._columns(file.schema_arrow)
        lost, fault, first = 0, None, 0
        for group in range(file.num_row_groups):
            number, end = first, first + file.metadata.row_group(group).num_rows
            batches = self._batches(file, group, columns)
            while True:
                try:
                    batch = next(batches, None)
                except TORN as error:
                    lost, fault = lost + end - number, fault or error
                    break
                if batch is None:
                    break
                for data in batch:
                    yield self._sample(data, number)
                    number += 1
            first = end
        if fault is not None:
            yield self._torn(fault, lost)

    @staticmethod
    def _batches(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        for batch in file.iter_batches(ROWS_AT_ONCE, [group], columns, use_threads=False):
            yield batch.to_pylist()

    def _torn(self, error: Exception, rows: int | None) -> Unreadable:
        what = "the shard" if rows is None else "a row group of the shard"
        reason = f"{what} is torn ({' '.join(str(error).split()).rstrip('.')})"
        return Unreadable(None, self.name, reason, hash_of(self.path), rows)

    def _columns(self, schema: pa.Schema) -> list[str]:
        """Return the known columns that the shard has."""
        missing = [column for column in NEEDED if column not in schema.names]
        if missing:
            raise CorpusError(
                f"{self.path}: has no column '{missing[0]}' (it has {', '.join(schema.names) or 'none'}); a corpus "
                f"needs {', '.join(NEEDED)}, and may have {', '.join(c for c in (*FILES, *WORDS) if c not in NEEDED)}"
            )
        for columns, holds, what in (
            (FILES, _holds_files, "bytes, a path, or a struct of bytes and path"), (WORDS, _holds_words, "text")
        ):  # fmt: skip
            for column in (c for c in columns if c in schema.names):
                if not holds(schema.field(column).type):
                    raise CorpusError(
                        f"{self.path}: column '{column}' is {schema.field(column).type}; store it as {what}"
                    )
        return [column for column in (*FILES, *WORDS) if column in schema.names]

    def _sample(self, data: dict[str, Any], number: int) -> Sample:
        words = {name: None if data.get(name) is None else str(data[name]) for name in WORDS}
        check_row(f"{self.path}, row {number}", words["language"], words["split"], self.languages)
        image, audio = (self._file(data.get(name)) for name in ("image", "audio"))
        image_id = words["image_id"] or _name_of(image)
        row = {
            **words, "image": file_column(image), "audio": file_column(audio), "image_id": image_id,
            "split": words["split"] or split_of(image_id, self.settings),
            "id": words["id"] or f"{self.name}:{number}", "text": text_or_none(words["text"]),
        }  # fmt: skip
        return Sample(row, self.name)

    def _file(self, value: Any) -> bytes | str | None:
        """Return bytes or an absolute path; None where there is nothing."""
        held = value if isinstance(value, dict) else {"path" if isinstance(value, str) else "bytes": value}
        if held.get("bytes") is not None:
            return bytes(held["bytes"])
        path = held.get("path")
        return None if path is None else str(self.path.parent / path)


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name in ("bytes", "path") and _holds_files(field.type) for field in kind)
    return _is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_words(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_words(kind.value_type)
    return _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _name_of(image: bytes | str | None) -> str:
    """Return a name that the same picture has in every row: its path, or the hash of its bytes."""
    return hashlib.sha256(image).hexdigest()[:16] if isinstance(image, bytes) else image or ""
