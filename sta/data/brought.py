"""What corpora that users bring share: what a row may say, how a split is drawn, and what the whole must have."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pyarrow.compute as pc

from sta.data.rows import Column
from sta.errors import CorpusError
from sta.recipe import BroughtCorpus

MIN_TESTED = 2  # a distance between distributions needs two pictures of each
SPLIT_NAMES = ("train", "validation", "test")


def check_row(where: str, language: str | None, split: str | None, languages: Sequence[str]) -> None:
    """Refuse a language that the recipe lacks, and a split that nobody knows."""
    if language not in languages:
        raise CorpusError(f"{where}: language '{language}' is not in the recipe's languages ({', '.join(languages)})")
    if split not in (None, *SPLIT_NAMES):
        raise CorpusError(f"{where}: split '{split}' is not one of {', '.join(SPLIT_NAMES)}")


def split_of(image_id: str, settings: BroughtCorpus) -> str:
    """The split that is drawn for a picture, by the hash of its name: its recordings stay together."""
    place = zlib.crc32(image_id.encode()) / 2**32
    if place < settings.test:
        return "test"
    return "validation" if place < settings.test + settings.validation else "train"


def check_rows(where: str, ids: Column, splits: Column) -> None:
    """Refuse a corpus whose ids are not its rows' own, or that leaves a split empty.

    Raises:
        CorpusError: one sentence that begins with `where`.
    """
    count = splits.counts()
    missing = [split for split in SPLIT_NAMES[:2] if not count.get(split)]
    if missing:
        raise CorpusError(f"{where}: its {len(ids)} rows leave the {missing[0]} split empty; add rows or name splits")
    if (tested := count.get("test", 0)) < MIN_TESTED:
        raise CorpusError(f"{where}: the test split has {tested} rows and needs {MIN_TESTED}; add rows or name splits")
    if pc.count_distinct(ids.values).as_py() < len(ids):
        twice = next(name for name, times in ids.counts().items() if times > 1)
        raise CorpusError(f"{where}: id '{twice}' appears twice; ids must differ")
