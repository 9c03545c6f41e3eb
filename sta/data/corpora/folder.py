"""The corpus that users bring: a folder with `metadata.jsonl`, one object per recording.

Keys: audio, image, text, language; optional id, speaker, mood, label, image_id, split (train, validation
or test). Paths are relative to the folder. Where a row names no split, one is drawn by the hash of its
picture's name, so that a picture's recordings stay together.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from sta.config.recipe import FolderCorpus
from sta.data.corpora.user import check_row, check_rows, split_of
from sta.data.jsonlines import read_lines
from sta.data.rows import Column, Row
from sta.errors import CorpusError

MANIFEST = "metadata.jsonl"
ROWS_PER_SHARD = 500


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    audio: str
    image: str
    text: str
    language: str
    id: str | None = None
    speaker: str | None = None
    mood: str | None = None
    label: str | None = None
    image_id: str | None = None
    split: str | None = None


def read_manifest(settings: FolderCorpus, languages: Sequence[str]) -> list[tuple[Row, str]]:
    """The rows that `metadata.jsonl` describes, with paths made absolute and a split each, and the line of each.

    Raises:
        CorpusError: the manifest is missing or empty, or a line does not hold; names file, line, key and value.
    """
    manifest = Path(settings.root) / MANIFEST
    try:
        lines = read_lines(manifest)
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"{manifest}: cannot be read ({error}); corpus.root must hold a UTF-8 metadata.jsonl"
        ) from error
    rows = [
        (_row(line, f"{manifest}, line {number}", settings, languages), f"{MANIFEST}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    lines_of: dict[str, str] = {}
    for row, where in rows:
        if (before := lines_of.setdefault(row["id"], where)) != where:
            raise CorpusError(
                f"{manifest}: id '{row['id']}' appears twice, in {before} and in {where}; ids must differ (that of a "
                "row without one is its audio)"
            )
    check_rows(str(manifest), lambda name: _column([row[name] for row, _ in rows]), languages)
    return rows


def _column(values: list[str]) -> Column:
    return Column(pa.chunked_array([values], pa.string()))


def version_of(settings: FolderCorpus) -> list[object]:
    """What tells one state of the folder from another without reading its recordings and pictures.

    That is the hash of the manifest, and size and time of change of each file that it names. What is wrong with the
    manifest is for `read_manifest` to say.
    """
    root = Path(settings.root).resolve()
    manifest, named = root / MANIFEST, set[str]()
    try:
        text = manifest.read_bytes()
    except OSError:
        return [str(manifest), None]
    for line in text.removeprefix(codecs.BOM_UTF8).split(b"\n"):
        with suppress(ValidationError):
            data = _Line.model_validate_json(line)
            named |= {data.audio, data.image}
    return [str(manifest), hashlib.sha256(text).hexdigest(), [_state_of(root, name) for name in sorted(named)]]


def _state_of(root: Path, name: str) -> list[object]:
    try:
        found = (root / name).stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return [name, None, None]
    return [name, found.st_size, found.st_mtime_ns]


def in_shards(rows: Sequence[tuple[Row, str]]) -> list[Sequence[tuple[Row, str]]]:
    """The rows, as many together as a shard holds."""
    return [rows[start : start + ROWS_PER_SHARD] for start in range(0, len(rows), ROWS_PER_SHARD)]


def _row(line: str, where: str, settings: FolderCorpus, languages: Sequence[str]) -> Row:
    try:
        data = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the line"
        raise CorpusError(
            f"{where}: {key}: {first['msg'].lower()} (known keys: {', '.join(_Line.model_fields)})"
        ) from None
    check_row(where, data.language, data.split, languages)
    root = Path(settings.root).resolve()
    image_id = data.image_id or data.image
    return {
        "id": data.id or data.audio, "image": {"bytes": None, "path": str(root / data.image)},
        "audio": {"bytes": None, "path": str(root / data.audio)}, "text": data.text, "language": data.language,
        "speaker": data.speaker, "mood": data.mood, "label": data.label, "image_id": image_id,
        "split": data.split or split_of(image_id, settings),
    }  # fmt: skip
