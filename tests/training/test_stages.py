"""What a run remembers of how its stages were trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from sta.config.recipe import load_recipe
from sta.errors import CorpusError, RecipeError, StaError, TrainingError
from sta.training import stages
from sta.training.workspace import Workspace
from tests.processes import HOLD, LIMIT, said_by, started

WORDLESS = ("stages.distill.losses.text=0", "stages.decoder.losses.text=0")


def test_a_stage_remembers_every_commit_and_machine_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(load_recipe("garden-mini"), tmp_path)
    starts = [("abc", "Processor A", 1, 2), ("abc", "Processor A", 1, 2), ("def", "Processor B", 2, 1)]
    for commit, device, threads, processes in starts:
        found = {"commit": commit, "device": device, "threads": threads}
        monkeypatch.setattr(stages, "environment", lambda found=found: found)
        stages._record_start(workspace, "decoder", processes)
    log = workspace.stage("decoder") / "log" / "metrics.jsonl"
    log.write_text('{"seconds": 1.5}\n{"seconds": 60.5}\n')
    assert stages.provenance(workspace) == {
        "decoder": {
            "seconds": 60.5,
            "commits": ["abc", "def"],
            "machines": ["Processor A, 2 x 1 threads", "Processor B, 1 x 2 threads"],
        }
    }


def test_a_start_that_cannot_be_recorded_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(load_recipe("garden-mini"), tmp_path)
    stages._record_start(workspace, "classifier", 1)
    log = workspace.stage("classifier") / "log" / "environment.jsonl"
    before = log.read_text()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StaError, match=r"environment.jsonl: cannot be written \(No space left on device\)") as error:
        stages._record_start(workspace, "classifier", 1)
    assert "\n" not in str(error.value)
    assert log.read_text() == before


def test_a_stage_that_another_process_trains_is_refused(tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    workspace = Workspace(load_recipe("garden-mini"), tmp_path)
    folder = workspace.stage("tokenizer")
    with started(HOLD, folder) as other:
        assert said_by(other) == "held\n"
        with pytest.raises(TrainingError) as error:
            stages.run_stage(workspace, "tokenizer")
        assert str(error.value) == (
            f"{folder}: another process trains this stage now; wait for it, or change `name=...` or --out"
        )
        assert not folder.exists(), "it has left something"
        other.kill()
        other.wait(LIMIT)
    with pytest.raises(CorpusError, match="stage 'prepare' makes what is missing"):
        stages.run_stage(workspace, "tokenizer")
    assert [path.name for path in workspace.folder.iterdir()] == ["tokenizer"]
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("made", "taken"),
    [
        ("environment.json", True),
        ("tokenizer/log/metrics.jsonl", True),
        ("prepare/final.partial/", True),
        ("tokenizer.lock", True),
        ("tokenizer/step-00000200/", True),
        ("tokenizer/step-00000200/task.json", False),
        ("prepare/final/prepare.json", False),
        ("release/SHA256SUMS", False),
        ("notes.txt", False),
    ],
)
def test_a_folder_in_which_nothing_was_made_is_taken_over(tmp_path: Path, made: str, taken: bool) -> None:
    first, second = (load_recipe("garden-tiny", [f"seed={seed}"]) for seed in (1, 2))
    folder = stages.open_run(first, tmp_path).folder
    path = folder / made
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if made.endswith("/") else path.touch()
    if not taken:
        with pytest.raises(RecipeError, match="holds a run of another recipe"):
            stages.open_run(second, tmp_path)
        assert path.exists()
    else:
        stages.open_run(second, tmp_path)
        assert {p.name for p in folder.iterdir()} == {"recipe.yaml", "environment.json"}
    assert load_recipe(folder / "recipe.yaml") == (second if taken else first)


def test_a_run_goes_on_with_other_settings_of_the_machine(tmp_path: Path) -> None:
    folder = stages.open_run(load_recipe("garden-tiny"), tmp_path).folder
    (folder / "notes.txt").touch()
    changed = load_recipe("garden-tiny", ["stages.decoder.save_every=7", "stages.distill.workers=2"])
    assert stages.open_run(changed, tmp_path).folder == folder
    assert load_recipe(folder / "recipe.yaml") == changed
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize("stage", ["prepare", "tokenizer"])
def test_a_folder_in_which_another_process_works_is_not(tmp_path: Path, stage: str) -> None:
    first, second = (load_recipe("garden-tiny", [f"seed={seed}"]) for seed in (1, 2))
    folder = stages.open_run(first, tmp_path).folder
    with started(HOLD, folder / stage) as other:
        assert said_by(other) == "held\n"
        with pytest.raises(RecipeError, match="holds a run of another recipe"):
            stages.open_run(second, tmp_path)
        other.kill()
        other.wait(LIMIT)
    assert stages.open_run(second, tmp_path).folder == folder


@pytest.mark.parametrize("stage", ["prepare", "tokenizer"])
def test_a_launch_whose_folder_was_taken_over_goes_no_further(tmp_path: Path, stage: str) -> None:
    """Two launches that begin at once, as those of a sweep whose runs were all given one name."""
    first, second = (
        stages.open_run(load_recipe("garden-tiny", [f"seed={seed}", "languages=[en]"]), tmp_path) for seed in (1, 2)
    )
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        stages.run_stage(first, stage)
    assert load_recipe(second.folder / "recipe.yaml") == second.recipe
    assert {p.name for p in second.folder.iterdir()} == {"recipe.yaml", "environment.json"}
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_run_without_that_record_still_has_its_minutes(tmp_path: Path) -> None:
    workspace = Workspace(load_recipe("garden-mini"), tmp_path)
    log = workspace.stage("classifier") / "log" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"seconds": 12.0}\n')
    assert stages.provenance(workspace) == {"classifier": {"seconds": 12.0, "commits": [], "machines": []}}


def test_a_teacher_that_reads_no_language_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    """OpenAI's CLIP makes something of Arabic captions, and none of it is what they say."""
    with pytest.raises(RecipeError) as error:
        stages.open_run(load_recipe("garden-tiny", ["teacher=vit-b-32", "languages=[ar]"]), tmp_path)
    assert "teacher 'vit-b-32' reads no captions in ar (text_languages of its card: en)" in str(error.value)
    assert "or set stages.distill.losses.text to 0" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ("teacher=vit-b-32", "languages=[en]"),
        ("teacher=vit-b-32", "languages=[en, ar]"),
        ("teacher=vit-b-32", "languages=[ar]", *WORDLESS),
        ("teacher=xlm-roberta-base-vit-b-32", "languages=[en, ar]"),
    ],
)
def test_a_teacher_that_reads_one_of_them_is_not(overrides: tuple[str, ...], tmp_path: Path) -> None:
    assert stages.open_run(load_recipe("garden-tiny", overrides), tmp_path).folder.exists()
