"""The training benchmark: what is counted, what is divided by what, and launches in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from sta.bench import scaling, training
from sta.bench.operations import Operations, operations_report, operations_table
from sta.bench.scaling import bench_scaling
from sta.bench.training import BARE, HAND, LOOP, MEMORY, PEAKS, _rows, peak_named, training_table
from sta.cli.main import main
from sta.config.recipe import Optimisation, load_recipe
from sta.errors import StaError
from sta.metrics.rows import Report
from sta.models.flops import flops_of
from tests.training.facts import FACTS

SETTINGS = Optimisation(steps=100, batch=8, lr=1e-3, warmup=1, save_every=10)
FAST = {BARE: 0.5, HAND: 0.8, MEMORY: 1.0, LOOP: 1.6, "data": 0.4, "save": 4.0}
SLOW = {name: 2 * seconds for name, seconds in FAST.items()}


def values(rows: Sequence[object]) -> dict[tuple[str, str], float]:
    return {(r.metric, r.system): r.value for r in rows}  # type: ignore[attr-defined]


def test_flops_of_forward_and_backward_are_counted() -> None:
    layer, x = nn.Linear(8, 16), torch.randn(4, 8, requires_grad=True)
    assert flops_of(lambda: layer(x)) == 2 * 4 * 8 * 16
    assert flops_of(lambda: layer(x).sum().backward()) == 3 * 2 * 4 * 8 * 16, "the gradient of x and of the weight"


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362), ("NVIDIA GH200 480GB", 989), ("NVIDIA RTX A4000", None), ("NVIDIA L40", None),
    ],
)  # fmt: skip
def test_the_peak_is_of_the_gpu_that_is_named(name: str, tflops: float | None) -> None:
    assert peak_named(name) == (tflops and tflops * 1e12)


def test_each_known_gpu_is_found_by_its_own_name() -> None:
    assert {name: peak_named(name) for name in PEAKS} == {name: tflops * 1e12 for name, tflops in PEAKS.items()}


def test_what_is_divided_by_what() -> None:
    found = values(_rows("decoder", SETTINGS, [FAST, SLOW, SLOW], 32, 100.0))
    assert found["samples_per_second", LOOP] == 8 / 3.2, "the median round"
    assert found["samples_per_second", HAND] == 8 / 1.6
    assert found["step_ratio", LOOP] == 1 / 0.8
    assert found["bare_ratio", LOOP] == pytest.approx(1.6 / 0.5)
    assert found["bare_ratio", HAND] == 0.8 / 0.5
    assert found["data_share", LOOP] == 0.4 / 1.6
    assert found["exchange_share", LOOP] == pytest.approx(0.2)
    assert found["checkpoint_share", LOOP] == 4 / (4 + 16)
    assert found["flops_utilisation", LOOP] == 32 / (3.2 * 100)
    assert ("flops_utilisation", LOOP) not in values(_rows("decoder", SETTINGS, [FAST], 32, 0.0))


def test_the_table_has_a_line_for_each_stage_and_fits() -> None:
    rows = [row for stage in ("tokenizer", "distill-pooled") for row in _rows(stage, SETTINGS, [FAST], 32, 0.0)]
    table = training_table(Report({"processes": 1, "threads": 2}, rows))
    assert list(table.columns[0].cells) == ["tokenizer", "distill-pooled"]
    assert list(table.columns[-1].cells) == ["–", "–"]
    assert sum(max(len(str(c)) for c in (column.header, *column.cells)) + 2 for column in table.columns) <= 80


def test_launches_take_turns_and_are_compared_with_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def launch(command: Sequence[str], processes: int, threads: int) -> Report:
        launched.append((processes, threads, *command))
        return Report({}, _rows("decoder", SETTINGS, [{1: SLOW, 2: FAST, 4: FAST}[processes]], 1, 0.0))

    monkeypatch.setattr(scaling, "_launch", launch)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    report = bench_scaling(["bench"], [4, 1, 2], 2)
    assert launched == [(n, 2, "bench") for n in (1, 2, 4, 1, 2, 4)]
    found = {r.condition: r.value for r in report.rows if r.metric == "scaling_efficiency"}
    assert found == {"decoder, 1 processes": 1, "decoder, 2 processes": 1, "decoder, 4 processes": 0.5}
    table = training_table(report)
    assert list(table.columns[0].cells) == [f"decoder, {n} processes" for n in (1, 2, 4)]
    first = {column.header: next(iter(column.cells)) for column in table.columns}
    assert (first["efficiency"], first["exchange"], first["data"]) == ("100.0", "20.0", "25.0")


def test_a_distillation_step_takes_few_operations() -> None:
    """4,242 at 1a56c21, as on a GPU; half of that is gone, and each linear layer alone takes some twenty."""
    recipe = load_recipe("garden", ["precision=bf16"])
    report = operations_report(recipe, FACTS, ["distill-pooled"])
    assert report.rows[0].value < 2_700
    (line,) = operations_table(report).columns[1].cells
    assert line == f"{report.rows[0].value:,.0f}"


def test_operations_are_counted_once_each() -> None:
    with Operations() as counted:
        torch.ones(2, 2) @ torch.ones(2, 2)
    assert counted.counts == {"aten.ones.default": 2, "aten.mm.default": 1}


@pytest.mark.slow
def test_a_launch_that_fails_says_why_in_its_own_sentence() -> None:
    with pytest.raises(StaError, match=r"^2 processes: .*no file or name 'nowhere'"):
        scaling._launch(["bench", "train", "nowhere"], 2, 1)
    assert scaling._reason("W1124 chatter\nsta: too few recordings\nTraceback") == "too few recordings"


def test_what_cannot_be_measured_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--tflops", "0"], ["--tflops", "many"], ["--processes", "0"]):
        with pytest.raises(SystemExit, match="2"):
            main(["bench", "train", "garden-tiny", *wrong])
        assert "is not a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "needed"),
    [
        (["tokenizer"], "prepare teacher"),
        (["decoder", "teacher"], "prepare teacher tokenizer distill-pooled"),
        ([], "prepare teacher tokenizer distill-pooled decoder"),
    ],
)
def test_only_the_stages_before_those_that_are_measured_must_be_done(
    named: list[str], needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = []

    def measure(workspace: object, stages: list[str], *rest: object) -> Report:
        measured.append(stages)
        return Report({"processes": 1, "threads": 1}, [])

    monkeypatch.setattr(training, "bench_training", measure)
    command = ["bench", "train", "garden-tiny", "--out", str(tmp_path), *(f"--stage={stage}" for stage in named)]
    for stage in needed.split():
        assert main(command) == 2
        assert f"run stage '{stage}' first" in capsys.readouterr().err
        (tmp_path / "garden-tiny" / stage / "final").mkdir(parents=True)
    assert main(command) == 0
    assert measured == [named or ["teacher", "tokenizer", "distill-pooled", "decoder", "classifier"]]
