"""A run measured on a corpus that it was not trained on: galleries of that one, concepts and the judge of its own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sta.config import yamlfile
from sta.config.recipe import load_measured, load_recipe
from sta.data.audio import wav_bytes, write_wav
from sta.data.rows import Corpus
from sta.errors import CorpusError, RecipeError
from sta.evaluation import report
from sta.evaluation.evaluator import Evaluator
from sta.evaluation.judge import KnownPictures
from sta.evaluation.other_corpus import OtherCorpus, evaluate_on
from sta.evaluation.space import TeacherSpace
from sta.metrics.rows import Row
from sta.training.prepare import prepare_tests
from sta.training.workspace import Workspace
from tests.evaluation.test_systems import Scribe, toy_evaluator
from tests.evaluation.toys import COLOURS, toy_picture, toy_vectors, write_rows
from tests.release_fixtures import tiny_pipeline, wave

PEOPLE = ["moon", "apple", None, "sun", "star", "sea"]  # labels, of which training has three


def people_corpus(folder: Path) -> Corpus:
    """Pictures that no training had, each with a recording of a person; nobody speaks Arabic."""
    rows = []
    for number, label in enumerate(PEOPLE):
        buffer = io.BytesIO()
        toy_picture(label if label in COLOURS else "leaf", "outlined").save(buffer, "PNG")
        rows.append(
            {
                "id": f"{number}", "image": {"bytes": buffer.getvalue(), "path": None}, "language": "en",
                "audio": {"bytes": wav_bytes(wave(0.5, seed=number)), "path": None}, "split": "people",
                "text": f"en {label or 'leaf'} {number}", "label": label, "image_id": f"stamp/{number}",
            }
        )  # fmt: skip
    return write_rows(rows, folder)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluator, list[Row]]:
    folder = tmp_path_factory.mktemp("other")
    trained = toy_evaluator(folder / "own")
    workspace: Any = toy_evaluator(folder / "like", "evaluation.condition_split=null").workspace
    corpus = workspace.corpus = people_corpus(folder / "people")
    workspace.texts, workspace.cache = list(corpus.column("text")), folder / "cache"
    workspace.pixels = np.stack([np.asarray(corpus.picture(row)) for row in corpus.image_index[1]])
    made: Any = Evaluator(workspace, trained.pipe, trained)
    known, reads = KnownPictures.of(corpus), np.full(len(corpus), True)
    made.space = TeacherSpace(corpus, workspace.texts, *toy_vectors(corpus), reads, known, trained.space)
    made.teacher, made.recogniser = trained.teacher, Scribe()
    return made, report._rows(made)


def _of(rows: list[Row], system: str, condition: str = "clean") -> dict[str, Row]:
    return {r.metric: r for r in rows if (r.system, r.condition, r.split) == (system, condition, "people")}


def test_concepts_are_those_of_training_and_captions_those_of_the_corpus(
    measured: tuple[Evaluator, list[Row]],
) -> None:
    evaluator, rows = measured
    for system, condition in (("speech", "clean"), ("speech", "noise-10"), ("cascade", "clean")):
        found = _of(rows, system, condition)
        assert (found["r1_speech_to_text"].n, found["r1_speech_to_text"].chance) == (6, pytest.approx(1 / 6))
        for metric in ("speech_top1", "concept_top1"):
            assert (found[metric].n, found[metric].chance) == (3, pytest.approx(1 / 4)), "a moon is not known"
    assert evaluator.pictures is evaluator.trained.pictures
    assert {"retrieval", "cascade-perfect", "shuffled", "tokenizer"} <= {r.system for r in rows}
    assert {r.n for r in rows if r.metric == "judge_top1"} == {4}, "the judge is as accurate as on its own corpus"
    assert {r.split for r in rows if r.language == "en" and r.system != "teacher"} == {"people"}


def test_recordings_of_known_concepts_are_drawn_first(measured: tuple[Evaluator, list[Row]]) -> None:
    evaluator, _ = measured
    names = [PEOPLE[row] for row in evaluator.select_recordings("people", "en")]
    assert set(names[:3]) == {"apple", "sun", "sea"}
    assert set(names[3:]) == {"moon", "star", None}


def test_what_a_transcript_gives_the_decoder_is_a_training_recording(measured: tuple[Evaluator, list[Row]]) -> None:
    evaluator, _ = measured
    asked: list[int] = []
    own = evaluator.trained

    def encode(rows: np.ndarray, language: str) -> Any:
        asked.extend(rows.tolist())
        return Evaluator.encode(own, rows, language)

    from sta.evaluation.systems import nearest_condition

    own.encode = encode  # type: ignore[method-assign, assignment]
    nearest_condition(evaluator, evaluator.read(["en leaf train"]), "en")
    assert {own.corpus.column("label")[row] for row in asked} == {"leaf"}
    assert {own.corpus.column("split")[row] for row in asked} == {"train"}


# ---- the file, and what is prepared -------------------------------------------------------------------------


def test_every_packaged_file_holds() -> None:
    recipe = load_recipe("picturebook")
    assert set(yamlfile.names("corpora")) >= {"people", "people-unheard"}
    for name in yamlfile.names("corpora"):
        found = load_measured(recipe, name, ["evaluation.items=7"])
        assert (found.corpus.size, found.evaluation.items) == (recipe.corpus.size, 7)
        assert found.evaluation.judge == recipe.evaluation.judge, "what the file does not say is as the run has it"


@pytest.mark.parametrize(
    ("written", "overrides", "said"),
    [
        ("corpus: {name: folder, root: here, size: 64}", [], "corpus.size must be that of the run's pictures, 128"),
        ("corpus: {name: folder, root: here}", ["stages.decoder.steps=3"], "unknown key 'stages'"),
        ("evaluation: {items: 3}", [], "corpus.*name"),
        ("corpus: {name: folder, root: here}\nevaluation: {item: 3}", [], "unknown key 'evaluation.item'"),
        (
            "corpus: {name: folder, root: here}",
            ["encoded_as={be: ru}"],
            "'be: ru' must be .* of its own .en, ar, fr, es",
        ),
        (
            "corpus: {name: folder, root: here}",
            ["encoded_as={fr: es}"],
            "'fr: es' must be a language that the run lacks",
        ),
        ("corpus: {name: folder, root: here, rot: here}", [], "unknown key 'corpus.rot'"),
    ],
)
def test_files_that_do_not_hold(tmp_path: Path, written: str, overrides: list[str], said: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(written, encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        load_measured(load_recipe("picturebook-mini"), path, overrides)


def test_a_name_that_makes_no_folder_and_a_name_that_is_none(tmp_path: Path) -> None:
    workspace = Workspace(load_recipe("garden-tiny"), tmp_path)
    with pytest.raises(RecipeError, match="evaluation-my people"):
        evaluate_on(workspace, "my people.yaml")
    with pytest.raises(RecipeError, match="no file or name 'peeple'.*people"):
        evaluate_on(workspace, "peeple")


def test_the_runs_own_corpus_has_to_be_there_before_anything_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cache/garden-.*corpus: not there"):
        evaluate_on(Workspace(load_recipe("garden-tiny"), tmp_path), "people")
    assert not list(tmp_path.rglob("tests-*"))


def _other(tmp_path: Path, lines: list[str], *overrides: str) -> OtherCorpus:
    root = tmp_path / "mine"
    root.mkdir()
    for number in range(3):
        write_wav(root / f"{number}.wav", wave(0.5, seed=number))
        toy_picture("sea", "flat").save(root / f"{number}.png")
    (root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text("corpus: {name: folder, root: mine}\n", encoding="utf-8")
    recipe = load_recipe("garden-tiny")
    return OtherCorpus.of(Workspace(recipe, tmp_path / "runs"), load_measured(recipe, path, overrides))


def _line(number: int, split: str = "test", language: str = "en") -> str:
    files = {"audio": f"{number}.wav", "image": f"{number}.png"}
    return json.dumps({**files, "text": "a", "language": language, "split": split})


def test_rows_and_pictures_are_prepared_without_training_rows(tmp_path: Path) -> None:
    other = _other(tmp_path, [_line(0), _line(1), _line(2)])
    prepare_tests(other)
    assert other.corpus.has_audio.tolist() == [True] * 3
    assert other.pixels.shape == (3, other.recipe.corpus.size, other.recipe.corpus.size, 3)
    assert {path.name for path in other.cache.iterdir()} == {"corpus", "pixels-32"}
    assert other.cache.name.startswith("tests-folder-"), "such a corpus must not pass for one to train on"
    with pytest.raises(CorpusError, match="garden-.*features.*: not there"):
        other.made("features")


def test_a_corpus_without_recordings_is_refused(tmp_path: Path) -> None:
    other = _other(tmp_path, [_line(0), _line(1, "train"), _line(2, "train")])
    with pytest.raises(CorpusError, match="the test split has 1 recordings and needs 2"):
        prepare_tests(other)


def test_a_language_that_the_run_lacks_is_encoded_as_one_of_its_own(tmp_path: Path) -> None:
    other = _other(tmp_path, [_line(0, language="sw"), _line(1, language="sw")], "encoded_as={sw: en}")
    assert other.recipe.languages == list(other.cards) == ["sw"], "the run's own are measured apart"
    assert other.cards["sw"].normaliser == other.trained.cards["en"].normaliser
    prepare_tests(other)
    assert len(other.corpus.select("test", "sw")) == 2
    pipe = tiny_pipeline()
    other.add_languages(pipe)
    said = [wave(0.5, seed=1)]
    torch.testing.assert_close(pipe.encode_speech(said, "sw").tokens, pipe.encode_speech(said, "en").tokens)
    assert pipe.transcribe(said, "sw") == pipe.transcribe(said, "en")
    torch.testing.assert_close(pipe.encode_text("a bird", "sw").tokens, pipe.encode_text("a bird", "en").tokens)
