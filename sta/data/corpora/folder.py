"""The corpus that users bring: a folder with `metadata.jsonl`, one object per row.

Keys: image, language; audio and text where there are any; optional id, speaker, mood, label, style, image_id, split
(train, validation or test). Paths are relative to the folder. Where a row names no split, one is drawn by the hash of
its picture's name, so that a picture's recordings stay together.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sta.config.cards import LanguageCard
from sta.config.recipe import CorpusSettings
from sta.config.yamlfile import AbsolutePath
from sta.data.corpora.base import CorpusShard, Outline, outline_of
from sta.data.corpora.user import UserSettings, UserSource, check_row, split_of, text_or_none
from sta.data.jsonlines import read_lines
from sta.data.row_checks import check_rows
from sta.data.rows import Column, Sample, file_column
from sta.errors import CorpusError

MANIFEST = "metadata.jsonl"
ROWS_PER_SHARD = 500


class FolderSettings(UserSettings):
    """A folder with `metadata.jsonl`: someone's own recordings and pictures."""

    root: AbsolutePath = Field(description="folder that holds metadata.jsonl, whose relative paths are relative to it")


class FolderSource(UserSource):
    """What `metadata.jsonl` of a folder describes."""

    Settings: ClassVar[type[CorpusSettings]] = FolderSettings
    settings: FolderSettings

    def __init__(self, settings: FolderSettings, cards: Mapping[str, LanguageCard], seed: int):
        super().__init__(settings, cards, seed)
        self.place = Path(settings.root)
        self.manifest = self.place / MANIFEST

    def check(self) -> None:
        """Refuse a folder without a manifest."""
        if not self.manifest.is_file():
            raise CorpusError(f"{self.manifest}: not there; corpus.root must hold a UTF-8 metadata.jsonl")

    def shards(self) -> Sequence[FolderShard]:
        """Return the rows of the manifest, as many together as a shard holds."""
        samples = self.read_manifest()
        return [
            FolderShard(tuple(samples[start : start + ROWS_PER_SHARD]))
            for start in range(0, len(samples), ROWS_PER_SHARD)
        ]

    def outline(self, most: int) -> Outline:
        """Count all rows, and take some of them from all over the manifest."""
        rows = [sample.row for sample in self.read_manifest()]
        some = rows[:: -(-len(rows) // most)]
        return outline_of(rows, some, 1.0, f"from {self.manifest} and {len(some)} of its rows", self.speech)

    def read_manifest(self) -> list[Sample]:
        """Read the rows that `metadata.jsonl` describes, with absolute paths and a split each."""
        manifest = self.manifest
        try:
            lines = read_lines(manifest)
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusError(
                f"{manifest}: cannot be read ({error}); corpus.root must hold a UTF-8 metadata.jsonl"
            ) from error
        samples = [self._sample(line, number) for number, line in enumerate(lines, 1) if line.strip()]
        origins: dict[str, str] = {}
        for sample in samples:
            if (before := origins.setdefault(sample.row["id"], sample.origin)) != sample.origin:
                raise CorpusError(
                    f"{manifest}: id '{sample.row['id']}' appears twice, in {before} and in {sample.origin}; ids must "
                    "differ (that of a row without one is its audio)"
                )
        if self.alone:  # before hours are spent on reading files
            speaks = self.speech.speaks if self.speech else lambda row: False
            spoken = np.array([s.row["audio"] is not None or speaks(s.row) for s in samples], bool)
            check_rows(str(manifest), lambda name: _column(samples, name), spoken, list(self.cards))
        return samples

    def _sample(self, line: str, number: int) -> Sample:
        where, root = f"{self.manifest}, line {number}", self.place.resolve()
        try:
            data = _Line.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the line"
            raise CorpusError(
                f"{where}: {key}: {first['msg'].lower()} (known keys: {', '.join(_Line.model_fields)})"
            ) from None
        check_row(where, data.language, data.split, list(self.cards))
        image_id = data.image_id or data.image
        row = {
            **data.model_dump(), "id": data.id or data.audio or f"{data.image}:{number}", "image_id": image_id,
            "image": file_column(str(root / data.image)), "text": text_or_none(data.text),
            "audio": file_column(None if data.audio is None else str(root / data.audio)),
            "split": data.split or split_of(image_id, self.settings),
        }  # fmt: skip
        return Sample(row, f"{MANIFEST}, line {number}")

    def version(self) -> object:
        """Return what tells one state of the folder from another without reading its recordings and pictures.

        That is the hash of the manifest, and size and time of change of each file that it names. What is wrong with
        the manifest is for `read_manifest` to say.
        """
        root = self.place.resolve()
        named = set[str]()
        try:
            text = (root / MANIFEST).read_bytes()
        except OSError:
            return [super().version(), None]
        for line in text.removeprefix(codecs.BOM_UTF8).split(b"\n"):
            with suppress(ValidationError):
                data = _Line.model_validate_json(line)
                named |= {data.image} | ({data.audio} if data.audio is not None else set())
        return [super().version(), hashlib.sha256(text).hexdigest(), [_state_of(root, name) for name in sorted(named)]]


@dataclass(frozen=True)
class FolderShard(CorpusShard):
    """Some rows of a manifest."""

    rows: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def samples(self) -> Iterator[Sample]:
        """Yield the rows."""
        return iter(self.rows)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    image: str
    language: str
    audio: str | None = None
    text: str | None = None
    id: str | None = None
    speaker: str | None = None
    mood: str | None = None
    label: str | None = None
    style: str | None = None
    image_id: str | None = None
    split: str | None = None


def _column(samples: Sequence[Sample], name: str) -> Column:
    return Column(pa.chunked_array([[sample.row[name] for sample in samples]], pa.string()))


def _state_of(root: Path, name: str) -> list[object]:
    try:
        found = (root / name).stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return [name, None, None]
    return [name, found.st_size, found.st_mtime_ns]
