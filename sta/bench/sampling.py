"""Cost and quality of the sampler's settings, on the same recordings and seeds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from rich.table import Table

from sta.data.rows import TEST_SPLITS
from sta.errors import StaError
from sta.evaluation.evaluator import Evaluator
from sta.metrics.rows import METRICS, Interval, Report, ResultKey, Row, everywhere, known_first, titled
from sta.metrics.tables import make_table
from sta.progress import Bar

SHOWN = ("attributes", "exact", "mood")
SPLITS = ("validation", *TEST_SPLITS)


def bench_sampling(
    evaluator: Evaluator, steps: Sequence[int], guidances: Sequence[float], tta_samples: Sequence[int], split: str
) -> tuple[Report, str]:
    """Measure quality, and seconds per picture to encode and draw, for every setting, on the same recordings and seeds.

    Returns the rows, and the setting with the best mean of attributes and mood over languages, or the lowest FID where
    no attributes are known.
    """
    picked = {code: _picked(evaluator, code, split) for code in evaluator.workspace.recipe.languages}
    settings = list(product(steps, guidances, tta_samples))
    for language, recordings in picked.items():  # what is compiled on first use must not be timed
        evaluator.generate(evaluator.encode(recordings, language, 1), evaluator.seeds(recordings), 1, max(guidances))
    rows: list[Row] = []
    with Bar("sampling", len(settings), "settings") as bar:
        for setting in settings:
            rows += _measure(evaluator, picked, split, *setting)
            bar.advance()
    meta: dict[str, Any] = {"split": split, "recordings": {code: len(r) for code, r in picked.items()}}
    best = max(dict.fromkeys(row.condition for row in rows), key=lambda condition: _score(rows, condition))
    return Report(meta | evaluator.extractor, rows), best


def _picked(evaluator: Evaluator, language: str, split: str) -> np.ndarray:
    rows = evaluator.known(evaluator.select_rows(split, language))
    if len(rows) < 2:
        raise StaError(f"split '{split}' has fewer than two recordings in {language}; name one of {', '.join(SPLITS)}")
    return rows


def _measure(
    evaluator: Evaluator, picked: dict[str, np.ndarray], split: str, steps: int, guidance: float, tta_samples: int
) -> list[Row]:
    condition = f"steps {steps}, guidance {guidance:g}, tta_samples {tta_samples}"
    found, pictures, seconds, shown = list[Row](), [], 0.0, []
    for language, rows in picked.items():
        started = time.perf_counter()
        tokens = evaluator.encode(rows, language, tta_samples)
        drawn = evaluator.generate(tokens, evaluator.seeds(rows), steps, guidance)
        seconds += time.perf_counter() - started
        where = ResultKey(language=language, split=split, condition=condition, system="speech")
        if evaluator.judge is not None:
            scored = evaluator.score(evaluator.judge.predict(drawn), rows, **where)
            found += [r for r in scored if r.metric in SHOWN]
        pictures.append(drawn)
        shown.append(rows)
    where, drawn = everywhere(condition, "speech", split), torch.cat(pictures)
    found += evaluator.fidelity(drawn, np.concatenate(shown), where)
    return [*found, Row.of("seconds", Interval(seconds / len(drawn)), len(drawn), **where)]


def table(report: Report) -> Table:
    """Tabulate a line for each setting, a column for each metric, languages side by side."""
    metrics = known_first((r.metric for r in report.rows), METRICS)
    lines = []
    for condition in dict.fromkeys(r.condition for r in report.rows):
        cells = [[r for r in report.rows if (r.condition, r.metric) == (condition, m)] for m in metrics]
        setting = [part.rpartition(" ")[2] for part in condition.split(", ")]
        lines.append([*setting, *(" / ".join(METRICS[r.metric].text(r.value) for r in cell) for cell in cells)])
    title = f"{report.meta['split']}, {' / '.join(report.meta['recordings'])}"
    return make_table(title, ["steps", "guidance", "tta", *map(titled, metrics)], lines)


def _score(rows: Iterable[Row], condition: str) -> float:
    mine = [r for r in rows if r.condition == condition]
    right = [r.value for r in mine if r.metric in ("attributes", "mood")]
    return float(np.mean(right)) if right else -next(r.value for r in mine if r.metric == "fid")
