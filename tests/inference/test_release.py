"""A run's release: how its weights are kept, and what becomes of it when its stages are done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sta.config.recipe import dump_recipe, load_recipe, makes_the_same
from sta.data.checksums import write_sums
from sta.errors import Interrupted, WeightsError
from sta.inference import release
from sta.inference.pipeline import SpeechToImagePipeline
from sta.models.backbones import describe_backbone
from sta.models.backbones.pretrained import PretrainedBackbone
from sta.models.encoder import SpeechEncoder
from sta.models.loading import load_network
from sta.models.precision import from_int8, in_half, in_int8
from sta.training.stages import open_run, stage_names
from tests.release_fixtures import wave, write_tiny_release
from tests.tiny_whisper import write_whisper


@pytest.mark.parametrize("left", [False, True])
def test_a_stop_leaves_no_half_of_what_is_outdated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    """Half of a release, its record of the stages gone, would pass for one that an older version made."""
    folder, workspace = tmp_path / "release", SimpleNamespace(folder=tmp_path)
    folder.mkdir()
    (folder / "model_index.json").touch()
    (folder / release.PARTS).write_text(json.dumps({"decoder": "old"}))
    if left:
        (tmp_path / "release.partial" / "decoder").mkdir(parents=True)
    monkeypatch.setattr(release, "parts_of", lambda workspace: {"decoder": "new"})
    remove = shutil.rmtree

    def stopped(path: Path, **how: Any) -> None:
        if (path / release.PARTS).exists():
            (path / release.PARTS).unlink()
            raise Interrupted("stopped")
        remove(path, **how)

    monkeypatch.setattr(shutil, "rmtree", stopped)
    run: Any = workspace
    with pytest.raises(Interrupted):
        release.remove_outdated(run)
    assert not folder.exists()
    release.remove_outdated(run)


def test_what_is_outdated_is_removed_on_every_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, made in (("evaluation", "new"), ("evaluation-people", "old"), ("evaluation.old", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / release.PARTS).write_text(json.dumps({"decoder": made}))
    monkeypatch.setattr(release, "parts_of", lambda workspace: {"decoder": "new"})
    run: Any = SimpleNamespace(folder=tmp_path)
    release.remove_outdated(run)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation", "evaluation.old"}


# ---- how the weights are kept ---------------------------------------------------------------------------------


def in_eight(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The networks here are too small for what is kept in int8 otherwise."""
    return in_int8(weights, fewest=64)


def test_a_release_in_int8_is_loaded_and_saved_again(tmp_path: Path) -> None:
    write_tiny_release(tmp_path / "int8")
    before = SpeechToImagePipeline.from_pretrained(tmp_path / "int8")
    release.reduce(tmp_path / "int8", in_eight)
    write_sums(tmp_path / "int8")
    pipe = release.load_release(tmp_path / "int8")
    for one, other in ((pipe.decoder, before.decoder), (pipe.pack("ar").encoder, before.pack("ar").encoder)):
        assert any(not w.equal(v) for w, v in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    pipe.save_pretrained(tmp_path / "again")
    again = release.load_release(tmp_path / "again")
    drawn = [one(wave(), language="ar", generator=torch.Generator().manual_seed(0), output_type="np").images
             for one in (pipe, again)]  # fmt: skip
    np.testing.assert_array_equal(*drawn)


def test_a_frozen_model_in_int8_is_stored_once_under_a_name_of_its_own(tmp_path: Path) -> None:
    whisper = str(write_whisper(tmp_path / "whisper"))
    for code in ("en", "ar"):
        backbone = describe_backbone(whisper, True)
        made = SpeechEncoder({code: 5}, width=12, layers=1, heads=2, backbone=backbone, ctc_head=False).eval()
        assert isinstance(made.acoustics, PretrainedBackbone)
        made.acoustics.load_published(whisper)
        made.save(tmp_path / "languages" / code / "encoder", tmp_path / "languages")
    (half,) = (tmp_path / "languages").glob("frozen-*.safetensors")
    release.reduce(tmp_path / "languages", in_half)
    assert half.exists(), "it holds what it held"
    release.reduce(tmp_path / "languages", in_eight)
    (shared,) = (tmp_path / "languages").glob("frozen-*.safetensors")
    assert shared.name != half.name
    kept = load_file(shared)
    assert torch.int8 in {weight.dtype for weight in kept.values()}
    for code in ("en", "ar"):
        again = load_network(SpeechEncoder, tmp_path / "languages" / code / "encoder")
        again.save(tmp_path / "saved" / code / "encoder", tmp_path / "saved")
    (saved,) = (tmp_path / "saved").glob("frozen-*.safetensors")
    assert all(weight.equal(from_int8(kept)[name]) for name, weight in load_file(saved).items())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file({"fine": torch.ones(2), "broken": torch.tensor([1.0, torch.nan])}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"a.safetensors: broken is not finite; train again with a smaller lr"):
        release.reduce(tmp_path, in_half)


def test_a_release_names_no_folder_that_makes_no_other_corpus(tmp_path: Path) -> None:
    recipe = load_recipe("picturebook-mini", [f"corpus.root={tmp_path}/emoji"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(release.portable(recipe)), encoding="utf-8")
    assert "root: emoji\n" in (text := (tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert "sentences: sentences.tsv\n" in text
    assert makes_the_same(load_recipe(tmp_path / "recipe.yaml"), recipe)
    folder = load_recipe("garden-tiny", [f"corpus={{name: folder, root: {tmp_path}, size: 16, dataset: me/birds}}"])
    assert release.portable(folder) == folder


def test_another_precision_makes_the_release_anew(tmp_path: Path) -> None:
    half, int8 = (
        open_run(load_recipe("garden-tiny", [f"release.weights={how}"]), tmp_path) for how in ("half", "int8")
    )
    for name in stage_names(half.recipe)[1:]:
        (half.stage(name) / "final").mkdir(parents=True)
    for workspace, other in ((half, int8), (int8, half)):
        (tmp_path / release.PARTS).write_text(json.dumps(release.parts_of(workspace)))
        assert release.outdated(workspace, tmp_path) is None
        assert release.outdated(other, tmp_path) == f"{tmp_path}: made before release.weights was changed"
