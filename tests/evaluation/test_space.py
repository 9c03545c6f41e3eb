"""What embeddings find in the teacher's space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sta.evaluation.judge import KnownPictures
from sta.evaluation.space import TeacherSpace
from sta.metrics.rows import ResultKey, Row
from tests.evaluation.toys import COLOURS, ToyTeacher, toy_corpus, toy_vectors

WHERE = ResultKey(language="en", split="voice", condition="clean", system="speech")


@pytest.fixture(scope="module", params=[True, False], ids=["labelled", "captioned"])
def space(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TeacherSpace:
    corpus = toy_corpus(tmp_path_factory.mktemp("space"), labelled=request.param)
    reads = np.full(len(corpus), True)
    return TeacherSpace(corpus, list(corpus.column("text")), *toy_vectors(corpus), reads, KnownPictures.of(corpus))


def _found(space: TeacherSpace, asked: np.ndarray, texts: list[str] | None = None) -> dict[str, Row]:
    said = ToyTeacher().encode_texts([space.texts[row] for row in asked] if texts is None else texts)
    return {row.metric: row for row in space.rows(said, asked, WHERE)}


def test_true_captions_find_themselves_and_their_concepts(space: TeacherSpace) -> None:
    found = _found(space, space.corpus.select("voice", "en"))
    assert found["r1_speech_to_text"].value == 1
    assert found["r1_speech_to_text"].chance == pytest.approx(1 / len(COLOURS)), "captions repeat, and are there once"
    if space.names:
        assert (found["speech_top1"].value, found["speech_top1"].chance) == (1, 1 / len(COLOURS))
        assert found["r1_speech_to_image"].value == 1, "any picture of the concept is right, in whichever style"
    else:
        assert "speech_top1" not in found
        assert found["r1_speech_to_image"].chance == pytest.approx(1 / 8)


def test_galleries_do_not_depend_on_how_many_ask(space: TeacherSpace) -> None:
    rows = space.corpus.select("voice", "en")
    many, few = _found(space, rows), _found(space, rows[:2])
    for metric in ("r1_speech_to_image", "r10_speech_to_text"):
        assert many[metric].chance == pytest.approx(few[metric].chance)
    assert few["r1_speech_to_text"].n == 2


def test_shuffled_speech_is_at_chance(space: TeacherSpace) -> None:
    rows = np.repeat(space.corpus.select("voice", "en"), 50)
    away = np.random.default_rng(0).permutation(rows)
    row = _found(space, rows, [space.texts[r] for r in away])["r1_speech_to_text"]
    assert row.low < row.chance < row.high


def test_nearest_of_training(space: TeacherSpace) -> None:
    said = ToyTeacher().encode_texts(["a red apple", "the sea"])
    pictures = [space.corpus.column("image_id")[space.corpus.image_index[1][p]] for p in space.nearest_pictures(said)]
    assert [name.rpartition("/")[2] for name in pictures] == ["apple", "sea"]
    captions = space.nearest_captions(said, "ar")
    assert [space.texts[row] for row in captions] == ["ar apple train", "ar sea train"]


def test_captions_that_the_teacher_does_not_read_are_left_out(tmp_path: Path) -> None:
    corpus = toy_corpus(tmp_path)
    reads = corpus.column("language").equal("ar")
    space = TeacherSpace(corpus, list(corpus.column("text")), *toy_vectors(corpus), reads, KnownPictures.of(corpus))
    found = _found(space, corpus.select("voice", "en"))
    assert not any("text" in metric for metric in found)
    assert found["speech_top1"].value == 1, "concepts are known by their pictures and the other language's captions"
    assert torch.isfinite(space.concepts).all()
