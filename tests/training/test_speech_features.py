"""Frames that a frozen encoder gives of clean and of disturbed recordings."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sta.config.recipe import load_recipe
from sta.data.store import Ragged
from sta.distributed.sharding import BatchShard
from sta.distributed.team import Team
from sta.models.bottleneck import SpeechBottleneck
from sta.training import caching, speech_features
from sta.training.runtime import bf16_autocast, step_seed
from sta.training.speech_inputs import SpeechInputs
from tests.conftest import tiny_encoder

CPU = torch.device("cpu")


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    """Five recordings of two languages, one of them not for training."""
    lengths = [64, 80, 100, 72, 90]
    rng = np.random.default_rng(0)
    (tmp_path / "features").mkdir()
    pieces = (rng.integers(60, 200, (size, 80)).astype(np.uint8) for size in lengths)
    Ragged.write(tmp_path / "features", pieces, lengths)
    columns = {"language": ["en", "ar", "en", "en", "ar"]}
    training = {"en": np.array([0, 2]), "ar": np.array([1, 4])}
    heard = np.ones(len(lengths), bool)
    corpus = SimpleNamespace(
        column=columns.__getitem__, select=lambda split, code: training[code], has_audio=heard
    )  # fmt: skip
    encoder = tiny_encoder()
    encoder.save_pretrained(tmp_path / "encoder")
    SpeechBottleneck(encoder.config.width, 3, tokens=2, width=3, layers=1, heads=2).save_pretrained(
        tmp_path / "bottleneck"
    )
    overrides = ["languages=[en, ar]", "stages.distill.noise=0.5"]
    return SimpleNamespace(
        recipe=load_recipe("garden-mini", overrides), cache=tmp_path / "cache", corpus=corpus,
        features=Ragged(tmp_path / "features"), final=lambda stage: tmp_path,
    )  # fmt: skip


def test_disturbed_frames_are_others_and_the_same_again(workspace: Any, tmp_path: Path) -> None:
    clean, disturbed = (speech_features.cached_frames(workspace, "pooled", CPU, which) for which in (False, True))
    assert len(clean) == len(disturbed) == 4
    for one, other in ((clean[place], disturbed[place]) for place in range(4)):
        shared = min(len(one), len(other))
        assert np.isfinite(other).all()
        assert np.abs(one[:shared].astype(float) - other[:shared]).max() > 0.05
    before = disturbed.values.copy()
    workspace.cache = tmp_path / "another"
    torch.manual_seed(99)
    assert np.array_equal(speech_features.cached_frames(workspace, "pooled", CPU, True).values, before)


def test_disturbed_frames_are_kept_by_how_they_were_disturbed(workspace: Any) -> None:
    speech_features.cached_frames(workspace, "pooled", CPU, True)
    workspace.recipe = load_recipe("garden-mini", ["languages=[en, ar]", "stages.distill.noise=0"])
    speech_features.cached_frames(workspace, "pooled", CPU, True)
    assert len(list(workspace.cache.glob("disturbed-frames-*"))) == 2
    assert not list(workspace.cache.glob("frames-*"))


def test_frames_made_on_one_device_leave_the_others_alone(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)  # torch warns of forking the state of them all
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        speech_features.cached_frames(workspace, "pooled", CPU)


def test_clean_frames_leave_the_random_state_alone(workspace: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    speech_features.cached_frames(workspace, "pooled", CPU)
    assert torch.equal(torch.rand(3), expected)


BATCHES = [np.array([1, 4]), np.array([2]), np.array([0])]


@pytest.fixture
def three_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of the order of the rows, in two parts."""
    monkeypatch.setattr(speech_features, "batches_by_length", lambda store, rows: BATCHES)
    monkeypatch.setattr(caching, "BATCHES_PER_PART", 2)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _frames_one_by_one(workspace: Any, folder: Path, disturbed: bool) -> dict[str, bytes]:
    """The files that hold every frame of every batch, cut and sorted in the plainest way."""
    encoder, _ = speech_features.load_speech(workspace, "pooled")
    heard: dict[int, np.ndarray] = {}
    for number, rows in enumerate(BATCHES):
        torch.manual_seed(step_seed(workspace.recipe.seed, "frames", number, 0))
        with bf16_autocast(CPU):
            out = speech_features.encode_rows(encoder, workspace, SpeechInputs(workspace.features), rows, disturbed)
        heard |= {int(row): f[m].half().numpy() for row, f, m in zip(rows, out.frames, out.mask, strict=True)}
    folder.mkdir()
    pieces = [heard[row] for row in sorted(heard)]
    Ragged.write(folder, pieces, [len(piece) for piece in pieces])
    return _files(folder)


@pytest.mark.usefixtures("three_batches")
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("disturbed", [False, True])
def test_any_number_of_ranks_hears_the_same(workspace: Any, tmp_path: Path, disturbed: bool, world: int) -> None:
    """Of three ranks one has nothing to do."""
    for rank in reversed(range(world)):  # rank 0 joins what the others left
        folder = speech_features.cache_frames(workspace, "pooled", CPU, disturbed, Team(BatchShard(rank, world)))
        assert folder.exists() == (rank == 0)
    assert _files(folder) == _frames_one_by_one(workspace, tmp_path / "plain", disturbed)
    assert [path.name for path in workspace.cache.iterdir()] == [folder.name], "no parts are left"


@pytest.mark.usefixtures("three_batches")
@pytest.mark.parametrize("world", [1, 2])
def test_frames_that_a_stop_left_are_kept(
    workspace: Any, tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second part, and gone on with by any number of ranks."""
    encode = speech_features.encode_rows
    heard: list[list[int]] = []

    def stopping(encoder: Any, workspace: Any, inputs: Any, rows: np.ndarray, *how: Any) -> Any:
        if rows is BATCHES[2] and len(heard) == 2:
            raise KeyboardInterrupt
        heard.append(rows.tolist())
        return encode(encoder, workspace, inputs, rows, *how)

    with monkeypatch.context() as patch:
        patch.setattr(speech_features, "encode_rows", stopping)
        with pytest.raises(KeyboardInterrupt):
            speech_features.cache_frames(workspace, "pooled", CPU, True)
        heard.append([])
        for rank in reversed(range(world)):
            folder = speech_features.cache_frames(workspace, "pooled", CPU, True, Team(BatchShard(rank, world)))
    assert heard == [[1, 4], [2], [], [0]], "no recording is heard again"
    assert _files(folder) == _frames_one_by_one(workspace, tmp_path / "plain", True)


def test_frames_that_are_there_need_no_recordings(workspace: Any) -> None:
    speech_features.cached_frames(workspace, "pooled", CPU)
    workspace.corpus = workspace.features = None
    assert len(speech_features.cached_frames(workspace, "pooled", CPU)) == 4


def test_frames_come_from_the_device_once_a_batch(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Size] = []
    cpu = torch.Tensor.cpu

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.shape)
        return cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    frames = speech_features.cached_frames(workspace, "pooled", CPU)
    assert copied == [frames.values.shape, (4,)], "of all frames, and of how many each recording has"
