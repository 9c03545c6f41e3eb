"""Retrieval against torchmetrics, against known answers, and what must not change it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalHitRate

from sta.metrics.retrieval import RANKS, hits, retrieval_rows, unique_images
from sta.metrics.rows import ResultKey

WHERE: ResultKey = {"language": "en", "split": "seen", "condition": "clean", "system": "speech"}
sizes = st.tuples(st.integers(2, 30), st.integers(1, 5), st.integers(0, 1000))


def corpus(pictures: int, captions: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[str], list[str]]:
    """Random embeddings of `pictures` pictures with `captions` captions each; the speech is a noisy copy."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(pictures, 8, generator=generator)
    owner = torch.arange(pictures).repeat_interleave(captions)
    speech = images[owner] + 1.5 * torch.randn(len(owner), 8, generator=generator)
    ids = [f"picture-{i}" for i in range(pictures)]
    return speech, images, [ids[i] for i in owner], ids


def values(*arguments: object) -> dict[str, float]:
    return {r.metric: r.value for r in retrieval_rows(*arguments, **WHERE)}  # type: ignore[arg-type]


@settings(deadline=None, max_examples=15)
@given(sizes)
def test_agrees_with_torchmetrics_in_both_directions(size: tuple[int, int, int]) -> None:
    speech, images, spoken_of, ids = corpus(*size)
    found = values(speech, images, spoken_of, ids)
    own = torch.tensor([[a == b for b in ids] for a in spoken_of])
    scores = speech @ images.T
    for rank in RANKS:
        for direction, preds, target in (("speech_to_image", scores, own), ("image_to_speech", scores.T, own.T)):
            queries = torch.arange(len(preds))[:, None].expand_as(preds)
            reference = RetrievalHitRate(top_k=min(rank, preds.shape[1]))
            reference.update(preds.flatten(), target.flatten(), indexes=queries.flatten())
            assert found[f"r{rank}_{direction}"] == pytest.approx(reference.compute().item(), abs=1e-6)


@settings(deadline=None, max_examples=15)
@given(sizes)
def test_order_of_captions_and_pictures_does_not_matter(size: tuple[int, int, int]) -> None:
    speech, images, spoken_of, ids = corpus(*size)
    generator = torch.Generator().manual_seed(size[2])
    rows, columns = torch.randperm(len(speech), generator=generator), torch.randperm(len(images), generator=generator)
    shuffled = values(speech[rows], images[columns], [spoken_of[i] for i in rows], [ids[i] for i in columns])
    assert shuffled == pytest.approx(values(speech, images, spoken_of, ids))


@settings(deadline=None, max_examples=15)
@given(sizes)
def test_perfect_embeddings_give_one(size: tuple[int, int, int]) -> None:
    pictures, captions, _ = size
    images = torch.eye(pictures)
    ids = [str(i) for i in range(pictures)]
    found = values(images.repeat_interleave(captions, 0), images, [i for i in ids for _ in range(captions)], ids)
    assert set(found.values()) == {1.0}


def test_known_answer() -> None:
    speech = torch.tensor([[1.0, 0.9, 0.0], [1.0, 0.9, 0.0], [0.0, 0.0, 1.0], [0.0, 0.1, 0.2]])
    found = values(speech, torch.eye(3), ["a", "b", "c", "b"], ["a", "b", "c"])
    assert found["r1_speech_to_image"] == 0.5  # captions 0 and 2
    # picture a ties its own caption with a foreign one; b is 0.9, 0.9 (own and foreign); c is found
    assert found["r1_image_to_speech"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found["r5_speech_to_image"] == found["r5_image_to_speech"] == 1


def test_collapsed_model_gets_chance_not_a_perfect_score() -> None:
    _, _, spoken_of, ids = corpus(40, 5, 0)
    for row in retrieval_rows(torch.ones(200, 8), torch.ones(40, 8), spoken_of, ids, **WHERE):
        assert row.value == pytest.approx(row.chance)
        assert row.value < 0.3


def test_chance_is_known_and_is_what_noise_gets() -> None:
    _, _, spoken_of, ids = corpus(100, 2, 0)
    chances = {
        r.metric: r.chance for r in retrieval_rows(torch.ones(200, 8), torch.ones(100, 8), spoken_of, ids, **WHERE)
    }
    assert chances["r5_speech_to_image"] == pytest.approx(0.05)
    assert chances["r5_image_to_speech"] == pytest.approx(1 - math.comb(198, 5) / math.comb(200, 5))
    generator = torch.Generator().manual_seed(0)
    noise = [
        values(torch.randn(200, 8, generator=generator), torch.randn(100, 8, generator=generator), spoken_of, ids)
        for _ in range(30)
    ]
    for metric, chance in chances.items():
        assert sum(n[metric] for n in noise) / 30 == pytest.approx(chance, abs=0.015)


def test_hits_rise_with_rank_and_reach_one_at_the_gallery() -> None:
    scores, own = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)), torch.eye(9).repeat(6, 1)[:50].bool()
    means = [hits(scores, own, rank).mean().item() for rank in range(10)]
    assert means == sorted(means)
    assert (means[0], means[9]) == (0.0, 1.0)


def test_unique_images_keep_the_last_of_each_id() -> None:
    ids, images = unique_images(["a", "b", "a"], torch.tensor([[1.0], [2.0], [3.0]]))
    assert (ids, images.tolist()) == (["a", "b"], [[3.0], [2.0]])


def test_picture_without_caption_distracts_but_does_not_ask() -> None:
    rows = retrieval_rows(torch.tensor([[1.0, 2.0]]), torch.eye(2), ["a"], ["a", "b"], **WHERE)
    assert {r.metric: (r.value, r.n) for r in rows if r.metric.startswith("r1_")} == {
        "r1_speech_to_image": (0.0, 1),
        "r1_image_to_speech": (1.0, 1),
    }


@pytest.mark.parametrize(
    ("speech", "images", "spoken_of", "ids", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 3), ["a"], ["a", "b"], "do not fit"),
        (torch.ones(1, 3), torch.ones(2, 4), ["a"], ["a", "b"], "do not fit"),
        (torch.ones(1, 3), torch.ones(2, 3), ["a"], ["a", "a"], "repeat"),
        (torch.ones(1, 3), torch.ones(2, 3), ["z"], ["a", "b"], "'z'"),
        (torch.full((1, 3), math.nan), torch.ones(2, 3), ["a"], ["a", "b"], "not finite"),
    ],
)
def test_what_does_not_fit_is_an_error(
    speech: torch.Tensor, images: torch.Tensor, spoken_of: list[str], ids: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_rows(speech, images, spoken_of, ids, **WHERE)
