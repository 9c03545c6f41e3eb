"""Numbers of classes and of distances between features: how many are right, how new drawings are, how they differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from sta.metrics.retrieval import hits
from sta.metrics.rows import MEAN, Interval, ResultKey, Row, bootstrap

GALLERY_BATCH = 8192


def class_rows(
    metrics: dict[str, int], scores: Tensor, classes: Tensor, **where: Unpack[ResultKey]
) -> list[Row]:  # fmt: skip
    """Compute a row of each metric: the share of items whose class is among the first, as many as the metric has.

    Args:
        metrics: name -> the number of places that count.
        scores: [n, classes], higher is nearer. classes: int64 [n], the right ones.
    """
    own = F.one_hot(classes, scores.shape[1]).bool()
    found = {name: hits(scores, own, rank) for name, rank in metrics.items()}
    chance = {name: min(1.0, rank / scores.shape[1]) for name, rank in metrics.items()}
    return [Row.of(name, bootstrap(right.numpy()), len(right), chance[name], **where) for name, right in found.items()]


def nearest_distance(features: Tensor, gallery: Tensor) -> Tensor:
    """Compute the cosine distance [n] of unit vectors [n, F] to the nearest of a gallery [m, F], read in parts."""
    best = torch.full((len(features),), -torch.inf)
    for start in range(0, len(gallery), GALLERY_BATCH):
        best = torch.maximum(best, (features @ gallery[start : start + GALLERY_BATCH].T).amax(1))
    return (1 - best).clamp(min=0)


def mean_pairwise_distance(features: Tensor) -> Tensor:
    """Compute the mean cosine distance of any two of each set of unit vectors, [n, k, F] to [n]; k is at least 2."""
    k, total = features.shape[1], features.sum(1).square().sum(-1)
    return (1 - (total - k) / (k * (k - 1))).clamp(min=0)


def mean_rows(rows: Iterable[Row], languages: Sequence[str]) -> list[Row]:
    """Average each number over the languages that have it, as language `mean`, where several have.

    Each language weighs the same. The interval is that of independent numbers.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.language in languages:
            groups.setdefault((row.metric, row.split, row.condition, row.system), []).append(row)
    return [_mean(found) for found in groups.values() if len(found) > 1]


def _mean(rows: Sequence[Row]) -> Row:
    first, k = rows[0], len(rows)
    value = sum(row.value for row in rows) / k
    half = math.sqrt(sum((row.high - row.low) ** 2 for row in rows)) / (2 * k)
    where = ResultKey(language=MEAN, split=first.split, condition=first.condition, system=first.system)
    chance = sum(row.chance for row in rows) / k
    return Row.of(
        first.metric, Interval(value, value - half, value + half), sum(row.n for row in rows), chance, **where
    )
