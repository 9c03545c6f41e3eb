"""What a report is made of where a language has no recordings to test with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sta.evaluation import report
from sta.metrics.rows import Interval, Row
from sta.models.bottleneck import Tokens
from sta.recipe import load_recipe

TESTED = {"en": np.arange(3), "ar": np.arange(0)}


class OnlyEnglish:
    """An examiner of a corpus whose test recordings are all English."""

    workspace = SimpleNamespace(recipe=load_recipe("garden-tiny", ["languages=[en, ar]"]))
    settings = SimpleNamespace(conditions=["noise-10"], pictures=2, samples=1)
    splits, hardest, judge = ("test",), "test", None

    def pick(self, split: str, language: str) -> np.ndarray:
        return TESTED[language]

    def hear(self, rows: np.ndarray, language: str) -> Tokens:
        assert len(rows), "nothing can be heard of no recordings"
        return Tokens(torch.zeros(len(rows), 2, 4), torch.zeros(len(rows), 8), torch.ones(len(rows)))

    def seeds(self, rows: np.ndarray) -> list[int]:
        return [0] * len(rows)

    def draw(self, tokens: Tokens, seeds: list[int]) -> torch.Tensor:
        return torch.zeros(len(seeds), 3, 8, 8)

    def retrieval(self, tokens: Tokens, rows: np.ndarray, where: Any) -> list[Row]:
        return []

    def fidelity(self, pictures: torch.Tensor, rows: np.ndarray, where: Any) -> list[Row]:
        return [Row.of("fid", Interval(0.0, 0.0, 0.0), len(rows), **where)]

    def inception_score(self, pictures: torch.Tensor, where: Any) -> list[Row]:
        return []


def test_a_language_without_test_rows_is_left_out_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examiner: Any = OnlyEnglish()
    heard: list[str] = []

    def disturb(examiner: Any, language: str, condition: str) -> list[Row]:
        heard.append(language)
        return []

    monkeypatch.setattr(report, "condition_rows", disturb)
    monkeypatch.setattr(report, "_example", lambda examiner, row, language, pictures, readings: language)
    found = report._rows(examiner)
    assert {(row.metric, row.language, row.n) for row in found} == {("bits", "en", 3), ("fid", "all", 3)}
    assert heard == ["en"]
    assert "the test split has no row in language 'ar', left out" in capsys.readouterr().err
    assert report._examples(examiner) == ["en", "en"]
