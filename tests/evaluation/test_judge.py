"""The judge that needs no attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sta.errors import WeightsError
from sta.evaluation.judge import KnownPictures, PictureFeatures, PictureJudge, colours
from sta.metrics.rows import ResultKey
from tests.evaluation.toys import COLOURS, STYLES, known_of, toy_corpus, toy_network, toy_picture

WHERE = ResultKey(language="en", split="voice", condition="clean", system="speech")
LABELS = [label for _ in STYLES for label in COLOURS]
DRAWN_IN = [style for style in STYLES for _ in COLOURS]


def _pixels(labels: list[str], styles: list[str]) -> torch.Tensor:
    pictures = [np.asarray(toy_picture(label, style)) for label, style in zip(labels, styles, strict=True)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def network() -> PictureFeatures:
    return toy_network()


@pytest.fixture(scope="module")
def judge(network: PictureFeatures) -> PictureJudge:
    with torch.no_grad():
        raw = network(_pixels(LABELS, DRAWN_IN)).numpy()
    return PictureJudge(raw, network.widths(), known_of(LABELS, DRAWN_IN, [s != "outlined" for s in DRAWN_IN]))


def test_known_pictures_are_seen_as_what_they_are(judge: PictureJudge) -> None:
    found = {row.metric: row for row in judge.mark(judge.raw, LABELS, DRAWN_IN, **WHERE)}
    assert found["concept_top1"].value == 1
    assert (found["concept_top1"].chance, found["concept_top1"].n) == (0.25, 12)
    assert found["style"].value == 1
    assert (found["style"].chance, found["style"].n) == (0.5, 8), "the unseen style is none that can be asked for"
    assert judge.likeliest(judge.raw) == LABELS


def test_the_judges_own_accuracy_stands_beside_and_is_of_pictures_that_it_never_saw(judge: PictureJudge) -> None:
    rows = judge.mark(judge.raw[:1], ["leaf"], [None], **WHERE)
    assert [row.metric for row in rows] == ["concept_top1", "concept_top5", "judge_top1", "judge_top5"]
    assert rows[0].value == 0, "an apple is no leaf"
    assert {(row.language, row.split, row.system) for row in rows} == {("en", "voice", "speech")}
    assert rows[2].n == len(COLOURS), "the pictures of the unseen style"


def test_pictures_of_other_features_are_at_chance(judge: PictureJudge, generator: torch.Generator) -> None:
    noise = torch.randn(400, judge.raw.shape[1], generator=generator)
    row = judge.mark(noise, [LABELS[n % 4] for n in range(400)], [None] * 400, **WHERE)[0]
    assert row.low < 0.25 < row.high


def test_novelty_of_a_copied_training_picture_is_zero(judge: PictureJudge) -> None:
    copied, unseen = judge.raw[:2], judge.raw[-2:]
    assert [row.value for row in judge.novelty(copied, **WHERE)] == [
        pytest.approx(0, abs=1e-6),
        pytest.approx(judge.novelty(judge.raw[-4:], **WHERE)[0].value),
    ]
    assert judge.novelty(unseen, **WHERE)[0].value > 1e-4


def test_diversity_of_the_same_picture_is_zero(judge: PictureJudge) -> None:
    same, differ = (judge.diversity(judge.raw[items], 2, **WHERE) for items in ([0, 0, 1, 1], [0, 1, 2, 3]))
    assert same[0].value == pytest.approx(0, abs=1e-6)
    assert (differ[0].n, differ[0].value > 1e-4) == (2, True)
    assert (same[1].metric, same[1].n) == ("diversity_real", len(COLOURS))
    assert judge.diversity(judge.raw, 1, **WHERE) == []


def test_without_labels_only_distances_are_left(network: PictureFeatures) -> None:
    raw = np.random.default_rng(0).random((4, sum(network.widths())), np.float32)
    judge = PictureJudge(raw, network.widths(), known_of([None] * 4, [None] * 4, [True, True, True, False]))
    assert judge.mark(judge.raw, [None] * 4, [None] * 4, **WHERE) == []
    assert judge.likeliest(judge.raw) == []
    assert [row.metric for row in judge.novelty(judge.raw, **WHERE)] == ["novelty", "novelty_real"]
    assert [row.metric for row in judge.diversity(judge.raw, 2, **WHERE)] == ["diversity"]


def test_without_a_style_unseen_the_accuracy_is_of_half_the_pictures(judge: PictureJudge) -> None:
    everywhere = PictureJudge(judge.raw.numpy(), judge.widths, known_of(LABELS, DRAWN_IN, [True] * len(LABELS)))
    assert everywhere.own_concepts[0].n == len(LABELS) // 2
    assert judge.own_styles[0].n == 4, "two things of two styles, learnt from the other two things"


def test_labels_that_training_lacks_are_learnt_from_their_other_pictures() -> None:
    known = KnownPictures(
        np.array(["a", "a", "b", "b", None], object), np.array([None] * 5, object),
        np.array([True, False, False, False, True]), np.array([False, False, False, True, False]),
    )  # fmt: skip
    assert known.references.tolist() == [0, 2]


def test_what_a_corpus_says_of_its_pictures(tmp_path: Path) -> None:
    known = KnownPictures.of(toy_corpus(tmp_path))
    assert known.labels.tolist() == LABELS
    assert known.styles.tolist() == DRAWN_IN
    assert known.trained.tolist() == [style != "outlined" for style in DRAWN_IN]
    assert (known.hidden == ~known.trained).all()


def test_features_do_not_depend_on_the_batch(network: PictureFeatures) -> None:
    pixels = _pixels(LABELS, DRAWN_IN)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels)[3:5], network(pixels[3:5]), atol=1e-4, rtol=1e-4)
    shares = colours(pixels[:1]).square()
    assert shares.sum() == pytest.approx(1)
    assert (shares > 0).sum() == 1, "a plain picture is of one colour"


def test_a_network_is_loaded_from_a_folder_of_its_name(tmp_path: Path, network: PictureFeatures) -> None:
    folder = tmp_path / "test_efficientnet"
    folder.mkdir()
    save_file(network.network.state_dict(), folder / "model.safetensors")
    loaded = PictureFeatures.load(str(folder))
    assert loaded.preprocessing.size == 160
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
    assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(WeightsError, match="evaluation.judge 'no_network': timm cannot load it"):
        PictureFeatures.load("no_network")
