"""`sta plan` against what it speaks of: networks, steps and files of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from sta.cli.main import main
from sta.config.cards import load_teacher
from sta.config.limits import MAX_SECONDS
from sta.config.recipe import Recipe, load_recipe
from sta.distributed.sharding import BatchShard
from sta.errors import StaError
from sta.models.teachers.base import Teacher, teacher_class
from sta.models.teachers.trained_clip import TrainedClipTeacher
from sta.plan import memory, storage
from sta.plan.corpus import AtHand, facts_of, with_languages
from sta.plan.memory import GIB, OFFLOAD, WAYS
from sta.plan.networks import Cost, Parameters, attempt, count, counted, line, step_of
from sta.plan.plan import Machines, plan_of
from sta.plan.report import conclusions, duration, launch_file, totals
from sta.training.batch import Batch
from sta.training.checkpoint import Checkpoints
from sta.training.stages import build_task, open_run, run_stage, settings_of, stage_names, task_of, weights_of
from sta.training.task import CorpusFacts, Task
from sta.training.workspace import Workspace
from tests.training.facts import FACTS

STAGES = ("teacher", "tokenizer", "distill-pooled", "decoder", "classifier")
SHORT = (
    *(f"stages.{stage.partition('-')[0]}.{key}" for stage in STAGES for key in ("steps=2", "save_every=1")),
    "stages.distill.phrase_warmup=0",
    *("corpus.validation=2", "corpus.test=2", "corpus.swaps=1", "stages.distill.losses.attributes=1"),
)
SPOKEN = "stages.decoder.text_ratio=0"  # a batch of eight has a recording for each of eight GPUs
H100 = Machines(8, 1, 80 * GIB, 989.0, 0.35)


# ---- against a run ------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run of garden-tiny, with the size of each stage's last checkpoint."""

    workspace: Workspace
    facts: CorpusFacts
    checkpoints: dict[str, int] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.workspace.recipe

    def task(self, stage: str) -> Task:
        return build_task(self.workspace, stage, Accelerator(cpu=True))

    def on_disk(self, pattern: str) -> int:
        return size_of(*self.workspace.cache.glob(pattern))


def size_of(*folders: Path) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = load_recipe("garden-tiny", SHORT)
    made = Run(open_run(recipe, tmp_path_factory.mktemp("runs")), facts_of(recipe, AtHand()))
    save = Checkpoints.save

    def weighed(self: Checkpoints, step: int, loss: float | None, turned: bool = True) -> None:
        save(self, step, loss, turned)
        self.wait()
        made.checkpoints[self.folder.parent.name] = size_of(self.folder / f"step-{step:07d}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", weighed)
        for stage in stage_names(recipe):
            run_stage(made.workspace, stage)
    yield made
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_the_corpus_is_as_planned(run: Run) -> None:
    corpus, facts = run.workspace.corpus, run.facts
    assert facts.recordings == len(corpus.select("train"))
    assert facts.rows == len(corpus)
    assert facts.pictures == len(run.workspace.pixels)
    assert facts.pieces == {code: pieces.size for code, pieces in run.workspace.pieces.items()}
    assert facts.attributes == run.workspace.attributes.sizes
    assert facts.moods == len(run.workspace.moods)
    assert facts.mean_seconds(0.0) == facts.full > facts.seconds > facts.mean_seconds(1.0) == facts.phrase
    lengths = run.workspace.features.lengths[corpus.select("train")] / 100
    assert facts.seconds == pytest.approx(lengths.mean())
    assert facts.longest == pytest.approx(lengths.max())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_those_of_the_stage(run: Run, stage: str) -> None:
    assert count(run.recipe, run.facts, stage) == counted(run.task(stage).module)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_operations_are_those_of_real_steps(run: Run, stage: str) -> None:
    task, size = run.task(stage), settings_of(run.recipe, stage).batch
    planned = step_of(run.recipe, run.facts, stage, size, size)
    assert weights_of(run.recipe, stage).items() >= task.weights.items()
    steps = [attempt(task.module, task.batch(step, BatchShard()), task.weights, True) for step in range(10, 20)]
    flops = sum(step.flops for step in steps) / len(steps)
    near = {"decoder": 0.2, "distill-pooled": 0.4}.get(stage, 1e-3)  # what is read of speech depends on the training
    assert planned.flops == pytest.approx(flops, rel=near)
    if near == 1e-3:
        assert planned.saved == pytest.approx(steps[0].saved, rel=1e-3)
    assert planned.saved > 0.9 * max(step.saved for step in steps), "less than a real batch keeps"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_are_as_large_as_planned(run: Run, stage: str) -> None:
    planned = storage.checkpoint(count(run.recipe, run.facts, stage), bool(settings_of(run.recipe, stage).ema))
    assert 0 <= run.checkpoints[stage] - planned < 200_000, "names, shapes and hashes are on top"


@pytest.mark.slow
def test_caches_are_as_large_as_planned(run: Run) -> None:
    planned = [*storage.of_corpus(run.recipe, run.facts), *storage.of_frozen(run.recipe, run.facts)]
    kept = {item.name: item for item in planned if not item.temporary}
    for name, pattern in (
        ("pixels", "pixels-*"), ("teacher's features", "teacher-*"), ("pictures' codes", "codes-*")
    ):  # fmt: skip
        assert 0 < run.on_disk(pattern) - kept[name].size < 600, name  # of the files' heads
    assert kept["speech features"].size == pytest.approx(run.on_disk("features-*"), rel=0.06)
    rows = sum(kept[name].size for name in ("audio", "pictures' files", "captions and other columns"))
    assert rows == pytest.approx(run.on_disk("corpus"), rel=0.06)


# ---- parts --------------------------------------------------------------------------------------------------


def test_what_is_kept_for_the_backward_pass_counts_once_and_no_weights() -> None:
    @dataclass(frozen=True)
    class Numbers(Batch):
        """x [4, 8]."""

        x: torch.Tensor

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8, bias=False)

        def forward(self, batch: Numbers) -> dict[str, torch.Tensor]:
            y = self.linear(batch.x)  # keeps x, and the weight if x wants a gradient
            return {"loss": (y * y).sum(), "more": y.square().sum()}  # keeps y, several times

    tried = attempt(Squared(), Numbers(torch.ones(4, 8, requires_grad=True)), {"loss": 1.0, "more": 1.0}, bf16=False)
    assert tried == Cost(flops=3 * 2 * 4 * 8 * 8, saved=2 * 4 * 8 * 4)


def test_a_line_goes_through_what_was_tried() -> None:
    assert line([10 + 2 * 3, 10 + 4 * 3], 32) == 10 + 32 * 3


def test_states_are_shared_out() -> None:
    size, buffer = Parameters(1000, 0), 4 * memory.BUCKET
    assert memory.states(size, 1, False) == {"no ZeRO": 16_000}, "one process has nothing to share"
    assert memory.states(size, 8, False) == {
        "no ZeRO": 20_000,  # DDP reduces gradients in buckets of their size
        "ZeRO-2": 4000 + 16_000 / 8 + buffer,
        OFFLOAD: 4000 / 8 + 4000 + buffer,  # its share of the weights, and what is gathered for the step
    }
    assert memory.states(Parameters(1000, 500), 1, True) == {"no ZeRO": 16_000 + 2000 + 6000}, "with an average"
    assert memory.offloaded(size, 1 / 2) == 10_000


def test_the_first_way_that_fits_is_taken() -> None:
    needs = dict(zip(WAYS, (90.0, 60.0, 10.0), strict=True))
    assert [memory.first_fit(needs, size) for size in (120, 80, 40, 11)] == [*WAYS, None]
    assert memory.first_fit({"no ZeRO": 90.0}, 80) is None, "a single process shares nothing"
    files = {path.name for path in (Path(__file__).parents[1] / "recipes" / "accelerate").glob("*.yaml")}
    assert set(WAYS.values()) < files


def test_a_published_teacher_is_counted_without_its_weights() -> None:
    card = load_teacher("vit-l-14")
    model, length = teacher_class(card).outline(card)
    assert length == 77
    assert sum(p.numel() for p in model.parameters()) == 427_616_513
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_corpus_at_hand_takes_the_place_of_the_recipes() -> None:
    recipe = with_languages(load_recipe("garden-tiny", ["corpus={name: folder, root: nowhere}"]), 100)
    facts = facts_of(recipe, AtHand(captions=1_000_000, seconds=4.0))
    assert (facts.recordings, facts.pictures) == (100_000_000, 1_000_000)
    assert (facts.seconds, facts.longest) == (4.0, 8.0)
    assert len(facts.pieces) == 100
    assert set(facts.pieces.values()) == {500}, "as the language cards say"
    assert count(recipe, facts, "distill-pooled").trainable > count(recipe, FACTS_OF_TWO, "distill-pooled").trainable
    assert storage.of_frozen(recipe, facts)[0].size == 4 * 128 * 101_000_000


FACTS_OF_TWO = replace(FACTS, pieces={f"x{n}": 1 for n in range(3, 101)} | {"en": 1, "ar": 1})


def test_fewer_languages_are_the_first_of_the_recipe() -> None:
    assert with_languages(load_recipe("garden-tiny"), 1).languages == ["en"]
    assert with_languages(load_recipe("garden-tiny"), 3).languages == ["en", "ar", "x3"]


# ---- the plan -----------------------------------------------------------------------------------------------


def test_hours_follow_from_operations() -> None:
    assert H100.hours(989e12 * 0.35 * 3600 * 8) == pytest.approx(1)
    assert replace(H100, gpus=1).hours(989e12 * 0.35 * 3600) == pytest.approx(1)
    assert [duration(h) for h in (72, 5, 0.5, 0.001)] == ["3 d", "5 h", "30 min", "3.6 s"]


def test_a_plan_adds_up() -> None:
    recipe = load_recipe("garden-tiny", ["encoder.sharing=each", SPOKEN])
    plan = plan_of(recipe, FACTS, H100)
    counts = {stage.name: stage.count for stage in plan.stages}
    assert counts == {"teacher": 1, "tokenizer": 1, "distill-en": 2, "decoder": 1, "classifier": 1}
    steps = sum(s.count * s.steps * s.step_flops for s in plan.stages)
    assert plan.flops == pytest.approx(steps + sum(plan.once.values()))
    decoder = next(s for s in plan.stages if s.name == "decoder")
    assert decoder.passes == 20 * 8 / 800
    distill = task_of(recipe, "distill")
    encoders = [distill.build_network(recipe, FACTS, f"distill-{c}").get_submodule("encoder") for c in recipe.languages]
    assert decoder.size.frozen == sum(counted(encoder).trainable for encoder in encoders)
    assert all(plan.once.values())
    kept, temporary = totals(plan)
    assert kept + temporary < sum(item.size for item in plan.disk)


def test_what_does_not_fit_is_one_sentence() -> None:
    recipe = load_recipe("garden-tiny", [SPOKEN])
    small = replace(H100, memory=0.001 * GIB)
    said = [line for line in conclusions(plan_of(recipe, FACTS, small)) if "nothing fits" in line]
    assert len(said) == 5
    assert all("0.001 GiB" in line and "activations" in line for line in said)
    alone = plan_of(recipe, FACTS, Machines(1, 1, 80 * GIB, 989.0, 0.35))
    assert {launch_file(s.way, alone.machines) for s in alone.stages if s.way} == {"gpu-1.yaml"}
    assert launch_file("ZeRO-2", replace(H100, nodes=2)) == "gpu-8-zero2.yaml --num_processes 16 --num_machines 2"


def test_offloading_takes_memory_of_the_machine() -> None:
    plan = plan_of(load_recipe("garden-tiny", [SPOKEN]), FACTS, H100)
    decoder = replace(plan.stages[-2], way=OFFLOAD)
    size = f"{20 * decoder.size.trainable / 2 / GIB:.3g}"
    two = replace(plan, machines=replace(H100, nodes=2), stages=[decoder])
    assert f"decoder: ZeRO-3 + offload takes {size} GiB of the memory of each machine" in conclusions(two)


def test_a_process_holds_numbers_of_recordings_and_no_captions() -> None:
    plan = plan_of(load_recipe("garden-tiny", [SPOKEN]), FACTS, H100)
    assert not [line for line in conclusions(plan) if "in its memory" in line]
    many = replace(plan, facts=replace(FACTS, recordings=500_000_000, others=0))
    assert [line for line in conclusions(many) if "in its memory" in line] == [
        "8 processes on a machine hold 400 GB of numbers, lengths and orders of recordings in its memory; all else is "
        "mapped, and shared"
    ]


def test_a_teacher_that_cannot_be_built_is_left_out_with_a_sentence() -> None:
    plan = replace(plan_of(load_recipe("garden-tiny", [SPOKEN]), FACTS, H100), unknown="no such model")
    assert "teacher's features: not counted (no such model)" in conclusions(plan)


def test_a_teacher_that_has_no_outline_is_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainedClipTeacher, "outline", classmethod(Teacher.outline.__func__))  # type: ignore[attr-defined]
    plan = plan_of(load_recipe("garden-tiny", [SPOKEN]), FACTS, H100)
    assert plan.unknown == ("TrainedClipTeacher has no `outline`, without which its operations cannot be counted")


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(StaError, match=r"stages.teacher.batch 16 is not a multiple of 5 GPUs.*stages.teacher.batch=20"):
        plan_of(load_recipe("garden-tiny"), FACTS, replace(H100, gpus=5))
    few = load_recipe("garden-tiny", ["stages.distill.text_ratio=0.1"])
    with pytest.raises(StaError, match="is 1 written captions a step, too few for 8 shares"):
        plan_of(few, FACTS, H100)
    with pytest.raises(StaError, match="7 recordings a step are too few for 8 shares"):
        plan_of(load_recipe("garden-tiny"), FACTS, H100)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    at_hand = ["corpus={name: folder, root: nowhere}", "--captions", "1000", "--languages", "3", "--seconds", "2"]
    gpus = ["--gpus", "8", "--memory", "80"]
    assert main(["plan", "garden-tiny", SPOKEN, *at_hand, *gpus, "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "3,000 recordings for training in 3 languages" in said
    assert "recipes/accelerate/gpu-8.yaml" in said
    plan = json.loads(file.read_text())
    assert [stage["name"] for stage in plan["stages"]] == ["teacher", "tokenizer", "distill-pooled", "decoder"]
    assert all(stage["launch"] == "gpu-8.yaml" for stage in plan["stages"])
    assert plan["disk_kept"] == pytest.approx(sum(item["size"] for item in plan["disk"] if not item["temporary"]))
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "0"], "'0' is not a whole number of at least 1"),
        (["--memory", "-1"], "'-1' is not a number above 0"),
        (["--utilisation", "1.5"], "'1.5' is not a number above 0, at most 1"),
        (["--tflops", "fast"], "'fast' is not a number above 0"), (["--tflops", "inf"], "'inf' is not a number"),
        (["--seconds", "31"], "at most 30"), (["--longest", "1e9"], "at most 30"), (["--seconds", "0"], "above 0"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", "garden-tiny", *options])
    assert left.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no file or name 'nowhere'"),
        (["garden-tiny", "--seconds", "9", "--longest", "8"], "--seconds 9 is above --longest 8"),
        (["garden-tiny", "corpus={name: folder, root: nowhere}"], "nowhere/metadata.jsonl: cannot be read"),
        (["garden-tiny", "encoder.backbone=nowhere/model", "corpus={name: folder, root: nowhere}", "--captions", "9",
          "--seconds", "2"], "encoder.backbone 'nowhere/model': its configuration is not to be had"),
    ],
)  # fmt: skip
def test_one_sentence_for_what_is_not_there(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sta: ")]
    assert len(said) == 1
    assert words in said[0]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Storage size calculation overflowed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_in_memory_is_said(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("sta.plan.plan.plan_of", fail)
    monkeypatch.setattr("sta.plan.corpus.facts_of", lambda *_: None)
    assert main(["plan", "garden-tiny"]) == 2
    assert "recipe 'garden-tiny': its networks are too large" in capsys.readouterr().err


def test_no_recording_is_planned_that_may_not_be() -> None:
    at_hand = AtHand(captions=10, seconds=20.0)
    recipe = load_recipe("garden-tiny", ["corpus={name: folder, root: nowhere}"])
    assert facts_of(recipe, at_hand).longest == MAX_SECONDS
