"""What a report is made of where a language has no recordings to test with, and that one launch makes it at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sta.config.recipe import load_recipe
from sta.errors import StaError
from sta.evaluation import report
from sta.metrics.rows import Interval, Report, Row
from sta.models.bottleneck import SpeechCondition
from tests.processes import HOLD, said_by, started

TESTED = {"en": np.arange(3), "ar": np.arange(0)}


class OnlyEnglish:
    """An evaluator of a corpus whose test recordings are all English."""

    workspace = SimpleNamespace(recipe=load_recipe("garden-tiny", ["languages=[en, ar]"]))
    settings = SimpleNamespace(conditions=["noise-10"], pictures=2, samples=1)
    splits, hardest, judge = ("test",), "test", None

    def select_rows(self, split: str, language: str) -> np.ndarray:
        return TESTED[language]

    def known(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def encode(self, rows: np.ndarray, language: str) -> SpeechCondition:
        assert len(rows), "nothing can be heard of no recordings"
        return SpeechCondition(torch.zeros(len(rows), 2, 4), torch.zeros(len(rows), 8), torch.ones(len(rows)))

    def seeds(self, rows: np.ndarray) -> list[int]:
        return [0] * len(rows)

    def generate(self, tokens: SpeechCondition, seeds: list[int]) -> torch.Tensor:
        return torch.zeros(len(seeds), 3, 8, 8)

    def retrieval(self, tokens: SpeechCondition, rows: np.ndarray, where: Any) -> list[Row]:
        return []

    def fidelity(self, pictures: torch.Tensor, rows: np.ndarray, where: Any) -> list[Row]:
        return [Row.of("fid", Interval(0.0, 0.0, 0.0), len(rows), **where)]

    def inception_score(self, pictures: torch.Tensor, where: Any) -> list[Row]:
        return []


def test_a_language_without_test_rows_is_left_out_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator: Any = OnlyEnglish()
    heard: list[str] = []

    def disturb(evaluator: Any, language: str, condition: str) -> list[Row]:
        heard.append(language)
        return []

    monkeypatch.setattr(report, "condition_rows", disturb)
    monkeypatch.setattr(report, "_example", lambda evaluator, row, language, pictures, readings: language)
    found = report._rows(evaluator)
    assert {(row.metric, row.language, row.n) for row in found} == {("bits", "en", 3), ("fid", "all", 3)}
    assert heard == ["en"]
    assert "the test split has no row in language 'ar', left out" in capsys.readouterr().err
    assert report._examples(evaluator) == ["en", "en"]


def test_a_run_that_another_process_measures_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Path] = []

    def measure(workspace: Any, release: Path, folder: Path) -> None:
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
