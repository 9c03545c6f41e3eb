"""What the frozen encoders make of a corpus's recordings, and what its captions are as their pieces."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sta.data.cache import key_of
from sta.data.store import Ragged
from sta.distributed.team import Team
from sta.models.augment import augment
from sta.models.bottleneck import SpeechBottleneck
from sta.models.encoder import EncoderOutput, SpeechEncoder
from sta.models.loading import load_network
from sta.training.caching import cache_ragged
from sta.training.runtime import bf16_autocast, forked_rng, step_seed
from sta.training.speech_inputs import SpeechInputs, open_inputs, training_rows
from sta.training.workspace import Workspace, fingerprint


def load_speech(workspace: Workspace, group: str, stage: str | None = None) -> tuple[SpeechEncoder, SpeechBottleneck]:
    """Load encoder and bottleneck of a group, frozen: as distilled, or with the bottleneck that `stage` tuned."""
    distilled = workspace.final(f"distill-{group}")
    tuned = workspace.final(stage) / f"bottleneck-{group}" if stage else distilled / "bottleneck"
    return load_network(SpeechEncoder, distilled / "encoder"), load_network(SpeechBottleneck, tuned)


def batches_by_length(features: Ragged, rows: np.ndarray, size: int = 64) -> list[np.ndarray]:
    """Return rows in batches of like length, longest first, so that little is padding."""
    order = rows[np.argsort(-features.lengths[rows], kind="stable")]
    return [order[i : i + size] for i in range(0, len(order), size)]


def encode_rows(
    encoder: SpeechEncoder, workspace: Workspace, inputs: SpeechInputs, rows: np.ndarray, disturbed: bool = False
) -> EncoderOutput:
    """Encode some rows, as their inputs are or augmented as in distillation."""
    features, lengths = inputs.padded(inputs.first_of(rows))
    languages, stage = workspace.corpus.column("language"), workspace.recipe.stages.distill
    disturb = partial(augment, stage=stage, kind=encoder.acoustics.feature_kind) if disturbed else None
    return encoder.encode(features, lengths, [languages[row] for row in rows], disturb)


def caption_pieces(workspace: Workspace, encoder: SpeechEncoder, rows: np.ndarray) -> list[list[int]]:
    """Return the captions of some rows as pieces of the encoder's CTC head."""
    codes = workspace.corpus.column("language")
    return [
        encoder.offset_pieces(workspace.pieces[codes[row]].encode(workspace.spellings[row]), codes[row]) for row in rows
    ]


def cached_frames(workspace: Workspace, group: str, device: torch.device, disturbed: bool = False) -> Ragged:
    """Return the frozen encoder's float16 frames of the group's training rows, numbered by their place in `rows`.

    Args:
        disturbed: encode each row once with the augmentation and the noise of the distill stage (log-mel only).
    """
    return Ragged(cache_frames(workspace, group, device, disturbed))


def cache_frames(
    workspace: Workspace, group: str, device: torch.device, disturbed: bool = False, team: Team | None = None
) -> Path:
    """Compute what `cached_frames` gives, each rank of the team its share."""
    encoder_name = fingerprint(workspace.final(f"distill-{group}") / "encoder")
    folder = workspace.cache / f"frames-{encoder_name}"
    if disturbed:
        stage = workspace.recipe.stages.distill
        name = key_of([encoder_name, stage.augment, stage.accent, stage.noise, stage.gain, workspace.recipe.seed])
        folder = workspace.cache / f"disturbed-frames-{name}"

    @cache
    def speech() -> tuple[SpeechEncoder, SpeechInputs]:
        encoder = load_speech(workspace, group)[0].to(device)
        return encoder, open_inputs(workspace, encoder, device)

    def batches() -> list[np.ndarray]:
        return batches_by_length(workspace.features, group_rows(workspace, group))

    def encode(rows: np.ndarray, number: int) -> dict[str, Tensor]:
        network, inputs = speech()  # before the seed, as loading draws too
        torch.manual_seed(step_seed(workspace.recipe.seed, "frames", number, 0))
        with bf16_autocast(device):
            out = encode_rows(network, workspace, inputs, rows, disturbed)
        return {"values": out.frames[out.mask].half(), "lengths": out.mask.sum(1)}

    title = f"{'disturbed ' * disturbed}frames of {group}"
    with forked_rng(device):
        return cache_ragged(folder, batches, encode, title, team)


def group_rows(workspace: Workspace, group: str) -> np.ndarray:
    """Return the training rows with a recording in the languages that an encoder serves, in order."""
    return training_rows(workspace, workspace.recipe.groups[group])
