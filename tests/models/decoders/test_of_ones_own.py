"""A decoder of somebody's own package: one file and a recipe, from training to a release that draws."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sta.cli.main import main
from sta.config.recipe import load_recipe
from sta.errors import WeightsError
from sta.inference.pipeline import SpeechToImagePipeline
from sta.inference.release import write_release
from sta.models.decoders.base import PictureGrid, TokenSpace, find_decoder
from sta.training.stages import stage_names
from sta.training.workspace import Workspace
from tests.release_fixtures import LANGUAGES, SIZE, tiny_pipeline, wave, write_wave

TOYS = Path(__file__).parents[2] / "toys"
MODULE = "lab.one_pass"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that nothing knows of, and nobody has imported."""
    (tmp_path / "lab").mkdir()
    shutil.copy(TOYS / "one_pass.py", tmp_path / "lab")
    shutil.copy(TOYS / "one_pass.yaml", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    forget(monkeypatch)
    return tmp_path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (MODULE, "lab"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def own_pipeline() -> SpeechToImagePipeline:
    """The tiny release with that decoder, which takes no steps and has no scheduler."""
    tiny, made = tiny_pipeline("latent-diffusion"), find_decoder(f"{MODULE}:OnePass")
    settings = made.Settings.model_validate({"kind": f"{MODULE}:OnePass"})
    decoder = made.build(settings, PictureGrid(tiny.tokenizer.side, 8, 4), TokenSpace(3, 4, 8)).eval()
    pipe = SpeechToImagePipeline(decoder, tiny.tokenizer, decoder.build_scheduler(settings, None), token_space="0")  # type: ignore[arg-type]
    for pack in tiny.languages.values():
        pipe.add_pack(pack)
    return pipe


@pytest.mark.usefixtures("lab")
def test_a_release_draws_without_a_scheduler(tmp_path: Path) -> None:
    pipe, steps = own_pipeline(), list[int]()
    pipe.save_pretrained(tmp_path / "release")
    loaded = SpeechToImagePipeline.from_pretrained(tmp_path / "release")
    assert loaded.scheduler is None
    assert list(loaded.languages) == sorted(LANGUAGES)
    drawn = loaded(wave(), output_type="np", callback_on_step_end=lambda *step: steps.append(step[1]) or {}).images  # type: ignore[func-returns-value]
    np.testing.assert_allclose(drawn, pipe(wave(), output_type="np").images, atol=1e-5)
    assert drawn.shape == (1, SIZE, SIZE, 3)
    assert steps == [0], "one pass is one step"
    again = SpeechToImagePipeline.from_pretrained(tmp_path / "release", dtype=torch.float16)
    assert again.decoder.dtype == torch.float16


def test_a_release_imports_nothing_that_is_not_trusted(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_pipeline().save_pretrained(lab / "release")
    forget(monkeypatch)
    with pytest.raises(WeightsError, match=rf"names {MODULE}.OnePass as its decoder.*`import {MODULE}`"):
        SpeechToImagePipeline.from_pretrained(lab / "release")
    assert MODULE not in sys.modules
    trusted = SpeechToImagePipeline.from_pretrained(lab / "release", trust_remote_code=True)
    assert type(trusted.decoder).__module__ == MODULE
    forget(monkeypatch)
    shutil.rmtree(lab / "lab")
    with pytest.raises(WeightsError, match=f"{MODULE}: cannot be imported"):
        SpeechToImagePipeline.from_pretrained(lab / "release", trust_remote_code=True)


def test_the_command_line_asks_for_trust(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_pipeline().save_pretrained(lab / "release")
    write_wave(lab / "said.wav", wave())
    forget(monkeypatch)
    draw = ["draw", "said.wav", "--language", "en", "--weights", str(lab / "release"), "--out", str(lab)]
    assert main(draw) == 2
    assert f"import {MODULE}" in capsys.readouterr().err
    assert main([*draw, "--trust-remote-code"]) == 0
    assert (lab / "said.png").exists()


@pytest.mark.slow
def test_it_trains_and_is_released(lab: Path) -> None:
    """Two steps of every stage by the command line, which knows of it by the recipe alone."""
    recipe = load_recipe(lab / "one_pass.yaml")
    assert recipe.stages.decoder.losses["l2"] == 2.0
    for name in stage_names(recipe):
        assert main(["train", str(lab / "one_pass.yaml"), "--stage", name, "--out", str(lab / "runs")]) == 0
    release = write_release(Workspace(recipe, lab / "runs"))
    pipe = SpeechToImagePipeline.from_pretrained(release)
    assert pipe.decoder.config.hidden == 6
    assert pipe(wave(), output_type="np").images.shape == (1, recipe.corpus.size, recipe.corpus.size, 3)
