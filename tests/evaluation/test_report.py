"""What a report is made of where a language has no recordings to test with, and that one launch makes it at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sta.errors import StaError
from sta.evaluation import report
from sta.metrics.rows import Report
from tests.evaluation.test_systems import toy_evaluator
from tests.processes import HOLD, said_by, started


def test_a_language_without_test_rows_is_left_out_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = toy_evaluator(tmp_path, judged=False, languages=("en",))
    found = report._rows(evaluator)
    assert {row.language for row in found} == {"en", "all"}
    assert {row.condition for row in found} == {"clean", "noise-10"}
    assert "the voice split has no row in language 'ar', left out" in capsys.readouterr().err
    examples, _ = report._examples(evaluator)
    assert [example.language for example in examples] == ["en", "en"]


def test_a_run_that_another_process_measures_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Path] = []

    def measure(workspace: Any, release: Path, folder: Path, trained: Any = None) -> None:
        measured.append(folder)
        folder.mkdir()
        Report({}, []).write(folder / "report.json")

    monkeypatch.setattr(report, "_measure", measure)
    workspace: Any = SimpleNamespace(folder=tmp_path)
    evaluation, release = tmp_path / "evaluation", tmp_path / "release"
    with started(HOLD, evaluation) as other:
        assert said_by(other) == "held\n"
        with pytest.raises(StaError, match="evaluation: another process measures this run now; wait for it"):
            report.evaluate(workspace, release)
        evaluation.mkdir()
        (evaluation / "report.json").write_text("{}")
        with pytest.raises(StaError, match="another process measures this run now"):
            report.evaluate_again(workspace)
        assert (evaluation / "report.json").read_text() == "{}"
    assert measured == []
    assert report.evaluate_again(workspace).rows == []
    assert measured == [evaluation]
    assert list(tmp_path.iterdir()) == [evaluation]
    report.evaluate_again(workspace, "evaluation-people", workspace)
    assert measured[1:] == [tmp_path / "evaluation-people"]
