"""Faults on purpose: each does what it says, once, and training survives it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sta.distributed.sharding import BatchShard
from sta.errors import STALLED, TrainingError
from sta.training import checkpoint
from sta.training.faults import KINDS, QUIET, VARIABLE, Fault, Faults, parse_faults
from sta.training.record import Log, MicroBatches
from tests.training.test_loop import STEPS, Line, Points, assert_as_straight, crash, metrics, run, straight, weights  # noqa: F401

ROOT = Path(__file__).parent.parent.parent
STEP = """
import sys
from pathlib import Path
from tests.training.test_loop import Line, run
run(Line(), Path(sys.argv[1]), ema=0.9)
"""


def start(folder: Path, faults: str = "") -> subprocess.CompletedProcess[str]:
    """A training of its own, in a process of its own."""
    environment = {**os.environ, VARIABLE: faults, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", STEP, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def struck(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log" / "faults.jsonl").read_text().splitlines()]


# ---- what is asked for --------------------------------------------------------------------------------------


def test_faults_are_read_as_they_are_written() -> None:
    faults = [Fault("kill", "step", 37, 1), Fault("torn", "rename", 40)]
    assert parse_faults("kill@step:37,rank:1; torn@rename:40") == faults
    assert [parse_faults(str(fault)) for fault in faults] == [[fault] for fault in faults]
    assert parse_faults("") == parse_faults(" ; ") == []


@pytest.mark.parametrize(
    "text", ["kill", "kill@step", "kill@step:x", "blow@step:3", "nan@save:3", "kill@step:3,node:1"]
)
def test_what_is_no_fault_is_said(text: str) -> None:
    with pytest.raises(
        TrainingError, match=rf"^STA_FAULT: '{text}' is no fault; there are kill@step\|.*nan@step:"
    ) as no:
        parse_faults(f"kill@step:2;{text}")
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("text", ["kill@rename:3,rank:1", "torn@rename:3,rank:2"])
def test_what_would_never_strike_is_said(text: str) -> None:
    with pytest.raises(TrainingError, match=rf"'{text}' would never strike: leave ',rank:\d' out"):
        parse_faults(text)
    assert parse_faults("kill@rename:3,rank:0")


def test_every_point_is_struck() -> None:
    points = {point for points in KINDS.values() for point in points}
    code = "".join((ROOT / "sta" / "training" / f"{name}.py").read_text() for name in ("loop", "step", "checkpoint"))
    struck = set(re.findall(r'strike\("(\w+)"', code)) | set(re.findall(r'asks\("\w+", "(\w+)"', code))
    assert struck == points
    assert set(re.findall(r'asks\("(\w+)"', code)) == set(QUIET)


def test_a_fault_strikes_once_and_only_its_rank(tmp_path: Path) -> None:
    record = tmp_path / "log" / "faults.jsonl"
    faults = parse_faults("nan@step:3,rank:1; nan@step:4")
    assert not Faults(faults, record, 0).asks("nan", "step", 3)
    other = Faults(faults, record, 1)
    assert [other.asks("nan", "step", step) for step in (2, 3, 3, 4)] == [False, True, False, True]
    assert not Faults(faults, record, 1).asks("nan", "step", 3), "it was struck before this start"
    assert Faults(faults, record, 0).asks("nan", "step", 4), "the other rank has its own turn"


# ---- what training makes of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill@step:8", "kill@save:6", "kill@rename:6", "kill@prune:6", "kill@prune:3"])
def test_killed_and_started_again_is_as_never_killed(
    fault: str,
    straight: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    assert start(tmp_path, fault).returncode == -signal.SIGKILL
    assert struck(tmp_path) == [{"fault": fault, "rank": 0}]
    assert checkpoint.all_of(tmp_path / "checkpoints"), "no good checkpoint was left"
    again = start(tmp_path, fault)
    assert again.returncode == 0, again.stderr
    assert_as_straight(tmp_path, straight)


def test_a_torn_write_costs_one_checkpoint(straight: Path, tmp_path: Path) -> None:  # noqa: F811
    assert start(tmp_path, "torn@rename:6; kill@prune:6").returncode == -signal.SIGKILL
    assert checkpoint.all_of(tmp_path / "checkpoints")[0][0] == 6
    again = start(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "truncated or changed; this checkpoint is passed over" in again.stderr
    assert_as_straight(tmp_path, straight)


def test_a_full_disk_stops_with_the_last_checkpoint_whole(
    straight: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "full@save:6")
    with pytest.raises(TrainingError, match=r"step-0000006: cannot be written \(No space left on device, as STA_FAULT"):
        run(Line(), tmp_path, ema=0.9)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000003"]
    run(Line(), tmp_path, ema=0.9)
    assert_as_straight(tmp_path, straight)


def test_a_loss_that_is_no_number_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nan@step:5")
    run(Line(), tmp_path)
    assert [json.loads(x)["step"] for x in (tmp_path / "log" / "skipped.jsonl").read_text().splitlines()] == [5]
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


# ---- memory -------------------------------------------------------------------------------------------------


class Shares(Line):
    """A line whose items are shared out, as every real task's are."""

    def batch(self, step: int, shard: BatchShard) -> Points:
        whole = super().batch(step, BatchShard())
        self.asked[-1:] = [(step, shard.part, shard.parts)]
        return Points(shard.of(whole.x), shard.of(whole.y))


def test_out_of_memory_halves_the_parts_and_keeps_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "oom@forward:5")
    task = Shares()
    run(task, tmp_path)
    whole, halved = [(step, 0, 1) for step in range(5)], [(s, p, 2) for s in range(4, STEPS) for p in (0, 1)]
    assert task.asked == [*whole, *halved]
    assert [line["samples"] for line in metrics(tmp_path)] == [4 * n for n in range(1, STEPS + 1)]
    assert json.loads((tmp_path / "log" / "micro_batches.json").read_text()) == {"parts": 2}


class Fit(torch.nn.Module):
    """Nothing that is drawn, and no norm over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(3, 2)

    def forward(self, batch: Points) -> dict[str, torch.Tensor]:
        return {"mse": (self.line(batch.x) - batch.y).pow(2).mean()}


def plain() -> Shares:
    task = Shares()
    torch.manual_seed(1)
    task.module = Fit()  # type: ignore[assignment]
    return task


def test_the_parts_make_the_gradient_of_the_whole(tmp_path: Path) -> None:
    run(plain(), tmp_path / "whole")
    (tmp_path / "halved" / "log").mkdir(parents=True)
    (tmp_path / "halved" / "log" / "micro_batches.json").write_text('{"parts": 2}')
    task = plain()
    run(task, tmp_path / "halved")
    assert all(parts == 2 for _, _, parts in task.asked)
    for one, two in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "halved"), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "halved")[name], value, rtol=1e-4, atol=1e-6)


def test_smaller_parts_after_an_odd_step_are_the_gradient_of_the_whole_too(tmp_path: Path) -> None:
    """Memory ran out on one of several processes: the next start goes on, in halves, from what whole steps saved."""
    run(plain(), tmp_path / "whole")
    task = plain()
    task.at, task.do = 4, crash
    with pytest.raises(RuntimeError, match="went away"):
        run(task, tmp_path / "halved")
    assert checkpoint.all_of(tmp_path / "halved" / "checkpoints")[0][0] == 3
    (tmp_path / "halved" / "log" / "micro_batches.json").write_text('{"parts": 2}')
    run(plain(), tmp_path / "halved")
    for one, two in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "halved"), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "halved")[name], value, rtol=1e-4, atol=1e-6)


class Full(Fit):
    """Memory runs out once, in the third forward of a batch in four parts."""

    def __init__(self, at: int):
        super().__init__()
        self.calls, self.at = 0, at

    def forward(self, batch: Points) -> dict[str, torch.Tensor]:
        self.calls += 1
        if self.calls == self.at:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(batch)


def test_what_earlier_parts_added_up_is_not_kept(tmp_path: Path) -> None:
    for name, at in (("full", 4 * 2 + 3), ("straight", 0)):
        (tmp_path / name / "log").mkdir(parents=True)
        (tmp_path / name / "log" / "micro_batches.json").write_text('{"parts": 4}')
        task = plain()

        def twice(step: int, shard: BatchShard) -> Points:
            whole = Line.batch(plain(), step, BatchShard())
            return Points(*(shard.of(value.repeat(2, 1)) for value in (whole.x, whole.y)))

        task.batch = twice  # type: ignore[method-assign]
        torch.manual_seed(1)
        task.module = Full(at)  # type: ignore[assignment]
        run(task, tmp_path / name, batch=8)
    assert json.loads((tmp_path / "full" / "log" / "micro_batches.json").read_text()) == {"parts": 8}
    for one, two in zip(metrics(tmp_path / "straight"), metrics(tmp_path / "full"), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_memory_that_the_optimizer_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: torch.optim.AdamW, closure: object = None) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(TrainingError, match=r"stage line: out of memory in the optimizer \(CUDA out of memory\); take"):
        run(plain(), tmp_path)


def test_parts_that_cannot_be_made_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "oom@forward:3")
    task = plain()
    whole = task.batch

    def few(step: int, shard: BatchShard) -> Points:
        if shard.parts > 1:
            raise TrainingError("stage line: too few to shard among 2")
        return whole(step, shard)

    task.batch = few  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="too few to shard among 2"):
        run(task, tmp_path)
    assert not (tmp_path / "log" / "micro_batches.json").exists()


def test_one_item_that_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "oom@forward:2; oom@forward:3; oom@forward:4")
    with pytest.raises(TrainingError, match="stage line: out of memory with 1 of the batch's items at a time"):
        run(plain(), tmp_path)


def test_parts_that_no_longer_divide_the_share_are_forgotten(tmp_path: Path) -> None:
    parts = MicroBatches("line", tmp_path, 8)
    parts.halve()
    parts.halve()
    assert [MicroBatches("line", tmp_path, shard).count for shard in (8, 4, 12, 6)] == [4, 4, 4, 1]


# ---- the log ------------------------------------------------------------------------------------------------


def test_a_line_that_is_half_written_is_left_out(straight: Path, tmp_path: Path) -> None:  # noqa: F811
    assert start(tmp_path, "kill@step:8").returncode == -signal.SIGKILL
    with (tmp_path / "log" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    assert start(tmp_path).returncode == 0
    assert_as_straight(tmp_path, straight)


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with Log(tmp_path, 0, True) as log:
        log.file.close()
        log.file = open("/dev/full", "a")  # noqa: SIM115
        with pytest.raises(TrainingError, match=r"cannot be written at step 3 \(No space left on device\); free space"):
            log.write(3, 12, {"loss": 1.0})
        log.file = open(os.devnull, "a")  # noqa: SIM115


# ---- standing still -----------------------------------------------------------------------------------------


def test_a_training_that_is_stuck_ends_itself(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.training.test_loop import Line, run\n"
        "run(Line(4, lambda x: time.sleep(60)), Path(sys.argv[1]), stall_timeout=1)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command: Sequence[str] = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == STALLED
    assert "sta: stage line: no step in 1 s (stages.*.stall_timeout)" in done.stderr
    assert "time.sleep" in done.stderr or "<string>" in done.stderr, "it does not say where it was stuck"
    assert checkpoint.all_of(tmp_path / "checkpoints")[0][0] == 3
