"""What frozen networks make of the corpus: frames of clean and of disturbed recordings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sta.data.store import Ragged
from sta.models.shared import Share
from sta.recipe import load_recipe
from sta.training import features
from sta.training.team import Team
from tests.conftest import tiny_encoder

CPU = torch.device("cpu")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Five recordings of two languages, one of them not for training."""
    lengths = [64, 80, 100, 72, 90]
    rng = np.random.default_rng(0)
    (tmp_path / "features").mkdir()
    pieces = (rng.integers(60, 200, (size, 80)).astype(np.uint8) for size in lengths)
    Ragged.write(tmp_path / "features", pieces, lengths)
    columns = {"language": ["en", "ar", "en", "en", "ar"]}
    corpus = SimpleNamespace(column=columns.__getitem__, select=lambda split: np.array([0, 1, 2, 4]))
    encoder = tiny_encoder()
    monkeypatch.setattr(features, "load_speech", lambda workspace, group: (encoder, None))
    monkeypatch.setattr(features, "fingerprint", lambda folder: "same")
    overrides = ["languages=[en, ar]", "stages.distill.noise=0.5"]
    return SimpleNamespace(
        recipe=load_recipe("garden-mini", overrides), cache=tmp_path / "cache", corpus=corpus,
        features=Ragged(tmp_path / "features"), final=lambda stage: tmp_path,
    )  # fmt: skip


def test_disturbed_frames_are_others_and_the_same_again(workspace: Any, tmp_path: Path) -> None:
    clean, disturbed = (features.cached_frames(workspace, "pooled", CPU, which) for which in (False, True))
    assert len(clean) == len(disturbed) == 4
    for one, other in ((clean[place], disturbed[place]) for place in range(4)):
        shared = min(len(one), len(other))
        assert np.isfinite(other).all()
        assert np.abs(one[:shared].astype(float) - other[:shared]).max() > 0.05
    before = disturbed.values.copy()
    workspace.cache = tmp_path / "another"
    torch.manual_seed(99)
    assert np.array_equal(features.cached_frames(workspace, "pooled", CPU, True).values, before)


def test_disturbed_frames_are_kept_by_how_they_were_disturbed(workspace: Any) -> None:
    features.cached_frames(workspace, "pooled", CPU, True)
    workspace.recipe = load_recipe("garden-mini", ["languages=[en, ar]", "stages.distill.noise=0"])
    features.cached_frames(workspace, "pooled", CPU, True)
    assert len(list(workspace.cache.glob("disturbed-frames-*"))) == 2
    assert not list(workspace.cache.glob("frames-*"))


def test_clean_frames_leave_the_random_state_alone(workspace: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    features.cached_frames(workspace, "pooled", CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("disturbed", [False, True])
def test_any_number_of_ranks_hears_the_same(
    workspace: Any, tmp_path: Path, disturbed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three ranks one has nothing to do: the four recordings are two batches."""
    monkeypatch.setattr(features, "batches_by_length", lambda store, rows: [rows[2:], rows[:2]])
    alone = features.cached_frames(workspace, "pooled", CPU, disturbed)
    workspace.cache = tmp_path / "shared"
    for rank in (2, 1, 0):  # rank 0 joins what the others left
        folder = features.cache_frames(workspace, "pooled", CPU, disturbed, Team(Share(rank, 3)))
        assert folder.exists() == (rank == 0)
    together = Ragged(folder)
    assert np.array_equal(together.values, alone.values)
    assert np.array_equal(together.offsets, alone.offsets)
    assert [path.name for path in workspace.cache.iterdir()] == [folder.name], "no parts are left"
