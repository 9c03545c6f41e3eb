"""What is made of every recording and every picture, some hundred at a time: each part is a file, complete or absent.

So any process can make any part, and an interrupted preparation goes on with the parts that it lacks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from sta.config.limits import SAMPLE_RATE
from sta.data.cache import write_atomically
from sta.data.rows import Corpus

ITEMS_PER_PART = 500


def make_tasks(
    make: Callable[..., np.ndarray], corpus: Path, rows: Sequence[int], folder: Path, how: object
) -> list[tuple[Any, ...]]:
    """Return the arguments of `make_part` for each stretch of the rows."""
    (folder / "parts").mkdir(exist_ok=True)
    starts = range(0, len(rows), ITEMS_PER_PART)
    return [
        (make, corpus, rows[start : start + ITEMS_PER_PART], folder / "parts" / f"{number:05d}.npy", how)
        for number, start in enumerate(starts)
    ]


def make_part(make: Callable[..., np.ndarray], corpus: Path, rows: Sequence[int], target: Path, how: object) -> int:
    """Write what `make` makes of some rows as `target`, unless it is there; returns how many rows they are."""
    if not target.exists():
        writing = target.with_suffix(".writing")
        with writing.open("wb") as file:
            np.save(file, make(_corpus(corpus), rows, target, how))
        os.replace(writing, target)
    return len(rows)


@lru_cache(maxsize=1)
def _corpus(folder: Path) -> Corpus:
    return Corpus(folder)


def extract_features(
    corpus: Corpus, rows: Sequence[int], target: Path, features: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the features of some rows, end to end, none of one without a recording; lengths go beside `target`."""
    nothing = features(np.zeros(SAMPLE_RATE, np.float32))[:0]
    pieces = [features(corpus.waveform(row)) if corpus.has_audio[row] else nothing for row in rows]
    write_atomically(target.with_suffix(".json"), json.dumps([len(piece) for piece in pieces]).encode())
    return np.concatenate(pieces)


def load_images(corpus: Corpus, rows: Sequence[int], target: Path, size: int) -> np.ndarray:
    """Return the pictures of some rows, uint8 [n, H, W, 3]."""
    return np.stack([np.asarray(ImageOps.fit(corpus.picture(row), (size, size))) for row in rows])


def parts_of(folder: Path) -> list[Path]:
    """Return the parts that were made, in order."""
    return sorted((folder / "parts").glob("*.npy"))


def lengths_of(folder: Path) -> list[int]:
    """Return how long each piece of what `extract_features` made is."""
    return [n for part in parts_of(folder) for n in json.loads(part.with_suffix(".json").read_text())]


def pieces_of(folder: Path) -> Iterator[np.ndarray]:
    """Yield what `extract_features` made of each row, in order."""
    for part in parts_of(folder):
        values, start = np.load(part, mmap_mode="r"), 0
        for length in json.loads(part.with_suffix(".json").read_text()):
            yield values[start : start + length]
            start += length


def remove_parts(folder: Path) -> None:
    """Remove the parts, once they are joined."""
    shutil.rmtree(folder / "parts")
