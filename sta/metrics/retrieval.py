"""Retrieval between speech and pictures by SpeechCLIP's protocol (Shih et al. 2022).

Every caption is ranked against the unique pictures by dot product. Speech finds its picture if that
is in the first K; a picture finds its speech if any of its captions is. Equal scores count as in
random order, so a model that maps everything to one point gets chance and not a perfect score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from sta.metrics.rows import ResultKey, Row, bootstrap

RANKS = (1, 5, 10)


def unique_images(image_ids: Sequence[str], embeddings: Tensor) -> tuple[list[str], Tensor]:
    """Keep one embedding per picture of one per caption, [n, E] to [m, E]: the last of each id."""
    last = {image_id: index for index, image_id in enumerate(image_ids)}
    return list(last), embeddings[list(last.values())]


def hits(scores: Tensor, own: Tensor, rank: int) -> Tensor:
    """Compute per query the probability that one of its own is in the first `rank`; 0 or 1 where no scores tie.

    Args:
        scores: [queries, gallery], higher is nearer.
        own: bool [queries, gallery], what counts as found; at least one per query.
    """
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    tied = scores == best
    places = rank - (scores > best).sum(1)
    return _any_own(places, tied.sum(1), (tied & own).sum(1))


def _any_own(places: Tensor, total: Tensor, own: Tensor) -> Tensor:
    """Compute the probability that `places` of `total` items hold one of `own`: 1 - C(t-o,p)/C(t,p)."""
    total, foreign = total.double(), (total - own).double()
    places = places.double().clamp(min=0).minimum(total)
    enough = places > foreign
    drawn = places.minimum(foreign)
    log_none = (
        (foreign + 1).lgamma() - (foreign - drawn + 1).lgamma() - (total + 1).lgamma() + (total - drawn + 1).lgamma()
    )
    return torch.where(enough, 1.0, 1 - log_none.exp())


def retrieval_rows(
    speech: Tensor, images: Tensor, spoken_of: Sequence[str], image_ids: Sequence[str], **where: Unpack[ResultKey]
) -> list[Row]:
    """Compute rows `r1`, `r5` and `r10` in both directions.

    Args:
        speech: [n, E], one embedding per caption, normalised or not as the model compares them.
        images: [m, E], one embedding per picture.
        spoken_of: [n] id of the picture that each caption describes.
        image_ids: [m] unique ids; a picture without a caption is in the gallery but asks nothing.

    Raises:
        ValueError: lengths differ, an id is repeated or unknown, or an embedding is not finite.
    """
    own = _ownership(speech, images, spoken_of, image_ids)
    scores = speech.float() @ images.float().T  # [n, m]
    asked = own.any(0)
    directions = {"speech_to_image": (scores, own), "image_to_speech": (scores.T[asked], own.T[asked])}
    return [row for name, pair in directions.items() for row in direction_rows(name, *pair, **where)]


def direction_rows(direction: str, scores: Tensor, own: Tensor, **where: Unpack[ResultKey]) -> list[Row]:
    """Compute rows `r1`, `r5` and `r10` of one direction from scores [queries, gallery], as of `hits`."""
    rows = []
    for rank in RANKS:
        found = hits(scores, own, rank)
        chance = hits(torch.zeros_like(scores), own, rank).mean().item()
        rows.append(Row.of(f"r{rank}_{direction}", bootstrap(found.cpu().numpy()), len(found), chance, **where))
    return rows


def _ownership(speech: Tensor, images: Tensor, spoken_of: Sequence[str], image_ids: Sequence[str]) -> Tensor:
    """Return bool [n, m], which picture each caption describes, once the arguments are checked."""
    if (len(speech), len(images)) != (len(spoken_of), len(image_ids)) or speech.shape[1] != images.shape[1]:
        speech_shape, image_shape = tuple(speech.shape), tuple(images.shape)
        given = f"speech {speech_shape}, {len(spoken_of)} ids; images {image_shape}, {len(image_ids)} ids"
        raise ValueError(f"embeddings and ids do not fit: {given}")
    index = {image_id: i for i, image_id in enumerate(image_ids)}
    if len(index) != len(image_ids):
        raise ValueError("image ids repeat; pass them through unique_images first")
    unknown = sorted(set(spoken_of) - index.keys())
    if unknown:
        raise ValueError(f"captions of {len(unknown)} pictures that are not in the gallery, such as {unknown[0]!r}")
    if not (speech.isfinite().all() and images.isfinite().all()):
        raise ValueError("embeddings are not finite")
    column = torch.tensor([index[image_id] for image_id in spoken_of], device=speech.device)
    return column[:, None] == torch.arange(len(image_ids), device=speech.device)
