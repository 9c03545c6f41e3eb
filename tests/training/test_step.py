"""One training step: several optimizers, updates that a flag masks, and a host that waits for no device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sta.bench.operations import ExampleTask, Operations
from sta.config.recipe import Optimisation, load_recipe
from sta.distributed.ahead import ahead_everywhere
from sta.distributed.sharding import BatchShard
from sta.errors import Interrupted
from sta.training import checkpoint, runtime
from sta.training.batch import Batch
from sta.training.faults import Faults
from sta.training.optimizers import Buffers, WeightAverage, build_optimizer, step_where
from sta.training.stages import settings_of
from sta.training.step import Trainer
from sta.training.task import Task, Update
from tests.training.facts import FACTS
from tests.training.test_loop import crash, metrics, run, skipped, terminate

CPU = torch.device("cpu")
STAGES = ("teacher", "tokenizer", "distill-pooled", "decoder", "classifier")


# ---- two optimizers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Real(Batch):
    """What the generator is to make, and noise to make it of: float32 [8, 2] each."""

    real: Tensor
    noise: Tensor


class Adversaries(nn.Module):
    """A generator and a discriminator of points."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, batch: Real, phase: str) -> dict[str, Tensor]:
        made = self.generator(batch.noise)
        if phase == "generator":
            return {"adversarial": -self.discriminator(made).mean(), "size": made.square().mean()}
        apart = self.discriminator(made.detach()).mean() - self.discriminator(batch.real).mean()
        return {"critic": apart + 0.1 * self.discriminator(batch.real).square().mean()}


class Gan(Task):
    """Two networks, each with an optimizer; `at` is the step whose batch does something first."""

    name = "gan"
    weights = {"adversarial": 1.0, "size": 0.1}  # noqa: RUF012

    def __init__(self, at: int | None = None, do: Any = None):
        torch.manual_seed(0)
        self.module, self.at, self.do = Adversaries(), at, do

    def batch(self, step: int, shard: BatchShard) -> Real:
        generator = torch.Generator().manual_seed(step)
        real = torch.randn(8, 2, generator=generator) * 0.1 + 1
        return Real(self.do(real) if step == self.at else real, torch.randn(8, 2, generator=generator))

    def items(self, step: int) -> list[str]:
        return [f"real-{step}"]

    def optimizers(self, settings: Optimisation) -> list[torch.optim.Optimizer]:
        made = self.module
        slow = torch.optim.SGD(made.discriminator.parameters(), settings.lr / 2, momentum=0.5)  # type: ignore[union-attr]
        return [slow, build_optimizer(made.generator, settings)]  # type: ignore[arg-type]

    def training_step(self, update: Update) -> None:
        update("discriminator", [0], {"critic": 1.0})
        update("generator", [1])

    def export(self, module: nn.Module, folder: Path) -> None:
        save_file(module.state_dict(), folder / "weights.safetensors")


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "final" / "weights.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gan")
    run(Gan(), folder, ema=0.9, batch=8)
    return folder


def test_each_network_is_trained_by_its_own_optimizer(straight: Path) -> None:
    log = metrics(straight)
    names = {"loss", "norm", "critic", "adversarial", "size"}
    assert set(log[0]) == {"step", "samples", "loss"} | {
        f"{phase}/{name}" for phase, of in (("discriminator", {"critic"}), ("generator", {"adversarial", "size"}))
        for name in of | (names & {"loss", "norm"})
    }  # fmt: skip
    assert log[0]["loss"] == pytest.approx(log[0]["discriminator/loss"] + log[0]["generator/loss"], abs=1e-5)
    start, end = Adversaries.state_dict(Gan().module), weights(straight)
    assert not any(value.equal(end[name]) for name, value in start.items() if "weight" in name and "1." not in name)


@pytest.mark.parametrize(("at", "do", "error"), [(4, terminate, Interrupted), (5, crash, RuntimeError)])
def test_two_optimizers_stopped_and_continued_are_as_never_stopped(
    at: int, do: Any, error: type[BaseException], straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(error):
        run(Gan(at, do), tmp_path, ema=0.9, batch=8)
    newest = checkpoint.all_of(tmp_path / "checkpoints")[0][1]
    assert {"optimizer.bin", "optimizer_1.bin", "model.safetensors"} <= {path.name for path in newest.iterdir()}
    run(Gan(), tmp_path, ema=0.9, batch=8)
    assert metrics(tmp_path) == metrics(straight)
    for name, value in weights(straight).items():
        assert weights(tmp_path)[name].equal(value), name


def test_rates_keep_their_proportion() -> None:
    task, settings = Gan(), Optimisation(steps=9, batch=8, lr=0.4, warmup=2)
    trainer = Trainer(task, settings, 0, runtime.start("fp32"), Faults(), 1)
    trainer.begin(0, [task.batch(0, BatchShard())])
    assert [group["lr"] for each in trainer.optimizers for group in each.param_groups] == [0.1, 0.2, 0.2]


def test_a_step_that_is_not_finite_is_named_by_what_failed(tmp_path: Path) -> None:
    run(Gan(3, lambda real: real * float("nan")), tmp_path, batch=8)
    assert [line["why"] for line in skipped(tmp_path)] == ["loss critic nan"]
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


# ---- masked updates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("sound", [True, False])
def test_an_update_is_masked_by_a_flag_on_the_device(sound: bool, fused: bool) -> None:
    """Moments and counts of steps among it, and whatever the gradient is."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1, fused=fused)

    def step(gradient: float, flag: bool) -> None:
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        step_where(torch.tensor(flag), optimizer)

    step(1.0, True)
    before = [p.clone() for p in (*layer.parameters(), *_moments(optimizer))]
    step(2.0 if sound else float("nan"), sound)
    after = [*layer.parameters(), *_moments(optimizer)]
    assert all(a.equal(b) != sound for a, b in zip(after, before, strict=True))
    assert all(a.isfinite().all() for a in after)


def _moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


def test_buffers_come_back_where_the_flag_is_false() -> None:
    norm = nn.BatchNorm1d(2)
    buffers = Buffers(norm)
    for flag in (torch.tensor(True), torch.tensor(False), None):
        buffers.keep()
        before = norm.running_mean.clone()  # type: ignore[union-attr]
        norm(torch.full((4, 2), float("nan") if flag is None or not flag else 1.0))
        buffers.restore(flag)
        assert norm.running_mean.equal(before) == (flag is None or not bool(flag))  # type: ignore[union-attr, operator]
    assert int(norm.num_batches_tracked) == 1  # type: ignore[arg-type]


def test_the_average_is_that_of_torch_and_stands_where_the_flag_is_false() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    average = WeightAverage(layer, decay=0.5)
    expected = layer.weight.detach().clone()
    for step in range(6):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 3))
        average.update(layer, step, torch.tensor(step != 3))
        if step != 3:
            expected.lerp_(layer.weight.detach(), 1 - (min(0.5, (1 + step) / (10 + step)) if step else 0.0))
    torch.testing.assert_close(average.module.weight, expected)


# ---- nobody waits for the device -----------------------------------------------------------------------------


class _NoWaiting(TorchDispatchMode):
    """Fails where the host reads a number off a tensor, or takes a shape from one: on a GPU it would wait there."""

    WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique", "aten.equal.default")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        indexed = name.startswith("aten.index.Tensor") and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not name.startswith(self.WAITS), f"{name} in a step"
        assert not indexed, "an index by a mask in a step"
        return function(*args, **(kwargs or {}))


OVERRIDES = ("precision=bf16", "stages.distill.ema=0.9", "stages.distill.losses={attributes: 1.0, caption: 1.0}",
             "stages.distill.noise=0.5", "stages.decoder.losses={caption: 1.0}", "stages.decoder.text_ratio=0.4",
             "decoder.draft=1", "encoder.dropout=0.1")  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_no_step_waits_for_the_device(stage: str) -> None:
    """On the CPU, taking the way of a GPU."""
    recipe = load_recipe("garden-tiny", OVERRIDES)
    task = ExampleTask(recipe, FACTS, stage, 4)
    trainer = Trainer(task, settings_of(recipe, stage), 0, runtime.start("bf16"), Faults(), 1)
    for step in (0, 1):
        with ahead_everywhere(), _NoWaiting() if step else Operations():  # what is made once may wait
            trainer.begin(step, [task.noise])
            task.training_step(trainer.update)
            outcome = trainer.end()
    losses, fault = outcome.read()
    assert fault is None
    assert losses["loss"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks a GPU")
@pytest.mark.parametrize("stage", STAGES)
def test_torch_sees_no_step_wait(stage: str) -> None:
    """All but torch's own CTC, which copies its lengths to the device by itself."""
    recipe = load_recipe("garden-tiny", [*OVERRIDES, "stages.distill.losses={attributes: 1.0, ctc: 0}"])
    task = ExampleTask(recipe, FACTS, stage, 4)
    trainer = Trainer(task, settings_of(recipe, stage), 0, runtime.start("bf16"), Faults(), 1)
    for step in (0, 1):
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            trainer.begin(step, [task.noise.pin_memory()])
            task.training_step(trainer.update)
            trainer.end()
        finally:
            torch.cuda.set_sync_debug_mode("default")
