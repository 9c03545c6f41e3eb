"""The corpus that users bring: a folder with `metadata.jsonl`, one object per recording.

Keys: audio, image, text, language; optional id, speaker, mood, label, image_id, split (train, validation
or test). Paths are relative to the folder. Where no row names a split, one is drawn by the hash of the
picture's name, so that a picture's recordings stay together.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError

from sta.data.audio import read_audio
from sta.errors import AudioError, CorpusError
from sta.recipe import FolderCorpus

ROWS_PER_SHARD = 500
MIN_TESTED = 2  # a distance between distributions needs two pictures of each
SPLIT_NAMES = ("train", "validation", "test")


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


def read_manifest(settings: FolderCorpus, languages: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that `metadata.jsonl` describes, with paths made absolute and a split each.

    Raises:
        CorpusError: the manifest is missing or empty, or a line does not hold; names file, line, key and value.
    """
    manifest = Path(settings.root) / "metadata.jsonl"
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"{manifest}: cannot be read ({error}); corpus.root must hold a UTF-8 metadata.jsonl"
        ) from error
    rows = [
        _row(line, f"{manifest}, line {number}", settings, languages)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    missing = [s for s in SPLIT_NAMES[:2] if s not in {r["split"] for r in rows}]
    if missing:
        raise CorpusError(
            f"{manifest}: its {len(rows)} rows leave the {missing[0]} split empty; add rows or name splits"
        )
    tested = sum(r["split"] == "test" for r in rows)
    if tested < MIN_TESTED:
        raise CorpusError(
            f"{manifest}: the test split has {tested} rows and needs {MIN_TESTED}; add rows or name splits"
        )
    ids = [r["id"] for r in rows]
    if len(set(ids)) < len(ids):
        raise CorpusError(f"{manifest}: id '{next(i for i in ids if ids.count(i) > 1)}' appears twice; ids must differ")
    return rows


def _row(line: str, where: str, settings: FolderCorpus, languages: Sequence[str]) -> dict[str, Any]:
    try:
        data = _Line.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the line"
        raise CorpusError(
            f"{where}: {key}: {first['msg'].lower()} (known keys: {', '.join(_Line.model_fields)})"
        ) from None
    if data.language not in languages:
        raise CorpusError(
            f"{where}: language '{data.language}' is not in the recipe's languages ({', '.join(languages)})"
        )
    if data.split not in (None, *SPLIT_NAMES):
        raise CorpusError(f"{where}: split '{data.split}' is not one of {', '.join(SPLIT_NAMES)}")
    root = Path(settings.root).resolve()
    image_id = data.image_id or data.image
    return {
        "id": data.id or data.audio, "image": {"bytes": None, "path": str(root / data.image)},
        "audio": {"bytes": None, "path": str(root / data.audio)}, "text": data.text, "language": data.language,
        "speaker": data.speaker, "mood": data.mood, "label": data.label, "image_id": image_id,
        "split": data.split or _split_of(image_id, settings),
    }  # fmt: skip


def _split_of(image_id: str, settings: FolderCorpus) -> str:
    place = zlib.crc32(image_id.encode()) / 2**32
    if place < settings.test:
        return "test"
    return "validation" if place < settings.test + settings.validation else "train"


def set_aside_unreadable(rows: Sequence[dict[str, Any]], settings: FolderCorpus, report: Path) -> list[dict[str, Any]]:
    """The rows whose recording and picture can be read; the others are listed in `report` with the reason.

    Raises:
        CorpusError: more than `corpus.max_bad` of the rows are unreadable; names the first.
    """
    reasons = {row["id"]: reason for row in rows if (reason := _unreadable(row))}
    if reasons:
        report.write_text(
            "".join(json.dumps({"id": i, "reason": r}) + "\n" for i, r in reasons.items()), encoding="utf-8"
        )
    if len(reasons) > settings.max_bad * len(rows):
        raise CorpusError(
            f"{next(iter(reasons.values()))} ({len(reasons)} of {len(rows)} rows are unreadable, more than "
            f"corpus.max_bad {settings.max_bad:g} allows)"
        )
    return [row for row in rows if row["id"] not in reasons]


def _unreadable(row: dict[str, Any]) -> str | None:
    try:
        read_audio(row["audio"]["path"])
    except AudioError as error:
        return str(error)
    path = row["image"]["path"]
    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        return f"{path}: no such picture"
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return f"{path}: not a readable picture ({error})"
    return None
