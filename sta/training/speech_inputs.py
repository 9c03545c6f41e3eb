"""What an encoder reads of the corpus's recordings: their features, or frames of a frozen backbone, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sta.data.cache import key_of
from sta.data.store import Ragged
from sta.distributed.team import Team
from sta.models.augment import augment
from sta.models.backbones.pretrained import PretrainedBackbone
from sta.models.encoder import FRAME_MULTIPLE, LENGTH_MULTIPLE, SpeechEncoder
from sta.models.layers import length_mask
from sta.models.loading import half_file
from sta.training.caching import cache_ragged
from sta.training.runtime import bf16_autocast, forked_rng, step_seed
from sta.training.workspace import Workspace

VERSION = 1  # raised when other frames would come of the same recordings
SAMPLES_AT_ONCE = 32 * 16_000  # of a batch that a backbone is given; more are no faster on a CPU


@dataclass(frozen=True)
class SpeechInputs:
    """Features [S, F] of recordings.

    Attributes:
        store: of every item.
        rows: sorted, those that have items: the first copy of each, then the second, ...; None: every row is an item.
        copies: items of a row, each augmented otherwise.
        multiple: that lengths of batches are rounded up to.
    """

    store: Ragged
    rows: np.ndarray | None = None
    copies: int = 1
    multiple: int = LENGTH_MULTIPLE

    def first_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the first item of each row."""
        return rows if self.rows is None else np.searchsorted(self.rows, rows)

    def some_of(self, rows: np.ndarray, key: Sequence[int]) -> np.ndarray:
        """Return one item of each row, by the key of a step."""
        copies = np.random.default_rng(key).integers(self.copies, size=len(rows))
        return self.first_of(rows) + copies * (0 if self.rows is None else len(self.rows))

    def padded(self, items: np.ndarray, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return ([B, S, F], lengths [B]) of some items, as long as a batch of the items `among` has to be."""
        longest = int(self.store.lengths[items if among is None else among].max())
        return self.store.padded(items.tolist(), self.multiple, longest)


def open_inputs(
    workspace: Workspace, encoder: SpeechEncoder, device: torch.device, team: Team | None = None
) -> SpeechInputs:
    """Return what a recipe's encoder reads of recordings.

    Where that is frames of its frozen backbone, they are computed unless they are there, and the encoder is left with
    what reads them.
    """
    settings, backbone = workspace.recipe.encoder, encoder.acoustics
    if not settings.cache_frames:
        return SpeechInputs(workspace.features)
    assert isinstance(backbone, PretrainedBackbone)
    store, encoder.acoustics = Ragged(cache_backbone(workspace, backbone, device, team)), backbone.reader()
    rows = training_rows(workspace, workspace.recipe.languages)
    return SpeechInputs(store, rows, settings.frame_copies, FRAME_MULTIPLE)


def cache_backbone(
    workspace: Workspace, backbone: PretrainedBackbone, device: torch.device, team: Team | None = None
) -> Path:
    """Compute the frames of all training recordings, augmented as in distillation, each rank of the team its share."""
    recipe, stage = workspace.recipe, workspace.recipe.stages.distill
    how = [list(backbone.layers), backbone.pooling, recipe.encoder.frame_copies, stage.augment, stage.noise, stage.gain]
    key = key_of([VERSION, half_file(backbone.model.state_dict())[0], how, recipe.seed])
    rows = cache(lambda: training_rows(workspace, recipe.languages))

    def batches() -> list[np.ndarray]:
        return _batches(np.tile(workspace.features.lengths[rows()], recipe.encoder.frame_copies))

    def encode(items: np.ndarray, number: int) -> dict[str, Tensor]:
        backbone.to(device).eval()
        features, lengths = workspace.features.padded(rows()[items % len(rows())].tolist(), 1)
        torch.manual_seed(step_seed(recipe.seed, "backbone", number, 0))
        samples = backbone.inputs(torch.from_numpy(features).to(device))
        samples, sizes = augment(samples, torch.from_numpy(lengths), stage, backbone.feature_kind)
        with bf16_autocast(device):
            frames, sizes = backbone.layer_frames(samples, sizes.to(device))
        return {"values": frames[length_mask(sizes, frames.shape[1])], "lengths": sizes}

    with forked_rng(device):
        return cache_ragged(workspace.cache / f"backbone-{key}", batches, encode, "frames of the backbone", team)


def _batches(lengths: np.ndarray) -> list[np.ndarray]:
    """Return the numbers of recordings in batches of like length, longest first."""
    order, batches = np.argsort(-lengths, kind="stable"), []
    while len(order):
        count = max(1, SAMPLES_AT_ONCE // max(1, int(lengths[order[0]])))
        batches.append(order[:count])
        order = order[count:]
    return batches


def training_rows(workspace: Workspace, languages: Sequence[str]) -> np.ndarray:
    """Return the training rows with a recording in some languages, in order."""
    rows = np.concatenate([workspace.corpus.select("train", code) for code in languages])
    return np.sort(rows[workspace.corpus.has_audio[rows]])
