"""What a run remembers of how its stages were trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from sta.recipe import load_recipe
from sta.training import stages
from sta.training.workspace import Workspace


def test_a_stage_remembers_every_commit_and_machine_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(load_recipe("garden-mini"), tmp_path)
    starts = [("abc", "Processor A", 1, 2), ("abc", "Processor A", 1, 2), ("def", "Processor B", 2, 1)]
    for commit, device, threads, processes in starts:
        found = {"commit": commit, "device": device, "threads": threads}
        monkeypatch.setattr(stages, "environment", lambda found=found: found)
        stages._record_start(workspace, "decoder", processes)
    log = workspace.stage("decoder") / "log" / "metrics.jsonl"
    log.write_text('{"seconds": 1.5}\n{"seconds": 60.5}\n')
    assert stages.provenance(workspace) == {
        "decoder": {
            "seconds": 60.5,
            "commits": ["abc", "def"],
            "machines": ["Processor A, 2 x 1 threads", "Processor B, 1 x 2 threads"],
        }
    }


def test_a_run_without_that_record_still_has_its_minutes(tmp_path: Path) -> None:
    workspace = Workspace(load_recipe("garden-mini"), tmp_path)
    log = workspace.stage("reader") / "log" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"seconds": 12.0}\n')
    assert stages.provenance(workspace) == {"reader": {"seconds": 12.0, "commits": [], "machines": []}}
