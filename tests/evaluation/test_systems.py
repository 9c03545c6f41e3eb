"""A corpus without attributes, measured from end to end by parts that nothing trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sta.errors import StaError
from sta.evaluation import report, systems
from sta.evaluation.evaluator import Evaluator
from sta.evaluation.judge import KnownPictures
from sta.evaluation.space import TeacherSpace
from sta.metrics.page import write_page
from sta.metrics.rows import MEAN, Report, ResultKey, Row
from sta.models.bottleneck import SpeechCondition
from tests.evaluation.toys import ToyTeacher, toy_network, toy_vectors, toy_workspace
from tests.release_fixtures import tiny_pipeline

SETTINGS = (
    *("languages=[en, ar]", "evaluation.items=6", "evaluation.recordings=8", "evaluation.pictures=2"),
    *("evaluation.samples=2", "evaluation.conditions=[noise-10]", "evaluation.condition_split=voice"),
)


class Scribe:
    """Reads English alone, and every recording alike; counts how many it was given."""

    asked = 0

    def reads(self, language: str) -> bool:
        return language == "en"

    def transcribe(self, waves: list[np.ndarray], language: str) -> list[str]:
        self.asked += len(waves)
        return ["en leaf train"] * len(waves)


def toy_evaluator(folder: Path, *overrides: str, judged: bool = True, **corpus: Any) -> Evaluator:
    """An evaluator of the toy corpus: its teacher, its judge's network and its recogniser are toys."""
    name = ("evaluation.judge=toy", "evaluation.recogniser=scribe") if judged else ()
    workspace = toy_workspace(folder, *SETTINGS, *name, *overrides, **corpus)
    made: Any = Evaluator(workspace, tiny_pipeline())
    reads = np.full(len(workspace.corpus), True)
    vectors, known = toy_vectors(workspace.corpus), KnownPictures.of(workspace.corpus)
    made.space = TeacherSpace(workspace.corpus, workspace.texts, *vectors, reads, known)
    made.teacher, made.recogniser = ToyTeacher(), Scribe() if judged else None
    if judged:
        made.network = toy_network()
    return made  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluator, list[Row]]:
    evaluator = toy_evaluator(tmp_path_factory.mktemp("toy"))
    return evaluator, report._rows(evaluator)


def _of(rows: list[Row], system: str, condition: str = "clean", split: str = "voice") -> dict[str, Row]:
    return {
        r.metric: r for r in rows if (r.system, r.condition, r.split, r.language) == (system, condition, split, "en")
    }


def test_every_system_is_marked_with_the_judges_accuracy_beside(measured: tuple[Evaluator, list[Row]]) -> None:
    _, rows = measured
    drawn = {"concept_top1", "concept_top5", "judge_top1", "judge_top5"}
    for system in ("speech", "cascade-perfect", "cascade", "retrieval", "shuffled", "tokenizer"):
        assert drawn <= set(_of(rows, system)), system
    searched = {"r1_speech_to_image", "r10_image_to_speech", "r1_speech_to_text", "speech_top1"}
    for system in ("speech", "cascade-perfect", "cascade", "shuffled"):
        assert searched <= set(_of(rows, system)), system
    assert {"bits", "novelty", "novelty_real"} <= set(_of(rows, "speech"))
    assert {r.split for r in rows if r.metric == "fid"} >= {"all", "seen", "voice"}


def test_the_teacher_is_measured_on_pictures_of_every_split(measured: tuple[Evaluator, list[Row]]) -> None:
    found = {(r.split, r.language): r for r in measured[1] if r.metric == "zero_shot1"}
    assert {("style", "all"), ("style", "en"), ("voice", "ar")} <= set(found)
    assert found["style", "all"].value == 1, "the toy teacher knows its things"


def test_the_true_caption_finds_all_and_a_transcript_what_it_says(measured: tuple[Evaluator, list[Row]]) -> None:
    _, rows = measured
    assert _of(rows, "cascade-perfect")["r1_speech_to_text"].value == 1
    assert _of(rows, "cascade-perfect")["speech_top1"].value == 1
    assert _of(rows, "cascade")["speech_top1"].value == pytest.approx(0.25), "it reads a leaf in everything"


def test_conditions_are_measured_of_both(measured: tuple[Evaluator, list[Row]]) -> None:
    _, rows = measured
    for system in ("speech", "cascade"):
        assert {"concept_top1", "speech_top1", "judge_top1"} <= set(_of(rows, system, "noise-10"))
    assert not _of(rows, "speech", "noise-10", "style")


def test_a_language_that_is_not_read_by_the_recogniser_is_left_to_the_ctc_head(
    measured: tuple[Evaluator, list[Row]],
) -> None:
    evaluator, rows = measured
    assert evaluator.pipe.pack("ar").encoder.config.ctc_head
    assert any((r.system, r.language) == ("cascade", "ar") for r in rows)


def test_transcripts_are_kept(measured: tuple[Evaluator, list[Row]]) -> None:
    evaluator, _ = measured
    scribe: Any = evaluator.recogniser
    asked, where = scribe.asked, {"language": "en", "split": "voice", "condition": "clean", "system": "speech"}
    recordings = evaluator.select_recordings("voice", "en")
    again = systems.cascade_rows(evaluator, recordings, recordings[:6], evaluator.corpus.waveform, where)  # type: ignore[arg-type]
    assert (scribe.asked, bool(again)) == (asked, True)


def test_galleries_and_recordings_do_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    few, many = (toy_evaluator(tmp_path / n, f"evaluation.items={n}", judged=False) for n in ("2", "6"))
    found = []
    for evaluator in (few, many):
        rows = evaluator.select_rows("voice", "en")
        pictures, measured = systems.split_rows(evaluator, rows, "en", "voice")
        assert len(pictures) == len(rows) == evaluator.settings.items
        found.append([r for r in measured if r.metric != "bits"])
    assert found[0] == found[1]
    assert {r.n for r in found[0] if r.metric == "r1_speech_to_text"} == {8}


def test_text_without_a_text_branch_goes_by_the_nearest_caption(measured: tuple[Evaluator, list[Row]]) -> None:
    evaluator, _ = measured
    said = ["en sun voice", "en sea voice"]
    vectors = evaluator.read(said)
    given = systems.nearest_condition(evaluator, vectors, "en")
    rows = [list(evaluator.corpus.column("text")).index(text) for text in ("en sun train", "en sea train")]
    assert torch.equal(given.tokens, evaluator.encode(np.array(rows), "en").tokens)


def test_captions_alone_leave_retrieval_fid_and_novelty(tmp_path: Path) -> None:
    rows = report._rows(toy_evaluator(tmp_path, "evaluation.conditions=[]", labelled=False))
    metrics = {r.metric for r in rows}
    assert {"fid", "bits", "novelty", "r1_speech_to_text", "r1_speech_to_image"} <= metrics
    assert not {"concept_top1", "speech_top1", "style", "judge_top1"} & metrics


def test_page_shows_the_judge_beside_and_the_mean_of_the_languages(
    measured: tuple[Evaluator, list[Row]], tmp_path: Path
) -> None:
    evaluator, rows = measured
    examples, different = report._examples(evaluator)
    assert {row.metric for row in different} == {"diversity", "diversity_real"}
    assert examples[0].attributes.keys() == examples[0].predicted[0].keys() == {"concept"}
    assert len(examples[0].predicted) == len(examples[0].drawn) == 2
    rows = [*rows, *different]
    every = Report({"judge": "toy"}, [*rows, *report.mean_rows(rows, ["en", "ar"])])
    mean = next(r for r in every.rows if (r.language, r.split, r.metric) == (MEAN, "voice", "concept_top1"))
    write_page(tmp_path / "page.html", every, examples, "toy")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"<h3>{MEAN}</h3>" in page
    assert page.count("judge_top1 %") >= page.count("concept_top1 %") > 0
    assert mean.n == 12


def test_a_split_without_recordings_cannot_be_disturbed(tmp_path: Path) -> None:
    with pytest.raises(StaError, match="condition_split 'test' has no recordings; name one of seen, voice"):
        toy_evaluator(tmp_path, "evaluation.condition_split=test")


def test_a_drawing_is_asked_for_in_a_style_that_training_had_and_other_styles_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = toy_evaluator(tmp_path)
    rows = evaluator.corpus.select("voice", "en")
    known, pictures = evaluator.space.known, evaluator.image_of[rows]
    assert evaluator.own_styles(rows) == [None] * len(rows), "the decoder knows no styles"
    known.trained_styles["apple"] = ["flat"]
    decoder = SimpleNamespace(styles=("flat", "lines"))
    asked_for: list[list[str | None]] = []
    monkeypatch.setattr(evaluator, "pipe", SimpleNamespace(decoder=decoder))
    assert evaluator.own_styles(rows) == known.styles[pictures].tolist()
    apples = [n for n, picture in enumerate(pictures) if known.labels[picture] == "apple"]
    assert {evaluator.own_styles(rows)[n] for n in apples} == {"flat", "lines"}
    assert {evaluator.asked_styles(rows)[n] for n in apples} == {"flat"}

    def draw(tokens: Any, some: np.ndarray, styles: list[str | None]) -> torch.Tensor:
        asked_for.append(styles)
        return torch.zeros(len(some), 3, 8, 8)

    monkeypatch.setattr(evaluator, "generate_styled", draw)
    tokens = SpeechCondition(torch.zeros(len(rows), 2, 3), torch.zeros(len(rows), 4), torch.zeros(len(rows)))
    where = ResultKey(language="en", split="voice", condition="clean", system="speech")
    found = systems._unseen_style(evaluator, tokens, rows, where)
    assert asked_for == [["lines"]]
    assert {(row.system, row.n) for row in found if row.metric == "concept_top1"} == {("unseen-style", 1)}
