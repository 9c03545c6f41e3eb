"""Where the teacher places each label: the mean of its pictures and its names in all languages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sta.data.rows import Corpus
from sta.distributed.sharding import IGNORE_INDEX

READ_AT_ONCE = 65_536


@dataclass(frozen=True)
class Concepts:
    """The labels of the training rows.

    Attributes:
        centroids: float32 [labels, E], unit vectors.
        of_row: int64 [rows], the number of each row's label; `IGNORE_INDEX` where it has none that is trained on.
    """

    centroids: np.ndarray
    of_row: np.ndarray


def label_numbers(corpus: Corpus) -> np.ndarray:
    """Return the number of each row's label among all, sorted: int64 [rows], -1 where it has none."""
    column = corpus.column("label")
    return np.where(column.valid(), column.numbered(), -1)


def centroids_of(corpus: Corpus, image: np.ndarray, text: np.ndarray, readable: np.ndarray) -> Concepts:
    """Compute the labels' centroids over the training rows of all languages.

    Pictures and captions weigh alike, however many of each a label has; captions that the teacher does not read are
    left out.

    Args:
        image, text: the teacher's unit vectors of pictures [pictures, E] and captions [rows, E].
        readable: bool [rows], where the teacher reads the caption.
    """
    rows, label = corpus.select("train"), label_numbers(corpus)
    rows = rows[label[rows] >= 0]
    trained = np.unique(label[rows])
    number = np.full(label.max(initial=0) + 2, IGNORE_INDEX)  # the last is of no label
    number[trained] = np.arange(len(trained))
    of_row = number[label]
    return Concepts(class_vectors(corpus, rows, of_row, len(trained), image, text, readable), of_row)


def class_vectors(
    corpus: Corpus, rows: np.ndarray, of_row: np.ndarray, count: int, image: np.ndarray, text: np.ndarray,
    readable: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return unit vectors [count, E] of classes: of each the mean of its pictures' and the mean of its captions' mean.

    Args:
        rows: those that stand for their classes.
        of_row: int64 [rows of the corpus], the number of each row's class.
        image, text, readable: as of `centroids_of`.
    """
    image_of, read = corpus.image_index[0], rows[readable[rows]]
    sums = np.zeros((2, count, image.shape[1]), np.float32)
    for start in range(0, len(rows), READ_AT_ONCE):
        shown, said = rows[start : start + READ_AT_ONCE], read[start : start + READ_AT_ONCE]
        np.add.at(sums[0], of_row[shown], image[image_of[shown]])
        np.add.at(sums[1], of_row[said], text[said])
    return _unit(_unit(sums[0]) + _unit(sums[1]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [n, E] of length one; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
