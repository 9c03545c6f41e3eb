"""The rehearsal itself: it finds what differs, and a training that is killed differs in nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sta.bench import rehearsal
from sta.bench.rehearsal import ALONE, differences, rehearse
from sta.cli.main import main
from sta.config.recipe import load_recipe
from sta.errors import RecipeError, StaError
from sta.training.stages import open_run, run_stage
from tests.test_launch import TINY

STEPS = 30
SHORT = [*TINY, f"stages.tokenizer.steps={STEPS}", "stages.tokenizer.batch=8", "precision=fp32"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal")
    recipe = load_recipe("garden-tiny", SHORT)
    workspace = open_run(recipe, folder)
    for stage in ("prepare", "teacher"):
        run_stage(workspace, stage)
    return folder


@pytest.mark.slow
def test_killed_four_times_it_ends_as_one_that_was_not(out: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in out.iterdir())
    report = tmp_path / "report.json"
    options = ["--stage", "tokenizer", "--kills", "4", "--launch", ALONE, "--out", str(out), "--json", str(report)]
    assert main(["rehearse", "garden-tiny", *SHORT, *options]) == 0
    (found,) = json.loads(report.read_text())
    assert (found["launch"], found["kills"], found["in_save"], found["without_checkpoint"]) == (ALONE, 4, 1, 0)
    assert found["passed"]
    assert found["different"] == []
    assert found["repeated_steps"] > 0, "it was never killed in the middle"
    assert sorted(path.name for path in out.iterdir()) == before


@pytest.mark.slow
def test_a_training_that_forgets_is_found_out(
    out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each start of this one draws other random numbers."""
    forgetful = (
        "import os, runpy, sys; from sta.training import step\n"
        "step.step_seed = lambda *a, **k: os.getpid()\n"
        "sys.argv[0] = 'sta.train'; runpy.run_module('sta.train', run_name='__main__')"
    )
    monkeypatch.setattr(rehearsal, "PROGRAM", ("-c", forgetful))
    options = ["--stage", "tokenizer", "--kills", "1", "--launch", ALONE, "--out", str(out)]
    assert main(["rehearse", "garden-tiny", *SHORT, "stages.tokenizer.unquantised=0.5", *options]) == 2
    said = capfd.readouterr().err
    assert re.search(
        r"^sta: not as an uninterrupted run: alone \(.*model.safetensors.*\); the folders are kept", said, re.M
    )
    assert (out / "garden-tiny-rehearsal-alone-killed").exists()


def test_what_differs_is_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"the same")
    assert differences(tmp_path / "one", tmp_path / "two") == []
    (tmp_path / "two" / "weights.safetensors").write_bytes(b"the Same")
    (tmp_path / "two" / "more.json").write_bytes(b"more")
    assert differences(tmp_path / "one", tmp_path / "two") == ["more.json", "weights.safetensors"]


def test_what_is_not_there_is_said(out: Path) -> None:
    recipe = load_recipe("garden-tiny", SHORT)
    with pytest.raises(RecipeError, match="recipes/accelerate: no file or name 'gpu-9'; did you mean 'gpu-8'"):
        rehearse(recipe, out, "tokenizer", ["gpu-9"], 1, 0)
    with pytest.raises(RecipeError, match="--stage prepare is not one of this recipe's training stages: teacher"):
        rehearse(recipe, out, "prepare", [ALONE], 1, 0)
    with pytest.raises(RecipeError, match=rf"{STEPS} steps are too few for 20 kills; at least 42 work"):
        rehearse(recipe, out, "tokenizer", [ALONE], 20, 0)
    with pytest.raises(StaError, match="run stage 'prepare' first"):
        rehearse(recipe, out / "elsewhere", "tokenizer", [ALONE], 1, 0)
