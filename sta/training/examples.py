"""Noise of the shapes that the corpus's items have, for who has no corpus: what example batches are made of."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sta.config.recipe import Recipe
from sta.models.backbones import backbone_class, backbone_of
from sta.models.backbones.pretrained import FRAMES_PER_SECOND, frame_width
from sta.models.encoder import FRAME_MULTIPLE, LENGTH_MULTIPLE
from sta.training.task import CorpusFacts

FRAMES_A_PIECE = 1.3  # stretches that the CTC head of a finished run reads per piece: 1.26 in English, 1.48 in Arabic

LIKE = 1.07  # the longest recording of a batch of like lengths against their mean; measured on Garden


def frames_read(recipe: Recipe, facts: CorpusFacts, seconds: float) -> int:
    """Return the frames of an utterance that a trained encoder gives: of each stretch it read, and one of prosody."""
    if not recipe.stages.distill.losses.get("ctc"):
        rate = 25 if recipe.encoder.backbone is None else FRAMES_PER_SECOND / recipe.encoder.frame_pooling
        return round(rate * seconds) + 1
    return round(FRAMES_A_PIECE * facts.pieces_a_second * seconds) + 1


def padded(length: float, multiple: int) -> int:
    """Return a length rounded up to a whole multiple, at least one."""
    return -(-max(1, round(length)) // multiple) * multiple


def in_batch(length: int) -> int:
    """Return what a recording of mean length takes with its padding, to the batch's longest and a whole multiple."""
    return round(LIKE * length) + LENGTH_MULTIPLE // 2


def pixels(size: int, side: int, rng: np.random.Generator) -> Tensor:
    """Return pictures: uint8 [size, side, side, 3]."""
    return torch.from_numpy(rng.integers(256, size=(size, side, side, 3), dtype=np.uint8))


def unit_vectors(size: int, width: int, rng: np.random.Generator) -> Tensor:
    """Return float32 [size, width]."""
    return F.normalize(torch.from_numpy(rng.standard_normal((size, width), dtype=np.float32)), dim=-1)


def captions(facts: CorpusFacts, known: int, size: int, seconds: float, rng: np.random.Generator) -> list[list[int]]:
    """Return pieces of captions as long as the speech, of a joint vocabulary of `known` pieces."""
    return rng.integers(1, 1 + known, size=(size, max(1, round(facts.pieces_a_second * seconds)))).tolist()  # type: ignore[no-any-return]


def speech(
    recipe: Recipe, facts: CorpusFacts, size: int, seconds: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return speech features [B, S, F] that change as often as a caption has pieces, and their lengths."""
    seconds = min(seconds, recipe.stages.distill.max_seconds)
    if recipe.encoder.cache_frames:
        length = round(FRAMES_PER_SECOND / recipe.encoder.frame_pooling * seconds)
        shape = (size, padded(LIKE * length + FRAME_MULTIPLE // 2, 1), frame_width(backbone_of(recipe.encoder)))
        frames = rng.standard_normal(shape, np.float32).astype(np.float16)
        return torch.from_numpy(frames), torch.full((size,), length)
    backbone = backbone_class(recipe.encoder.backbone)
    length = round(seconds * backbone.features_per_second)
    found = [backbone.example_features(rng, in_batch(length), facts.pieces_a_second) for _ in range(size)]
    return torch.from_numpy(np.stack(found)), torch.full((size,), length)
