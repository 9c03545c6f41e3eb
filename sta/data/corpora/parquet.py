"""The corpus that users bring as Parquet: shards of any size, read row group by row group and never whole.

Columns: those of `sta/data/rows.py`, of which audio, image, text and language are needed. Audio and image are structs
of bytes and path, as Hugging Face stores them, or bytes, or paths, which are relative to the shard's folder. Where a
row names no split, one is drawn by its picture. A torn shard gives the rows that can be read; the rest is set aside.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sta.config.recipe import ParquetCorpus
from sta.data.corpora.user import check_row, split_of
from sta.data.rows import Row
from sta.data.unreadable import Found, Unreadable, hash_of
from sta.errors import CorpusError

NEEDED = ("audio", "image", "text", "language")
FILES = ("audio", "image")
WORDS = ("text", "language", "id", "speaker", "mood", "label", "image_id", "split")
ROWS_AT_ONCE = 32
READ_AT_ONCE = 1 << 20  # bytes; without it a whole column of a row group is read, which may be gigabytes
TORN = (OSError, pa.ArrowException, UnicodeDecodeError)


@dataclass(frozen=True)
class ParquetShard:
    """One shard: iterating gives its rows, and what of it is lost.

    Attributes:
        name: of the shard among the others, as the report and the ids of rows without one have it.
    """

    path: Path
    name: str
    settings: ParquetCorpus
    languages: tuple[str, ...]

    def __iter__(self) -> Iterator[Found]:
        """
        Raises:
            CorpusError: a column is missing or of a type that it cannot have, or a row names another language or split.
        """
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
                    yield self._row(data, number), self.name
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
        """The known columns that the shard has."""
        missing = [column for column in NEEDED if column not in schema.names]
        if missing:
            raise CorpusError(
                f"{self.path}: has no column '{missing[0]}' (it has {', '.join(schema.names) or 'none'}); a corpus "
                f"needs {', '.join(NEEDED)}, and may have {', '.join(WORDS[2:])}"
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

    def _row(self, data: dict[str, Any], number: int) -> Row:
        words = {name: None if data.get(name) is None else str(data[name]) for name in WORDS}
        check_row(f"{self.path}, row {number}", words["language"], words["split"], self.languages)
        files = {name: self._file(data[name]) for name in FILES}
        image_id = words["image_id"] or _name_of(files["image"])
        drawn = {"image_id": image_id, "split": words["split"] or split_of(image_id, self.settings)}
        return {**words, **files, **drawn, "id": words["id"] or f"{self.name}:{number}", "text": words["text"] or ""}

    def _file(self, value: Any) -> dict[str, Any]:
        """Bytes or an absolute path; both None where there is nothing."""
        held = value if isinstance(value, dict) else {"path" if isinstance(value, str) else "bytes": value}
        if held.get("bytes") is not None:
            return {"bytes": held["bytes"], "path": None}
        path = held.get("path")
        return {"bytes": None, "path": None if path is None else str(self.path.parent / path)}


def find_shards(settings: ParquetCorpus, languages: Sequence[str]) -> list[ParquetShard]:
    """The shards that a recipe means, in the order of their names.

    Raises:
        CorpusError: there are none.
    """
    pattern = Path(settings.shards)
    found = sorted(glob.glob(str(pattern / "*.parquet" if pattern.is_dir() else pattern), recursive=True))
    paths = [Path(path).resolve() for path in found if Path(path).is_file()]
    if not paths:
        raise CorpusError(
            f"corpus.shards: '{settings.shards}' is no Parquet file; give one, a folder that holds *.parquet, or a "
            "pattern such as data/*.parquet"
        )
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return [ParquetShard(path, path.relative_to(root).as_posix(), settings, tuple(languages)) for path in paths]


def rows_of(shard: ParquetShard) -> int:
    """How many rows a shard says that it has; 0 where it is torn."""
    try:
        return int(pq.read_metadata(shard.path).num_rows)
    except TORN:
        return 0


def version_of(settings: ParquetCorpus) -> list[list[object]]:
    """What tells one state of the shards from another without reading them: path, size and time of change of each."""
    paths = [shard.path for shard in find_shards(settings, ())]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


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


def _name_of(image: dict[str, Any]) -> str:
    """A name that the same picture has in every row: its path, or the hash of its bytes."""
    if image["bytes"] is None:
        return image["path"] or ""
    return hashlib.sha256(image["bytes"]).hexdigest()[:16]
