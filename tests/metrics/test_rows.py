"""Rows, the bootstrap and the report file."""

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sta.errors import StaError
from sta.metrics.rows import METRICS, SPLITS, Interval, Report, ResultKey, Row, bootstrap, known_first

WHERE: ResultKey = {"language": "en", "split": "both", "condition": "clean", "system": "speech"}
numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=40)


def row(metric: str = "exact", value: float = 0.5, **changes: str) -> Row:
    where: ResultKey = {**WHERE, **changes}  # type: ignore[typeddict-item]
    return Row.of(metric, Interval(value, value - 0.1, value + 0.1), 200, 0.25, **where)


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=100)
    report.table(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=40)
@given(numbers)
def test_bootstrap_holds_the_mean_between_the_extremes(values: list[float]) -> None:
    found = bootstrap(values, samples=50)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_bootstrap_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap(values, samples=4000)
    error = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_bootstrap_covers_the_truth_in_about_95_of_100_experiments() -> None:
    generator = np.random.default_rng(0)
    intervals = [bootstrap(generator.random(100) < 0.3, samples=300, seed=i) for i in range(300)]
    assert 0.90 <= np.mean([i.low <= 0.3 <= i.high for i in intervals]) <= 0.985


def test_bootstrap_is_deterministic_and_takes_a_seed() -> None:
    values = np.arange(30.0) ** 2
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)


def test_bootstrap_in_parts_equals_bootstrap_at_once() -> None:
    values = np.random.default_rng(0).random(9000)  # 9000 x 1000 does not fit one part
    draws = np.random.default_rng(0).integers(9000, size=(1000, 9000))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    found = bootstrap(values)
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("values", [[], [[1, 2]], 0.5, [math.nan, 1.0], [math.inf]])
def test_bootstrap_refuses(values: object) -> None:
    with pytest.raises(ValueError, match="bootstrap"):
        bootstrap(values)  # type: ignore[arg-type]


def test_unknown_metric_is_an_error_that_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"'recall'.*attributes.*r10_image_to_speech.*bits"):
        row("recall")


def test_metric_names_are_those_of_the_design() -> None:
    directions = ("speech_to_image", "image_to_speech", "speech_to_text")
    retrieval = {f"r{k}_{d}" for k in (1, 5, 10) for d in directions}
    judged = {f"{what}_top{k}" for k in (1, 5) for what in ("speech", "concept", "judge")} | {"style", "judge_style"}
    judged |= {"novelty", "novelty_real", "diversity", "diversity_real", "zero_shot1", "zero_shot5"}
    others = {"attributes", "colours", "exact", "mood", "swap", "fid", "is", "classifier", "psnr", "bits"}
    others |= {"bits_per_second"}
    benchmarks = {"seconds", "matrix_products", "samples_per_second", "step_ratio", "bare_ratio", "data_share"}
    benchmarks |= {"exchange_share", "checkpoint_share", "flops_utilisation", "scaling_efficiency"}
    benchmarks |= {"step_operations"}
    assert set(METRICS) == retrieval | judged | others | benchmarks


def test_metric_text_is_in_its_unit() -> None:
    assert METRICS["exact"].text(0.7126) == "71.3"
    assert METRICS["fid"].text(12.345) == "12.3"
    assert METRICS["is"].text(2.345) == "2.35"
    assert METRICS["fid"].text(math.nan) == "–"


def test_report_survives_the_file_and_nan_is_null(tmp_path: Path) -> None:
    unknown = Row.of("fid", Interval(math.inf), 3, **WHERE)
    path = tmp_path / "evaluation" / "report.json"
    Report({"corpus": "garden", "loss": math.nan, "سؤال": [1]}, [row(), unknown]).write(path)
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    keys = {"metric", "language", "split", "condition", "value", "low", "high", "chance", "n", "system"}
    assert set(content["rows"][0]) == keys
    assert content["rows"][1]["value"] is content["rows"][1]["low"] is content["meta"]["loss"] is None
    read = Report.read(path)
    assert read.rows[0] == row()
    assert math.isnan(read.rows[1].value)
    assert read.meta["سؤال"] == [1]


@pytest.mark.parametrize("text", ["", "[]", '{"meta": {}}', '{"meta": {}, "rows": [{"metric": "exact"}]}'])
def test_what_is_no_report_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(StaError, match="report.json is no report"):
        Report.read(path)


def test_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(StaError, match="nowhere.json"):
        Report.read(tmp_path / "nowhere.json")


def test_known_first() -> None:
    assert known_first(["x", "both", "seen", "x"], iter(("seen", "voice", "both"))) == ["seen", "both", "x"]


def test_table_shows_every_number_within_100_columns() -> None:
    languages = ("en", "ar", "de", "es", "sw")
    rows = [
        row(metric, 312.7 if metric == "fid" else 0.7, language=language, split=split)
        for language in languages
        for metric in METRICS
        for split in SPLITS
    ]
    rows.append(row(value=0.9, system="tokenizer"))
    text, percents = printed(Report({}, rows)), sum(metric.unit == "%" for metric in METRICS.values())
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert text.count("70.0 (60.0–80.0)") == len(languages) * len(SPLITS) * percents
    assert text.count("312.7 (312.6–312.8)") == len(languages) * len(SPLITS)
    assert text.index("speech, clean") < text.index("tokenizer, clean")
    assert re.search(r"tokenizer, clean, both.*exact % +90.0 \(80.0–100.0\) +25.0", text, re.S)
    assert re.search(r"es +sw +chance", text)


def test_table_shows_chance_and_its_range() -> None:
    other = Row.of("exact", Interval(0.5), 10, 0.125, language="ar", split="both", condition="clean", system="speech")
    assert "12.5–25.0" in printed(Report({}, [row(), other]))


def test_a_metric_of_an_older_version_is_read_by_its_new_name(tmp_path: Path) -> None:
    row: dict[str, object] = {"metric": "reader", **WHERE}
    row |= {"value": 0.9, "low": None, "high": None, "chance": None, "n": 3}
    (tmp_path / "report.json").write_text(json.dumps({"meta": {}, "rows": [row]}))
    assert [r.metric for r in Report.read(tmp_path / "report.json").rows] == ["classifier"]
