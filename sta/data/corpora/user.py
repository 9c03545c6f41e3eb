"""What corpora that users bring share: what a row may say, how a split is drawn, and what the whole must have."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow.compute as pc

from sta.config.recipe import UserCorpus
from sta.data.rows import Column
from sta.errors import CorpusError

MIN_TESTED = 2  # a distance between distributions needs two pictures of each
SPLIT_NAMES = ("train", "validation", "test")


def check_row(where: str, language: str | None, split: str | None, languages: Sequence[str]) -> None:
    """Refuse a language that the recipe lacks, and a split that nobody knows."""
    if language is None:
        raise CorpusError(f"{where}: has no language; give one of the recipe's ({', '.join(languages)})")
    if language not in languages:
        raise CorpusError(f"{where}: language '{language}' is not in the recipe's languages ({', '.join(languages)})")
    if split not in (None, *SPLIT_NAMES):
        raise CorpusError(f"{where}: split '{split}' is not one of {', '.join(SPLIT_NAMES)}")


def split_of(image_id: str, settings: UserCorpus) -> str:
    """The split that is drawn for a picture, by the hash of its name: its recordings stay together."""
    place = zlib.crc32(image_id.encode()) / 2**32
    if place < settings.test:
        return "test"
    return "validation" if place < settings.test + settings.validation else "train"


def check_rows(where: str, column: Callable[[str], Column], languages: Sequence[str]) -> None:
    """Refuse a corpus whose ids are not its rows' own, or that lacks rows which a later stage needs.

    Every language is trained on; one without test rows is left out of the evaluation.

    Args:
        column: the corpus's column of a name.

    Raises:
        CorpusError: one sentence that begins with `where`.
    """
    ids, splits = column("id"), column("split")
    count = splits.counts()
    missing = [split for split in SPLIT_NAMES[:2] if not count.get(split)]
    if missing:
        raise CorpusError(
            f"{where}: its {len(ids)} rows leave the {missing[0]} split empty; add rows, name splits, or "
            "change corpus.validation and corpus.test"
        )
    if (tested := count.get("test", 0)) < MIN_TESTED:
        raise CorpusError(
            f"{where}: the test split has {tested} rows and needs {MIN_TESTED}; add rows, name splits, or "
            "raise corpus.test"
        )
    in_training = column("language").counts(np.flatnonzero(splits.equal("train")))
    if unheard := [code for code in languages if not in_training.get(code)]:
        raise CorpusError(
            f"{where}: the train split has no row in language '{unheard[0]}'; add rows or name splits, or take it from "
            "the recipe's languages"
        )
    _check_apart(where, column("image_id"), splits)
    if pc.count_distinct(ids.values).as_py() < len(ids):
        twice = next(name for name, times in ids.counts().items() if times > 1)
        raise CorpusError(
            f"{where}: id '{twice}' appears twice; ids must differ (that of a row without one is its audio)"
        )


def _check_apart(where: str, pictures: Column, splits: Column) -> None:
    """Refuse a picture that is trained on and tested: every measure would be of what was learnt by heart."""
    trained = pc.equal(splits.values, "train")
    others = pc.unique(pc.filter(pictures.values, pc.invert(trained)))
    seen = pc.filter(others, pc.is_in(others, value_set=pc.unique(pc.filter(pictures.values, trained))))
    if len(seen):
        raise CorpusError(
            f"{where}: picture '{seen[0]}' is in the train split and in another; name one split for all rows of a "
            "picture, or for none"
        )
