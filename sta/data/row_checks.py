"""What the rows of a whole corpus must have, so that no later stage fails for want of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow.compute as pc

from sta.data.rows import TEST_SPLITS, Column
from sta.errors import CorpusError

MIN_TESTED = 2  # a distance between distributions needs two pictures of each


def check_rows(where: str, column: Callable[[str], Column], has_audio: np.ndarray, languages: Sequence[str]) -> None:
    """Refuse a corpus whose ids are not its rows' own, or that lacks rows which a later stage needs.

    A language without test recordings is left out of the evaluation.

    Args:
        column: gives the corpus's column of a name.
        has_audio: where a row has a recording, bool [rows].
        languages: those that are trained on; nothing is where there are none.

    Raises:
        CorpusError: one sentence that begins with `where`.
    """
    ids, splits = column("id"), column("split")
    training, count = splits.equal("train"), splits.counts()
    missing = [split for split in ("train", "validation") if languages and not count.get(split)]
    if missing:
        raise CorpusError(
            f"{where}: its {len(ids)} rows leave the {missing[0]} split empty; add rows, name splits, or "
            "change corpus.validation and corpus.test"
        )
    tested = sum(int((splits.equal(split) & has_audio).sum()) for split in TEST_SPLITS)
    if tested < MIN_TESTED:
        raise CorpusError(
            f"{where}: the test split has {tested} recordings and needs {MIN_TESTED}; add rows, name splits, or "
            "raise corpus.test"
        )
    heard = column("language").counts(np.flatnonzero(training & has_audio))
    if unheard := [code for code in languages if not heard.get(code)]:
        raise CorpusError(
            f"{where}: the train split has no recording in language '{unheard[0]}'; add rows or name splits, or take "
            "it from the recipe's languages"
        )
    _check_apart(where, column("image_id"), training)
    if pc.count_distinct(ids.values).as_py() < len(ids):
        twice = next(name for name, times in ids.counts().items() if times > 1)
        raise CorpusError(
            f"{where}: id '{twice}' appears twice; ids must differ (that of a row without one is its audio)"
        )


def _check_apart(where: str, pictures: Column, training: np.ndarray) -> None:
    """Refuse a picture that is trained on and tested: every measure would be of what was learnt by heart."""
    trained = pc.unique(pictures.values.filter(training))
    others = pc.unique(pictures.values.filter(~training))
    seen = others.filter(pc.is_in(others, value_set=trained))
    if len(seen):
        raise CorpusError(
            f"{where}: picture '{seen[0]}' is in the train split and in another; name one split for all rows of a "
            "picture, or for none"
        )
