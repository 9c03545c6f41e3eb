"""Classes, distances and means over languages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sta.metrics.discriminant import Discriminant
from sta.metrics.judged import class_rows, mean_pairwise_distance, mean_rows, nearest_distance
from sta.metrics.rows import Interval, ResultKey, Row

WHERE = ResultKey(language="en", split="voice", condition="clean", system="speech")


def test_discriminant_ignores_what_differs_within_classes(generator: torch.Generator) -> None:
    """Two classes differ by one in a direction whose neighbours' spread is a hundred: the nearest mean is no help."""
    classes = torch.arange(40) % 2
    items = torch.randn(40, 6, generator=generator) * torch.tensor([0.1, 100, 1, 1, 1, 1])
    items[:, 0] += classes
    seen, unseen = items[:20], items[20:]
    found = Discriminant(seen, classes[:20], shrinkage=0.0).scores(unseen).argmax(1)
    assert (found == classes[20:]).all()
    means = torch.stack([seen[classes[:20] == c].mean(0) for c in (0, 1)])
    assert (torch.cdist(unseen, means).argmin(1) != classes[20:]).any()


def test_discriminant_of_few_items_and_of_single_ones(generator: torch.Generator) -> None:
    items = torch.randn(3, 50, generator=generator)
    assert Discriminant(items, torch.arange(3)).scores(items).argmax(1).tolist() == [0, 1, 2]


def test_class_rows_count_the_first_places_and_their_chance() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    top1, top2 = class_rows({"concept_top1": 1, "concept_top5": 2}, scores, torch.tensor([0, 1]), **WHERE)
    assert (top1.value, top1.chance, top1.n) == (0.5, 0.25, 2)
    assert (top2.value, top2.chance) == (1.0, 0.5)


def test_distances(generator: torch.Generator) -> None:
    items = F.normalize(torch.randn(5, 8, generator=generator), dim=-1)
    torch.testing.assert_close(nearest_distance(items[:2], items), torch.zeros(2), atol=1e-6, rtol=0)
    expected = 1 - (items[:1] @ items[1:].T).max()
    torch.testing.assert_close(nearest_distance(items[:1], items[1:])[0], expected)
    pairs = [1 - items[a] @ items[b] for a in range(5) for b in range(a)]
    torch.testing.assert_close(mean_pairwise_distance(items[None])[0], torch.stack(pairs).mean())


def test_mean_over_languages_needs_several() -> None:
    def row(language: str, value: float, metric: str = "style") -> Row:
        where = ResultKey(**{**WHERE, "language": language})
        return Row.of(metric, Interval(value, value - 0.1, value + 0.1), 10, 0.2, **where)

    rows = [row("en", 0.4), row("ar", 0.6), row("en", 0.3, "mood"), row("all", 0.0)]
    (mean,) = mean_rows(rows, ["en", "ar"])
    assert (mean.language, mean.metric, mean.n) == ("mean", "style", 20)
    assert (mean.value, mean.chance) == pytest.approx((0.5, 0.2))
    assert mean.high - mean.value == pytest.approx(0.1 / 2**0.5)
