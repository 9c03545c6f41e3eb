"""Real launches of two processes: with torchrun alone and under DeepSpeed, stopped by a signal and continued.

Stages, whole runs, evaluation and drawing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from transformers import HubertConfig, HubertModel

from sta.data.audio import write_wav
from sta.training.faults import VARIABLE
from tests.release_fixtures import wave

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
STEPS, SAVE_EVERY, LIMIT = 80, 20, 240
TINY = (
    *("languages=[en]", "corpus.scenes=12", "corpus.phrases=0", "corpus.validation=2", "corpus.test=2"),
    *("corpus.swaps=1", "tokenizer.codes=16", "tokenizer.width=16"),
    *("stages.teacher.batch=8", "stages.teacher.log_every=1", f"stages.teacher.save_every={SAVE_EVERY}"),
    "stages.teacher.lr=1e-4",
)
#: The teacher, as nothing in it is decided by a comparison: a nearest code, once it is another one by a rounding error,
#: makes another run of what follows.
WHOLE = (f"stages.teacher.steps={STEPS}", "precision=fp32")

pytestmark = pytest.mark.slow
needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="DeepSpeed builds a kernel, which needs a C++ compiler"
)
DEEPSPEED = [pytest.param(f"cpu-2-zero{stage}", marks=needs_compiler) for stage in (2, 3)]
TWO_PROCESSES = [pytest.param("cpu-2"), *DEEPSPEED]


# ---- starting and stopping ----------------------------------------------------------------------------------


def arguments(out: Path, name: str, stage: str, *overrides: str) -> list[str]:
    return ["garden-tiny", *TINY, f"name={name}", *overrides, "--stage", stage, "--out", str(out)]


def launch(config: str, *what: str) -> list[str]:
    """accelerate launch of `what`, or of `-m sta.train`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = ROOT / "recipes" / "accelerate" / f"{config}.yaml"
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    return [*start, "--main_process_port", str(port), *(what or ("-m", "sta.train"))]


def by(processes: int, *what: str) -> list[str]:
    """`what`, done by one process or by two."""
    return {1: [sys.executable, *what], 2: launch("cpu-2", *what)}[processes]


@contextlib.contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, which is gone with its workers when the block is left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # the launcher takes its workers, which have groups of their own, with it
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()


def finish(command: Sequence[str], log: Path) -> None:
    with started(command, log) as process:
        code = process.wait(LIMIT)
    assert code == 0, log.read_text()[-3000:]


def stop_after_first_checkpoint(command: Sequence[str], checkpoints: Path, log: Path) -> int:
    """Send SIGTERM to the launcher alone, as a scheduler does, once a checkpoint is there; its exit code."""
    with started(command, log) as process:
        wait_for(lambda: bool(list(checkpoints.glob("step-*[0-9]/state.json"))), process)
        process.send_signal(signal.SIGTERM)
        return process.wait(LIMIT)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + LIMIT
    while not happened():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def logged(stage: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (stage / "log" / "metrics.jsonl").read_text().splitlines()]


def losses(stage: Path) -> list[float]:
    return [line["loss"] for line in logged(stage)]


def rounding(step: int, terms: float = 1e4) -> float:
    """How far, in relation to its size, a sum of so many float32 terms may be off after some steps.

    Ranks add the same terms up in another order, which is off by about sqrt(terms) in the last place; and what a step
    is off by is in the weights of all that follow, so it adds up. A loss is a sum over items and places, a gradient
    one over every activation, about a million.
    """
    return step * terms**0.5 * torch.finfo(torch.float32).eps


def near(expected: list[float], times: float = 1) -> list[object]:
    """Losses of the steps from the first on, up to rounding."""
    return [pytest.approx(x, rel=times * rounding(n), abs=times * rounding(n)) for n, x in enumerate(expected, 1)]


def weights(stage: Path) -> dict[str, torch.Tensor]:
    files = list((stage / "final").rglob("*.safetensors"))
    assert files
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


# ---- tests --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with the corpus and `one`, the teacher in one process."""
    out = tmp_path_factory.mktemp("runs")
    for stage in ("prepare", "teacher"):
        finish([sys.executable, "-m", "sta.train", *arguments(out, "one", stage, *WHOLE)], out / f"one-{stage}.log")
    return out


@pytest.mark.parametrize("config", TWO_PROCESSES)
def test_two_processes_train_one_model(alone: Path, config: str) -> None:
    """Both ranks' shares make the loss of the whole batch; a stop on SIGTERM is continued to the end."""
    stage = alone / config / "teacher"
    training = arguments(alone, config, "teacher", *WHOLE)

    code = stop_after_first_checkpoint([*launch(config), *training], stage / "checkpoints", alone / f"{config}-1.log")
    assert code != 0
    assert not (stage / "final").exists(), "the stage ended before the signal came; raise STEPS"
    newest = max(p for p in (stage / "checkpoints").iterdir() if "partial" not in p.name)
    assert json.loads((newest / "state.json").read_text())["processes"] == 2
    assert len(list(newest.glob("random_states_*.pkl"))) == 2

    finish([*launch(config), *training], alone / f"{config}-2.log")
    assert [line["step"] for line in logged(stage)] == list(range(1, STEPS + 1))
    assert all(torch.isfinite(value).all() for value in weights(stage).values())
    first, reference = logged(stage)[0], logged(alone / "one" / "teacher")[0]
    assert first["norm"] == pytest.approx(reference["norm"], rel=1e-3), "the ranks' gradients are not averaged"
    assert first["samples"] == reference["samples"] == 8
    assert losses(stage) == near(losses(alone / "one" / "teacher"), 10 if "zero" in config else 1)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_it_goes_on_under_another_number_of_processes(alone: Path, before: int, after: int) -> None:
    name = f"from-{before}"
    stage = alone / name / "teacher"
    training = arguments(alone, name, "teacher", *WHOLE)
    start = {1: [sys.executable, "-m", "sta.train"], 2: launch("cpu-2")}
    stop_after_first_checkpoint([*start[before], *training], stage / "checkpoints", alone / f"{name}-1.log")
    assert not (stage / "final").exists(), "the stage ended before the signal came; raise STEPS"
    newest = max(path for path in (stage / "checkpoints").iterdir() if not path.suffix)
    state, first = json.loads((newest / "state.json").read_text()), logged(stage)
    assert state["processes"] == before
    finish([*start[after], *training], alone / f"{name}-2.log")
    assert logged(stage)[: state["step"]] == first[: state["step"]], "it began anew"
    assert losses(stage) == near(losses(alone / "one" / "teacher"))


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    """Twenty steps in float32: what is random belongs to an item, and what is measured to the whole batch."""
    stages = ("teacher", "tokenizer", "distill-pooled", "decoder", "classifier")
    overrides = ["precision=fp32", "corpus.phrases=1", "encoder.dropout=0.1", "decoder.dropout=0.1", "decoder.draft=1"]
    overrides += ["decoder.kind=latent-diffusion", "stages.tokenizer.unquantised=0.5"]
    overrides += [
        "stages.distill.noise=0.5",
        "stages.distill.losses.attributes=1.0",
        "stages.decoder.losses.caption=1.0",
    ]
    overrides += ["stages.decoder.augment_ratio=0.5", "stages.decoder.text_ratio=0.4", "stages.distill.text_ratio=0.4"]
    for stage in stages:
        section = f"stages.{stage.partition('-')[0]}"
        overrides += [f"{section}.steps=20", f"{section}.batch=8", f"{section}.log_every=1"]
    overrides += [
        "stages.classifier.lr=1e-5"
    ]  # batch norm under Adam makes 1e-7 into 1e-2 within its twenty steps at 2e-3
    script = [str(ROOT / "tests" / "every_stage.py"), str(tmp_path / "out")]
    done = ("prepare", *stages)
    finish([sys.executable, *script, "alone", ",".join(done), *TINY, *overrides], tmp_path / "alone.log")
    for stage in stages:  # the same stages before it, to the last bit
        for before in done[: done.index(stage)]:
            final = Path("alone", before, "final")
            (tmp_path / "out" / f"two-{stage}" / before).mkdir(parents=True)
            (tmp_path / "out" / f"two-{stage}" / before / "final").symlink_to(tmp_path / "out" / final)
    finish([*launch("cpu-2", *script), "two-{}", ",".join(stages), *TINY, *overrides], tmp_path / "two.log")
    for stage in stages:
        one, two = (logged(tmp_path / "out" / name / stage) for name in ("alone", f"two-{stage}"))
        assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 21))
        for expected, found in zip(one, two, strict=True):
            for name in expected.keys() - {"seconds"}:
                most = rounding(int(expected["step"]), 1e6 if name == "norm" else 1e4)
                assert found[name] == pytest.approx(expected[name], rel=most, abs=most / 10), (stage, expected, name)


@needs_compiler
def test_every_stage_trains_under_deepspeed(alone: Path) -> None:
    """bfloat16 under DeepSpeed is autocast, as elsewhere: near the float32 loss, and float32 weights at the end.

    ZeRO-3 is the one that parts a stage's weights; ZeRO-2 trains a stage in the tests of two processes.
    """
    stages, config = ("teacher", "tokenizer", "distill-pooled", "decoder", "classifier"), "cpu-2-zero3"
    name = f"every-{config}"
    overrides = ["precision=bf16", "stages.distill.ema=0.9", "stages.decoder.text_ratio=0.2"]
    for stage in stages:
        overrides += [f"stages.{stage.partition('-')[0]}.steps=2"]
    (alone / name).mkdir()
    (alone / name / "prepare").symlink_to(alone / "one" / "prepare")
    for stage in stages:
        finish([*launch(config), *arguments(alone, name, stage, *overrides)], alone / f"{name}-{stage}.log")
        trained = weights(alone / name / stage)
        assert {value.dtype for value in trained.values() if value.is_floating_point()} == {torch.float32}
        assert all(torch.isfinite(value).all() for value in trained.values())
    loss, reference = (logged(alone / run / "teacher")[0]["loss"] for run in (name, "one"))
    assert loss == pytest.approx(reference, rel=0.02)
    assert loss != reference


@needs_compiler
def test_a_published_backbone_is_trained_along_under_zero_3(alone: Path, tmp_path: Path) -> None:
    """As HuBERT base is published: with layerdrop, SpecAugment and a weight norm, here stored in half precision."""
    config = HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=[8, 8],
        conv_kernel=[10, 8], conv_stride=[20, 16], num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    HubertModel(config).half().save_pretrained(tmp_path)
    overrides = [f"encoder.backbone={tmp_path}", "encoder.freeze_backbone=false", "stages.distill.steps=2"]
    overrides += ["precision=bf16", "stages.distill.log_every=1"]
    (alone / "hubert").mkdir()
    (alone / "hubert" / "teacher").symlink_to(alone / "one" / "teacher")
    prepare = [sys.executable, "-m", "sta.train", *arguments(alone, "hubert", "prepare", *overrides)]
    finish(prepare, alone / "hubert-prepare.log")
    distill = arguments(alone, "hubert", "distill-pooled", *overrides)
    finish([*launch("cpu-2-zero3"), *distill], alone / "hubert-distill.log")
    assert len(losses(alone / "hubert" / "distill-pooled")) == 2
    published = HubertModel.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    trained = load_file(alone / "hubert" / "distill-pooled" / "final" / "encoder" / SAFETENSORS_WEIGHTS_NAME)
    for name, value in published.items():
        moved = trained[f"acoustics.model.{name}"]
        assert moved.shape == value.shape, name
        assert moved.isfinite().all(), name
    name = "encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    assert 0 < (trained[f"acoustics.model.{name}"] - published[name]).abs().max() < 0.1


@pytest.mark.parametrize("config", DEEPSPEED)
def test_gradients_of_a_part_are_dropped_with_its_step(
    config: str, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two parts is no number: DeepSpeed has added it up before anyone could tell."""
    monkeypatch.setenv(VARIABLE, "nan@step:4")
    name = f"parts-{config}"
    log = alone / name / "teacher" / "log"
    log.mkdir(parents=True)
    (log / "micro_batches.json").write_text('{"parts": 2}')
    (alone / name / "prepare").symlink_to(alone / "one" / "prepare")
    training = arguments(alone, name, "teacher", "stages.teacher.steps=8", "precision=fp32")
    finish([*launch(config), *training], alone / f"{name}.log")
    skipped = [json.loads(line) for line in (log / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in skipped] == [4]
    assert len(skipped[0]["items"]) == 8


# ---- a process that is lost or stuck ------------------------------------------------------------------------


def test_a_lost_process_is_started_again(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 is killed; the launcher starts both again, and they go on from the checkpoint to the same end."""
    monkeypatch.setenv(VARIABLE, "kill@step:50,rank:1")
    start = launch("cpu-2", "--max_restarts", "1", "-m", "sta.train")
    log = alone / "lost.log"
    begun = time.monotonic()
    finish([*start, *arguments(alone, "lost", "teacher", *WHOLE)], log)
    assert time.monotonic() - begun < LIMIT
    stage = alone / "lost" / "teacher"
    assert (stage / "log" / "faults.jsonl").read_text() == '{"fault": "kill@step:50,rank:1", "rank": 1}\n'
    assert len((stage / "log" / "environment.jsonl").read_text().splitlines()) == 2, "it was not started twice"
    assert losses(stage) == near(losses(alone / "one" / "teacher"))


@pytest.mark.parametrize(
    ("fault", "said"), [("kill", "another process of the launch is gone"), ("freeze", "stage teacher: no step in 5 s")]
)
def test_a_process_that_is_gone_or_stuck_ends_the_job_within_a_minute(
    fault: str, said: str, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"{fault}@step:50,rank:1")
    training = arguments(alone, fault, "teacher", *WHOLE, "stages.teacher.stall_timeout=5")
    stage, log = alone / fault / "teacher", alone / f"{fault}.log"
    with started([*launch("cpu-2"), *training], log) as process:
        end = time.monotonic() + LIMIT
        while not (stage / "log" / "faults.jsonl").exists():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, "the fault did not strike"
            time.sleep(0.05)
        struck = time.monotonic()
        assert process.wait(LIMIT) != 0
    assert time.monotonic() - struck < 60
    assert log.read_text().count("sta: ") == log.read_text().count(f"sta: {said}") == 1
    assert not (stage / "final").exists()
    assert list((stage / "checkpoints").glob("step-*0")), "no checkpoint was left"


def test_out_of_memory_on_one_process_takes_smaller_parts_after_a_restart(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from a checkpoint after an odd number of steps, which whole shares were done in."""
    monkeypatch.setenv(VARIABLE, "oom@forward:30,rank:0")
    start = launch("cpu-2", "--max_restarts", "1", "-m", "sta.train")
    training = arguments(alone, "memory", "teacher", *WHOLE, "stages.teacher.save_every=9")
    finish([*start, *training], alone / "memory.log")
    stage = alone / "memory" / "teacher"
    assert json.loads((stage / "log" / "micro_batches.json").read_text()) == {"parts": 2}
    assert "items at a time on each process" in (alone / "memory.log").read_text()
    assert [line["samples"] for line in logged(stage)] == [8 * n for n in range(1, STEPS + 1)]
    assert losses(stage)[:27] == near(losses(alone / "one" / "teacher")[:27])
    begun, ended = losses(stage)[27:37], losses(stage)[-10:]  # in parts, a picture is told from fewer others
    assert sum(ended) < 0.5 * sum(begun), "it does not learn any more"


# ---- whole runs, evaluation and drawing ---------------------------------------------------------------------


def every_file(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, from nothing to its report, that two processes did in one launch: more recordings than one batch."""
    out = tmp_path_factory.mktemp("together")
    stages = ("teacher", "tokenizer", "distill", "decoder", "classifier")
    few = [f"stages.{stage}.steps=3" for stage in stages]
    sizes = ["corpus.test=36", "evaluation.items=36", "evaluation.conditions=[noise-10,slow]", "sampling.steps=2"]
    what = ["-m", "sta", "run", "garden-tiny", *TINY, *sizes, *few, "name=two", "--out", str(out)]
    finish(launch("cpu-2", *what), out / "two.log")
    return out


def test_a_run_of_two_processes_is_whole_and_said_once(together: Path) -> None:
    said = (together / "two.log").read_text()
    assert said.count("pictures and numbers:") == said.count("decoder: done in") == said.count("evaluate: done in") == 1
    assert {"recipe.yaml", "environment.json", "release", "evaluation", "decoder"} < {
        path.name for path in (together / "two").iterdir()
    }
    assert not list(together.rglob("*.partial"))


def test_two_processes_evaluate_as_one(together: Path) -> None:
    """To the last bit: rows, page and pictures."""
    run, reports = together / "two", []
    for processes in (1, 2):
        file = together / f"{processes}.json"
        evaluation = by(processes, "-m", "sta", "evaluate", str(run), "--json", str(file))
        finish(evaluation, together / f"evaluate-{processes}.log")
        reports.append((file.read_bytes(), every_file(run / "evaluation")))
    assert json.loads(reports[0][0])["rows"]
    assert reports[0] == reports[1]
    assert not (run / "evaluation.old").exists()


def test_two_processes_share_out_what_is_drawn(together: Path) -> None:
    """Three recordings give the same pictures, each named once; what is broken on the second rank is said once."""
    said = [together / f"{number}.wav" for number in range(3)]
    for number, path in enumerate(said):
        write_wav(path, wave(seed=number))
    options = ["--language", "en", "--weights", str(together / "two" / "release"), "--out"]
    for processes in (1, 2):
        drawing = by(processes, "-m", "sta", "draw", *map(str, said), *options, str(together / f"by-{processes}"))
        finish(drawing, together / f"by-{processes}.log")
    assert every_file(together / "by-1") == every_file(together / "by-2")
    assert len(every_file(together / "by-2")) == (together / "by-2.log").read_text().count(".png") == 3

    log, broken = together / "broken.log", together / "two" / "recipe.yaml"
    drawing = by(2, "-m", "sta", "draw", str(said[0]), str(broken), *options, str(together / "none"))
    with started(drawing, log) as process:
        assert process.wait(LIMIT) != 0
    assert log.read_text().count("sta: ") == log.read_text().count(f"sta: {broken}") == 1
    assert not (together / "none").exists()


# ---- launch files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_launch_file_is_one_that_accelerate_reads(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    device, _, kind = file.stem.partition("-")
    assert config.num_processes == (16 if device == "slurm" else int(kind.partition("-")[0]))
    assert config.mixed_precision == "no", "the recipe's precision decides"
    settings = yaml.safe_load(file.read_text())
    assert "use_cpu" not in settings, "it would hide DeepSpeed's CPU ranks from each other"
    assert (config.distributed_type.value == "DEEPSPEED") == ("zero" in file.stem)
    if "zero" in file.stem:
        assert f"zero{settings['deepspeed_config']['zero_stage']}" in file.stem
        assert (settings["deepspeed_config"]["offload_optimizer_device"] == "cpu") == file.stem.endswith("offload")


def test_launch_files_are_those_that_their_page_names() -> None:
    named = {word for word in re.findall(r"`([a-z0-9-]+)\.yaml`", (ROOT / "docs" / "distributed.md").read_text())}
    assert {file.stem for file in FILES} == named & {file.stem for file in FILES} != set()


def test_the_slurm_script_launches_and_puts_itself_into_the_queue_again(alone: Path, tmp_path: Path) -> None:
    """With a SLURM of three stubs: one machine of two "GPUs", and the signal that comes before the time is up."""
    stubs, queue = tmp_path / "bin", tmp_path / "queue"
    stubs.mkdir()
    for name, body in {
        "srun": 'shift; SLURM_NODEID=0 "$@"',
        "scontrol": f'case "$1" in show) echo 127.0.0.1;; *) echo "$@" >> {queue};; esac',
        "scancel": f"pkill -TERM -f 'accelerate.commands.launch .*{tmp_path.name}'",
        "accelerate": f'shift; exec {sys.executable} -m accelerate.commands.launch "$@"',
    }.items():
        (stubs / name).write_text(f"#!/bin/bash\n{body}\n")
        (stubs / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PATH": f"{stubs}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "one",
        "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7", "PORT": str(port),
    }  # fmt: skip
    out = tmp_path / "runs"
    out.mkdir()
    for name in ("one", "cache"):
        (out / name).symlink_to(alone / name)
    (out / "queued").mkdir()
    (out / "queued" / "prepare").symlink_to(alone / "one" / "prepare")
    training = arguments(out, "queued", "teacher", *WHOLE)
    training = [training[0], *training[-4:], *training[1:-4]]  # as the script's usage has it
    script = ["bash", str(ROOT / "recipes" / "accelerate" / "slurm-multinode.sbatch")]
    stage = out / "queued" / "teacher"
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        code = stop_after_first_checkpoint([*script, *training], stage / "checkpoints", tmp_path / "1.log")
        assert code == 0, (tmp_path / "1.log").read_text()[-3000:]
        assert queue.read_text() == "requeue 7\n"
        assert not (stage / "final").exists()
        finish([*script, *training], tmp_path / "2.log")
    assert losses(stage) == near(losses(alone / "one" / "teacher"))
