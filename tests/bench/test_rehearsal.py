"""The rehearsal itself: it finds what differs, and a training that is killed differs in nothing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sta.bench.rehearsal import ALONE, deep_equal, differences, launch_file, rehearse
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
    assert found["well"]
    assert found["different"] == []
    assert found["redone"] > 0, "it was never killed in the middle"
    assert sorted(path.name for path in out.iterdir()) == before


@pytest.mark.slow
def test_a_training_that_forgets_is_found_out(
    out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each start of this one draws other random numbers."""
    forgetful = (
        "import os, runpy, sys; from sta.training import loop\n"
        "loop.step_seed = lambda *a, **k: os.getpid()\n"
        "sys.argv[0] = 'sta.train'; runpy.run_module('sta.train', run_name='__main__')"
    )
    from sta.bench import rehearsal

    command = rehearsal._Run._command
    monkeypatch.setattr(rehearsal._Run, "_command", lambda self: [sys.executable, "-c", forgetful, *command(self)[3:]])
    options = ["--stage", "tokenizer", "--kills", "1", "--launch", ALONE, "--out", str(out)]
    assert main(["rehearse", "garden-tiny", *SHORT, "stages.tokenizer.unquantised=0.5", *options]) == 2
    said = capfd.readouterr().err
    assert re.search(
        r"^sta: not as an uninterrupted run: alone \(.*model.safetensors.*\); the folders are kept", said, re.M
    )
    assert (out / "garden-tiny-rehearsal-alone-killed").exists()


def test_what_differs_is_named(tmp_path: Path) -> None:
    state = {"step": 3, "exp_avg": [torch.ones(2), np.zeros(3)], "set": (1, "a")}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "optimizer.bin")
        (tmp_path / name / "weights.safetensors").write_bytes(b"the same")
        (tmp_path / name / "SHA256SUMS").write_text(name)
    assert differences(tmp_path / "one", tmp_path / "two") == []
    torch.save({**state, "exp_avg": [torch.tensor([1.0, 1.0 + 1e-7]), np.zeros(3)]}, tmp_path / "two" / "optimizer.bin")
    (tmp_path / "two" / "weights.safetensors").write_bytes(b"other")
    (tmp_path / "two" / "scheduler.bin").write_bytes(b"more")
    assert differences(tmp_path / "one", tmp_path / "two") == ["optimizer.bin", "scheduler.bin", "weights.safetensors"]


def test_equality_is_of_types_and_bits() -> None:
    assert deep_equal({"a": [torch.zeros(2), 1.0]}, {"a": [torch.zeros(2), 1.0]})
    assert not deep_equal(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not deep_equal({"a": 1}, {"a": 1, "b": 2})
    assert not deep_equal([1, 2], [1])
    assert not deep_equal([1], (1,))
    assert not deep_equal(np.zeros(2), np.ones(2))


def test_what_is_not_there_is_said(out: Path) -> None:
    recipe = load_recipe("garden-tiny", SHORT)
    assert launch_file(ALONE) is None
    with pytest.raises(RecipeError, match=r"--launch gpu-9: no such launch file \(known: alone, cpu-2,"):
        rehearse(recipe, out, "tokenizer", ["gpu-9"], 1, 0)
    with pytest.raises(RecipeError, match="--stage prepare is not one of this recipe's training stages: teacher"):
        rehearse(recipe, out, "prepare", [ALONE], 1, 0)
    with pytest.raises(RecipeError, match=rf"{STEPS} steps are too few for 20 kills; at least 42 work"):
        rehearse(recipe, out, "tokenizer", [ALONE], 20, 0)
    with pytest.raises(StaError, match="run stage 'prepare' first"):
        rehearse(recipe, out / "elsewhere", "tokenizer", [ALONE], 1, 0)
