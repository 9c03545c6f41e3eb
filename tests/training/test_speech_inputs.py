"""Frames of a frozen backbone, computed once: the same as those that it gives while an encoder trains on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sta.bench.operations import ExampleTask
from sta.config.recipe import load_recipe
from sta.data.store import Ragged
from sta.distributed.sharding import BatchShard
from sta.distributed.team import Team
from sta.models.backbones import backbone_of
from sta.models.backbones.pretrained import LayerSum, PretrainedBackbone
from sta.models.encoder import SpeechEncoder
from sta.training import caching, runtime, speech_inputs
from sta.training.speech_inputs import open_inputs
from tests.tiny_whisper import write_whisper
from tests.training.facts import FACTS

CPU = torch.device("cpu")
SAMPLES = [9_000, 16_000, 5_003, 12_345, 7_000, 3_300, 10_100]
TRAINING = {"en": np.array([0, 2, 5]), "ar": np.array([1, 4, 6])}
PLAIN = ("stages.distill.gain=0", "stages.distill.augment=0", "stages.distill.noise=0")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def made(whisper: Path, tmp_path: Path) -> Callable[..., Any]:
    """A workspace of seven recordings, one of them not for training, by what the recipe says besides."""
    rng = np.random.default_rng(0)
    waves = [(5_000 * rng.standard_normal((n, 1))).astype(np.int16) for n in SAMPLES]
    (tmp_path / "features").mkdir()
    Ragged.write(tmp_path / "features", waves, SAMPLES)
    corpus = SimpleNamespace(select=lambda split, code: TRAINING[code], has_audio=np.ones(len(SAMPLES), bool))

    def workspace(*overrides: str) -> Any:
        own = [f"encoder.backbone={whisper}", "encoder.cache_frames=true", "encoder.frame_pooling=2"]
        recipe = load_recipe("garden-tiny", ["languages=[en, ar]", "stages.distill.losses={ctc: 0}", *own, *overrides])
        return SimpleNamespace(
            recipe=recipe, cache=tmp_path / "cache", corpus=corpus, features=Ragged(tmp_path / "features")
        )

    return workspace


def encoder_of(workspace: Any) -> SpeechEncoder:
    settings = workspace.recipe.encoder
    torch.manual_seed(2)
    encoder = SpeechEncoder(
        {"en": 1, "ar": 1}, width=12, layers=1, heads=2, backbone=backbone_of(settings), ctc_head=False
    )
    encoder.acoustics.load_published(settings.backbone)
    return encoder.eval()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@torch.no_grad()
@pytest.mark.parametrize("layers", ["null", "[1, 2]"])
def test_an_encoder_on_kept_frames_gives_what_it_gives_on_the_backbone(
    made: Callable[..., Any], layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "has_fast_bf16", lambda device: False)
    workspace = made(*PLAIN, f"encoder.backbone_layers={layers}")
    live, kept = encoder_of(workspace), encoder_of(workspace)
    inputs, rows, codes = open_inputs(workspace, kept, CPU), np.array([1, 2, 6]), ["ar", "en", "ar"]
    assert type(kept.acoustics) is LayerSum
    assert isinstance(live.acoustics, PretrainedBackbone)
    assert {n for n, _ in kept.named_parameters()} == {n for n, p in live.named_parameters() if p.requires_grad}
    features, lengths = inputs.padded(inputs.some_of(rows, [0, 7]))
    found = kept.encode(features, lengths, codes)
    features, lengths = workspace.features.padded(rows.tolist(), 64)
    wanted = live.encode(features, lengths, codes)
    assert found.mask.sum(1).equal(wanted.mask.sum(1))
    for one, other, own, others in zip(found.frames, wanted.frames, found.mask, wanted.mask, strict=True):
        torch.testing.assert_close(one[own], other[others], atol=5e-3, rtol=0)  # half precision has 11 bits


def test_every_training_row_is_kept_once_or_in_copies_that_differ(made: Callable[..., Any]) -> None:
    once, twice = (made(f"encoder.frame_copies={n}", "stages.distill.noise=0.5") for n in (1, 2))
    for workspace, copies in ((once, 1), (twice, 2)):
        inputs = open_inputs(workspace, encoder_of(workspace), CPU)
        assert inputs.rows is not None
        assert inputs.rows.tolist() == [0, 1, 2, 4, 5, 6]
        assert len(inputs.store) == 6 * copies
        chosen = [inputs.some_of(np.array([4, 1]), [0, step]).tolist() for step in range(30)]
        assert {item for items in chosen for item in items} == {3 + 6 * n for n in range(copies)} | {
            1 + 6 * n for n in range(copies)
        }
        assert inputs.some_of(np.array([4, 1]), [0, 3]).tolist() == chosen[3]
    one, other = inputs.store[3], inputs.store[9]
    assert len(one) != len(other) or not np.allclose(one, other, atol=0.05)


def test_they_are_kept_by_what_they_depend_on(made: Callable[..., Any], tmp_path: Path) -> None:
    another = write_whisper(tmp_path / "another", seed=1)
    for overrides in (
        (), ("stages.distill.steps=77",), ("stages.distill.noise=0.5",), ("encoder.backbone_layers=[2]",),
        ("encoder.frame_pooling=1",), ("encoder.frame_copies=2",), (f"encoder.backbone={another}",), ("seed=5",),
    ):  # fmt: skip
        workspace = made(*overrides)
        open_inputs(workspace, encoder_of(workspace), CPU)
    assert len(list((tmp_path / "cache").glob("backbone-*"))) == 7, "of all but the number of steps"


@pytest.mark.parametrize("world", [1, 2])
def test_any_number_of_ranks_and_a_stop_make_the_same(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    """Stopped in the second part: the first is kept, and nothing is computed twice."""
    monkeypatch.setattr(caching, "BATCHES_PER_PART", 1)
    monkeypatch.setattr(speech_inputs, "SAMPLES_AT_ONCE", 20_000)
    workspace = made("stages.distill.noise=0.5")
    backbone: Any = encoder_of(workspace).acoustics
    plain = files(speech_inputs.cache_backbone(workspace, backbone, CPU))
    whole, seen = backbone.layer_frames, []

    def stopping(samples: torch.Tensor, lengths: torch.Tensor) -> Any:
        seen.append(len(samples))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return whole(samples, lengths)

    workspace.cache = tmp_path / "again"
    backbone.layer_frames = stopping
    with pytest.raises(KeyboardInterrupt):
        speech_inputs.cache_backbone(workspace, backbone, CPU)
    for rank in reversed(range(world)):
        folder = speech_inputs.cache_backbone(workspace, backbone, CPU, Team(BatchShard(rank, world)))
    assert files(folder) == plain
    assert sum(seen) == 6 + seen[1]
    assert [path.name for path in workspace.cache.iterdir()] == [folder.name]


def test_torchs_random_numbers_are_left_alone(made: Callable[..., Any]) -> None:
    workspace = made()
    encoder = encoder_of(workspace)
    backbone: Any = encoder.acoustics
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    speech_inputs.cache_backbone(workspace, backbone, CPU)
    assert torch.rand(3).equal(expected)


def test_noise_takes_the_place_of_kept_frames_in_a_plan(made: Callable[..., Any]) -> None:
    recipe = made("encoder.backbone_layers=[0, 1]").recipe
    task = ExampleTask(recipe, FACTS, "distill-pooled", 4)
    noise: Any = task.noise
    assert (noise.features.dtype, noise.features.shape[2]) == (torch.half, 32)
    assert 50 <= noise.features.shape[1] < 64, "two seconds of 25 frames, and what a batch is padded with"
    losses = task.module(noise)
    torch.stack(list(losses.values())).sum().backward()
    names = {name for name, p in task.module.named_parameters() if p.grad is None}
    assert not [name for name in names if name.startswith(("encoder.acoustics", "encoder.context", "bottleneck"))]
