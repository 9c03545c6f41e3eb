"""The training loop: stopped and continued is as never stopped, whatever stopped it."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sta.config.recipe import Optimisation
from sta.data.checksums import write_sums
from sta.distributed import ranks
from sta.distributed.sharding import BatchShard
from sta.errors import Interrupted, TrainingError
from sta.signals import SIGNALS
from sta.training import checkpoint, runtime
from sta.training.batch import Batch
from sta.training.loop import train
from sta.training.optimizers import build_optimizer, learning_rate
from sta.training.task import Task
from tests.processes import LIMIT, said_by, started, wait_for

STEPS = 9


@dataclass(frozen=True)
class Points(Batch):
    """Points x [4, 3] and what is wanted of them, y [4, 2]."""

    x: Tensor
    y: Tensor


class Regression(nn.Module):
    """Noise in the step, a buffer that moves, and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.norm, self.idle = nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.idle.requires_grad_(False)

    def forward(self, batch: Points) -> dict[str, Tensor]:
        noisy = batch.x + 0.1 * torch.randn_like(batch.x)
        error = (self.norm(self.line(noisy)) - batch.y).pow(2).mean()
        return {"mse": error, "size": self.line.weight.pow(2).sum(), "seen": batch.x.mean()}


class Line(Task):
    """A line through synthetic points; `at` is the step whose batch does something first."""

    name = "line"
    weights = {"mse": 1.0, "size": 0.01}  # noqa: RUF012

    def __init__(self, at: int | None = None, do: Any = None):
        torch.manual_seed(0)
        self.module, self.at, self.do, self.asked = Regression(), at, do, []  # type: ignore[var-annotated]

    def batch(self, step: int, shard: BatchShard) -> Points:
        self.asked.append(step)
        x = torch.from_numpy(np.random.default_rng([7, step]).standard_normal((4, 3)).astype(np.float32))
        y = x[:, :2] * 2 - 1
        if step == self.at:
            x = self.do(x)
        return Points(x, y)

    def items(self, step: int) -> list[str]:
        return [f"point-{4 * step + i}" for i in range(4)]

    def export(self, module: nn.Module, folder: Path) -> None:
        save_file(module.state_dict(), folder / "weights.safetensors")


def settings(**changes: Any) -> Optimisation:
    return Optimisation(
        **{"steps": STEPS, "batch": 4, "lr": 0.05, "warmup": 2, "log_every": 1, "save_every": 3, **changes}
    )


def run(task: Task, folder: Path, **changes: Any) -> Path:
    return train(task, settings(**changes), folder, 3, runtime.start("fp32"))


def terminate(x: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGTERM)
    return x


def crash(x: Tensor) -> Tensor:
    raise RuntimeError("the machine went away")


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "final" / "weights.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "log" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    run(Line(), folder, ema=0.9)
    return folder


def assert_as_straight(folder: Path, straight: Path) -> None:
    one, two = weights(folder), weights(straight)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].equal(two[name]), name
    assert metrics(folder) == metrics(straight)
    assert not (folder / "checkpoints").exists()


def test_it_logs_every_loss_and_their_weighted_sum(straight: Path) -> None:
    log = metrics(straight)
    assert [x["step"] for x in log] == list(range(1, STEPS + 1))
    assert [x["samples"] for x in log] == [4 * n for n in range(1, STEPS + 1)]
    assert set(log[0]) == {"step", "samples", "loss", "norm", "mse", "size", "seen"}
    assert log[0]["loss"] == pytest.approx(log[0]["mse"] + 0.01 * log[0]["size"], abs=1e-5)
    assert sorted(p.name for p in straight.iterdir()) == ["final", "log"]


def test_it_learns(tmp_path: Path) -> None:
    run(Line(), tmp_path, steps=60, log_every=10)
    log = metrics(tmp_path)
    assert [x["step"] for x in log] == [10, 20, 30, 40, 50, 60]
    assert log[-1]["mse"] < 0.6 * log[0]["mse"]


def test_twice_is_the_same(straight: Path, tmp_path: Path) -> None:
    run(Line(), tmp_path, ema=0.9)
    assert_as_straight(tmp_path, straight)


@pytest.mark.parametrize("at", [0, 2, 3, 7, STEPS - 1])
def test_stopped_and_continued_is_as_never_stopped(at: int, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=rf"stage line: stopped at step {at + 1} of {STEPS} and saved") as stop:
        run(Line(at, terminate), tmp_path, ema=0.9)
    assert stop.value.exit_code == 75
    assert not (tmp_path / "final").exists()
    again = Line()
    run(again, tmp_path, ema=0.9)
    assert again.asked == list(range(at + 1, STEPS))
    assert_as_straight(tmp_path, straight)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_saves(number: signal.Signals, tmp_path: Path) -> None:
    def ask(x: Any) -> Any:
        os.kill(os.getpid(), number)
        return x

    with pytest.raises(Interrupted, match=r"stopped at step 3 of \d+ and saved"):
        run(Line(2, ask), tmp_path)
    assert checkpoint.all_of(tmp_path / "checkpoints")[0] == (3, tmp_path / "checkpoints" / "step-0000003")


#: Trains for long in a process group of its own, with processes that load; leaves with the code of what stopped it.
LONG = """
import os, sys
from pathlib import Path
from sta.errors import Interrupted
from tests.training.test_loop import Line, run

os.setpgrp()
print("ready", file=sys.stderr, flush=True)
try:
    run(Line(), Path(sys.argv[1]), steps=100_000, workers=2)
except Interrupted as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_all_processes_of_a_rank_saves(number: signal.Signals, tmp_path: Path) -> None:
    """Launchers send it so: those that load go on until the rank has saved."""
    with started(LONG, tmp_path) as process:
        assert said_by(process) == "ready\n"
        wait_for(lambda: bool(checkpoint.all_of(tmp_path / "checkpoints")))
        os.killpg(process.pid, number)
        assert process.wait(LIMIT) == 75
    newest, _ = checkpoint.all_of(tmp_path / "checkpoints")[0]
    losses = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == newest


def test_stopped_twice(straight: Path, tmp_path: Path) -> None:
    for at in (1, 5):
        with pytest.raises(Interrupted):
            run(Line(at, terminate), tmp_path, ema=0.9)
    run(Line(), tmp_path, ema=0.9)
    assert_as_straight(tmp_path, straight)


@pytest.mark.parametrize(("at", "first"), [(2, 0), (4, 3), (8, 6)])
def test_a_crash_costs_the_steps_since_the_last_checkpoint(at: int, first: int, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="went away"):
        run(Line(at, crash), tmp_path, ema=0.9)
    again = Line()
    run(again, tmp_path, ema=0.9)
    assert again.asked == list(range(first, STEPS))
    assert_as_straight(tmp_path, straight)


def test_without_an_average_too(tmp_path: Path) -> None:
    run(Line(), tmp_path / "one")
    with pytest.raises(Interrupted):
        run(Line(4, terminate), tmp_path / "two")
    run(Line(), tmp_path / "two")
    assert_as_straight(tmp_path / "two", tmp_path / "one")


def test_the_average_is_not_the_last_weights(straight: Path, tmp_path: Path) -> None:
    run(Line(), tmp_path)
    assert not weights(tmp_path)["line.weight"].equal(weights(straight)["line.weight"])
    assert not weights(tmp_path)["norm.running_mean"].equal(weights(straight)["norm.running_mean"])
    assert metrics(tmp_path) == metrics(straight)  # and it does not change the training


def test_a_finished_stage_is_not_done_again(straight: Path) -> None:
    task = Line()
    assert run(task, straight, ema=0.9) == straight / "final"
    assert task.asked == []


def test_signals_are_handed_back(straight: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in SIGNALS]
    with pytest.raises(Interrupted):
        run(Line(0, terminate), tmp_path)
    assert [signal.getsignal(s) for s in SIGNALS] == before


# --- what must stop a training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_where_none_may_be(value: float, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"stage line: not finite at step 5 \(loss mse (nan|inf)") as error:
        run(Line(4, lambda x: torch.full_like(x, value)), tmp_path, max_skipped_steps=0)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "final").exists()
    assert checkpoint.all_of(tmp_path / "checkpoints")[0] == (3, tmp_path / "checkpoints" / "step-0000003")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_cannot_be_made_is_one_sentence(workers: int, tmp_path: Path) -> None:
    """Also where another process makes it, whose errors torch gives with their traceback."""

    def refuse(x: Tensor) -> Tensor:
        raise TrainingError("stage line: too few points")

    with pytest.raises(TrainingError, match=r"^stage line: too few points$"):
        run(Line(4, refuse), tmp_path, workers=workers)


def skipped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log" / "skipped.jsonl").read_text().splitlines()]


def test_a_step_that_is_not_finite_is_passed_over_and_recorded(straight: Path, tmp_path: Path) -> None:
    """Neither weights nor running means see it, and the steps after it are the same again when it is done again."""
    run(Line(4, lambda x: torch.full_like(x, float("nan"))), tmp_path / "one", ema=0.9)
    assert all(value.isfinite().all() for value in weights(tmp_path / "one").values())
    assert not weights(tmp_path / "one")["line.weight"].equal(weights(straight)["line.weight"])
    assert skipped(tmp_path / "one") == [
        {"step": 5, "why": "loss mse nan, seen nan", "items": [f"point-{n}" for n in range(16, 20)]}
    ]
    log = metrics(tmp_path / "one")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert [line.get("skipped") for line in log] == [None] * 4 + [1] * 4
    assert log[:4] == metrics(straight)[:4]

    with pytest.raises(Interrupted):
        run(Stopped(7, 4), tmp_path / "two", ema=0.9)
    run(Stopped(None, 4), tmp_path / "two", ema=0.9)
    assert_as_straight(tmp_path / "two", tmp_path / "one")
    assert skipped(tmp_path / "two") == skipped(tmp_path / "one")


def not_a_number(batch: Points) -> Points:
    return replace(batch, x=batch.x * float("nan"))


class Stopped(Line):
    """Asked to stop at one step, with a batch that is not finite at another."""

    def __init__(self, at: int | None, bad: int):
        super().__init__(at, terminate)
        self.bad = bad

    def batch(self, step: int, shard: BatchShard) -> Points:
        batch = super().batch(step, shard)
        return not_a_number(batch) if step == self.bad else batch


def test_a_resumed_stage_forgets_what_it_does_again(tmp_path: Path) -> None:
    task = Stopped(None, 4)
    task.at, task.do = 5, crash
    with pytest.raises(RuntimeError, match="went away"):
        run(task, tmp_path)
    assert [line["step"] for line in skipped(tmp_path)] == [5]
    run(Line(), tmp_path)  # from step 3 on, and now the batch is sound
    assert skipped(tmp_path) == []


def test_too_many_steps_that_are_not_finite_stop(tmp_path: Path) -> None:
    class Bad(Line):
        def batch(self, step: int, shard: BatchShard) -> Points:
            return not_a_number(super().batch(step, shard))

    with pytest.raises(
        TrainingError, match=r"which makes 3 such steps, more than stages.\*.max_skipped_steps allows \(2\)"
    ):
        run(Bad(), tmp_path, max_skipped_steps=2)
    assert [line["step"] for line in skipped(tmp_path)] == [1, 2, 3]


class Steep(nn.Module):
    """The square root of nothing: a finite loss whose gradient is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1)

    def forward(self, batch: Points) -> dict[str, Tensor]:
        return {"mse": (self.line(batch.x) * 0).sqrt().mean()}


@pytest.mark.parametrize("steps", [1, 3])
def test_a_gradient_that_is_not_finite_stops_before_it_is_saved(steps: int, tmp_path: Path) -> None:
    task = Line()
    task.module = Steep()
    with pytest.raises(TrainingError, match=r"not finite at step 1 \(gradient (nan|inf)"):
        run(task, tmp_path, steps=steps, save_every=1, max_skipped_steps=0)
    assert not (tmp_path / "checkpoints").exists()


def fail_at(count: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the `count`-th save write something and then fail."""
    calls, save = iter(range(1, 99)), checkpoint.utils.save

    def and_fail(content: Any, path: Path, **how: Any) -> None:
        save(content, path, **how)
        if path.name == "model.safetensors" and next(calls) == count:
            raise error

    monkeypatch.setattr(checkpoint.utils, "save", and_fail)


def test_a_save_that_fails_leaves_the_one_before(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(2, patch, OSError(28, "No space left on device"))
        with pytest.raises(TrainingError, match=r"step-0000006: cannot be written \(No space left") as error:
            run(Line(), tmp_path, ema=0.9)
    assert "\n" not in str(error.value)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-0000003"]
    run(Line(), tmp_path, ema=0.9)
    assert_as_straight(tmp_path, straight)


def test_a_failed_save_is_known_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(1, monkeypatch, OSError(28, "No space left on device"))
    reached = []

    class Slow(Line):
        def batch(self, step: int, shard: BatchShard) -> Points:
            reached.append(step)
            while step == 3 and (tmp_path / "checkpoints" / "step-0000003.partial").exists():
                time.sleep(0.01)  # what failed is removed
            return super().batch(step, shard)

    with pytest.raises(TrainingError, match="step-0000003: cannot be written"):
        run(Slow(), tmp_path)
    assert reached[-1] < 5, "the next one is after step 6"


@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error: No space left"), RuntimeError("PytorchStreamWriter failed")]
)
def test_a_full_disk_as_the_libraries_tell_it(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(2, monkeypatch, error)
    with pytest.raises(TrainingError, match="cannot be written"):
        run(Line(), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-0000003"]


@pytest.mark.parametrize("where", [(checkpoint, "save_accelerator_state"), (Accelerator, "wait_for_everyone")])
def test_a_lost_process_is_not_a_full_disk(
    where: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks meet before, and under DeepSpeed while they save: the command line says that another is gone."""

    def lost(*args: Any, **kwargs: Any) -> None:
        monkeypatch.setattr(ranks, "_joined", lambda: True)
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:14")

    monkeypatch.setattr(*where, lost)
    with pytest.raises(RuntimeError, match="Connection closed by peer") as error:
        run(Line(), tmp_path)
    assert ranks.is_peer_lost(error.value)


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    """Whatever the steps that follow do to the weights meanwhile; and no other one's place is taken before."""
    snapshot, weight, step = checkpoint.Snapshot(), torch.zeros(3), torch.tensor(1.0)
    content = {"weights": {"a": weight, "b": nn.Parameter(torch.ones(2, 3).T)}, "state": [step, "kept", 7]}
    first = snapshot.take(content)
    weight += 5
    torch.testing.assert_close(first["weights"], {"a": torch.zeros(3), "b": torch.ones(3, 2)})
    assert first["weights"]["b"].is_contiguous()
    assert first["state"] == [torch.tensor(1.0), "kept", 7]
    places = [first["weights"]["a"].data_ptr()]
    second = snapshot.take(content)
    assert second["weights"]["a"].tolist() == [5, 5, 5]
    assert [second["weights"]["a"].data_ptr()] == places, "as much memory again as a checkpoint takes, not twice"
    assert snapshot.take({"c": weight})["c"].tolist() == [5, 5, 5], "of other tensors"


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.other.weight = self.one.weight

    def forward(self, batch: Points) -> dict[str, Tensor]:
        return {"mse": self.other(self.one(batch.x)).pow(2).mean()}


def test_tensors_of_two_names_come_back(tmp_path: Path) -> None:
    task = Line(4, terminate)
    task.module, task.export = Tied(), lambda module, folder: None  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run(task, tmp_path)
    again = Line()
    again.module, again.export = Tied(), lambda module, folder: None  # type: ignore[method-assign]
    run(again, tmp_path)
    assert again.asked[0] == 5


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(Line(7, terminate), tmp_path, save_every=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-0000006", "step-0000008"]


class Told(nn.Module):
    """Its error is what the batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Points) -> dict[str, Tensor]:
        return {"mse": batch.x + 0 * self.weight.sum()}


@pytest.mark.parametrize(("phase_change_step", "best"), [(0, 2), (3, 6), (4, 6)])
def test_the_best_checkpoint_is_kept_of_those_that_compare(phase_change_step: int, best: int, tmp_path: Path) -> None:
    class Errors(Line):
        def batch(self, step: int, shard: BatchShard) -> Points:
            error = torch.tensor([1.0, 1.0, 0.1, 3.5, 2.0, 2.0, 6.0, 6.0, 6.0, 6.0][step])
            return Points(terminate(error) if step == 9 else error, error)

    task = Errors()
    task.module, task.phase_change_step = Told(), phase_change_step
    with pytest.raises(Interrupted):
        run(task, tmp_path, steps=11, save_every=2)
    assert [step for step, _ in checkpoint.all_of(tmp_path / "checkpoints")] == [10, 8, best]


def test_half_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for name in ("step-0000002", "step-0000009.partial", "step-0000005"):
        (tmp_path / name).mkdir()
        write_sums(tmp_path / name)
    os.replace(tmp_path / "step-0000005", tmp_path / "step-0000005.spoilt")
    assert checkpoint.all_of(tmp_path)[0] == (2, tmp_path / "step-0000002")
    assert checkpoint.all_of(tmp_path / "nothing") == []


@pytest.mark.parametrize("harm", ["cut", "gone", "flipped"])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "state.json", "SHA256SUMS"]
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    file: str, harm: str, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted):
        run(Line(7, terminate), tmp_path, ema=0.9)
    assert checkpoint.all_of(tmp_path / "checkpoints")[0] == (8, tmp_path / "checkpoints" / "step-0000008")
    spoil(tmp_path / "checkpoints" / "step-0000008" / file, harm)
    again = Line()
    run(again, tmp_path, ema=0.9)
    assert again.asked == list(range(6, STEPS))
    assert_as_straight(tmp_path, straight)
    said = capsys.readouterr().err
    assert "step-0000008/" in said
    assert "this checkpoint is passed over" in said
    if file != "SHA256SUMS":
        assert f"step-0000008/{file}: {'missing' if harm == 'gone' else 'truncated or changed'}" in said


def test_a_spoilt_checkpoint_takes_no_whole_ones_place(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(Line(7, terminate), tmp_path)  # saved after steps 3, 6 and 8
    spoil(tmp_path / "checkpoints" / "step-0000008" / "optimizer.bin", "cut")
    with pytest.raises(Interrupted):
        run(Line(6, terminate), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-0000006", "step-0000007"]


def test_a_checkpoint_without_any_checksum_is_not_trusted(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(Line(1, terminate), tmp_path)
    (tmp_path / "checkpoints" / "step-0000002" / "SHA256SUMS").write_text("")
    with pytest.raises(TrainingError, match="none of its checkpoints is whole"):
        run(Line(), tmp_path)


def test_two_different_signals_still_save(tmp_path: Path) -> None:
    def ask(x: Any) -> Any:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return x

    with pytest.raises(Interrupted, match="stopped at step 3"):
        run(Line(2, ask), tmp_path)


def test_a_spoilt_checkpoint_is_written_again_when_its_step_comes(straight: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(Line(6, terminate), tmp_path, ema=0.9)  # saved after steps 3, 6 and 7
    spoil(tmp_path / "checkpoints" / "step-0000007" / "optimizer.bin", "cut")
    with pytest.raises(Interrupted):
        run(Line(6, terminate), tmp_path, ema=0.9)
    again = Line()
    run(again, tmp_path, ema=0.9)
    assert again.asked == [7, 8]
    assert_as_straight(tmp_path, straight)


def test_no_whole_checkpoint_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(Line(4, terminate), tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        spoil(path / "optimizer.bin", "cut")
    before = sorted((tmp_path / "checkpoints").rglob("*"))
    with pytest.raises(TrainingError, match="none of its checkpoints is whole; remove the folder") as error:
        run(Line(), tmp_path)
    assert "\n" not in str(error.value)
    assert sorted((tmp_path / "checkpoints").rglob("*")) == before


def spoil(path: Path, harm: str) -> None:
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def test_a_checkpoint_of_another_network_is_said(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(Line(1, terminate), tmp_path)
    other = Line()
    other.module.line = nn.Linear(3, 4)  # type: ignore[attr-defined]
    other.module.norm = nn.BatchNorm1d(4)  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match=r"step-0000002: does not load .*saved by 1 process") as error:
        run(other, tmp_path)
    assert "\n" not in str(error.value)


# --- rate, optimiser -------------------------------------------------------------------------------------------


def test_the_rate_warms_up_and_falls() -> None:
    shape = settings(steps=100, warmup=10, lr=2.0)
    rates = [learning_rate(step, shape) for step in range(100)]
    np.testing.assert_allclose(rates[:10], 0.2 * np.arange(1, 11))
    assert max(rates) == pytest.approx(2.0)
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[55] == pytest.approx(2.0 * (0.02 + 0.98 / 2))
    assert 0.04 <= rates[-1] < 0.042
    assert learning_rate(500, shape) == pytest.approx(0.04)
    assert learning_rate(0, settings(warmup=0, lr=2.0)) == pytest.approx(2.0)
    assert learning_rate(0, settings(steps=5, warmup=5)) > 0


def test_every_trainable_parameter_is_optimised_once() -> None:
    module = Regression()
    optimizer = build_optimizer(module, settings(weight_decay=0.3))
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    trainable = [p for p in module.parameters() if p.requires_grad]
    assert sorted(map(id, grouped)) == sorted(map(id, trainable))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(module.line.weight)] == 0.3
    assert decay[id(module.line.bias)] == decay[id(module.norm.weight)] == 0
    assert id(module.idle.weight) not in decay


def test_tied_parameters_are_optimised_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    assert len([p for g in build_optimizer(module, settings()).param_groups for p in g["params"]]) == 3


def test_seeds_of_steps_differ() -> None:
    seeds = {
        runtime.step_seed(s, name, step, rank)
        for s in (0, 1)
        for name in ("a", "b")
        for step in range(9)
        for rank in (0, 1)
    }
    assert len(seeds) == 2 * 2 * 9 * 2


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
