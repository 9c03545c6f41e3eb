"""The losses of distillation: what each asks of the corpus, what it leaves out, and how one of your own is found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from sta.config.recipe import DistillStage, load_recipe
from sta.config.variants import known_variants
from sta.data.rows import Column
from sta.distributed.sharding import IGNORE_INDEX
from sta.errors import RecipeError
from sta.models.bottleneck import SpeechCondition
from sta.models.encoder import EncoderOutput
from sta.training.concepts import Concepts, centroids_of
from sta.training.losses.base import (
    DistillLoss,
    DistillOutputs,
    DistillSizes,
    build_losses,
    find_loss,
    similarity_distillation,
    targets_of,
)
from sta.training.losses.concept import ConceptLoss
from sta.training.losses.ctc import CTCLoss
from sta.training.losses.image import ImageLoss
from sta.training.losses.mood import MoodLoss
from sta.training.losses.text import TextLoss
from sta.training.tasks.distill import ExampleCorpus
from tests.training.facts import FACTS

SIZES = DistillSizes({"en": 5, "ar": 7}, embedding_width=6, tokens=3, token_width=4, moods=3, attributes={"head": 3})
ROWS = np.arange(4)


def stage(**losses: float) -> DistillStage:
    """The distill stage with every loss off but these."""
    given = {name: 0.0 for name in DistillStage.model_fields["losses"].default} | losses
    return load_recipe("garden-tiny").stages.distill.model_copy(update={"losses": given, "negatives": 8})


class Corpus(ExampleCorpus):
    """Noise, of which a test says what is missing."""

    def __init__(self, **said: Any):
        super().__init__(SIZES, FACTS, stage(), 1.0)
        self.said = {name: np.asarray(value) for name, value in said.items()}

    def has_text(self, rows: np.ndarray) -> np.ndarray:
        return self.said.get("has_text", np.ones(len(self.sizes.pieces) + 99, bool))[rows]

    def teacher_reads(self, rows: np.ndarray) -> np.ndarray:
        return self.said.get("teacher_reads", np.ones(99, bool))[rows]

    def is_phrase(self, rows: np.ndarray) -> np.ndarray:
        return self.said.get("is_phrase", np.zeros(99, bool))[rows]

    def moods(self, rows: np.ndarray) -> np.ndarray:
        return self.said.get("moods", np.zeros(99, np.int64))[rows]


def outputs(acoustic: torch.Tensor | None = None) -> DistillOutputs:
    torch.manual_seed(0)
    speech = SpeechCondition(torch.randn(4, 3, 4), F.normalize(torch.randn(4, 6), dim=-1), torch.rand(4))
    logits, lengths = torch.randn(4, 30, SIZES.vocabulary), torch.tensor([30, 28, 30, 26])
    frames = EncoderOutput(torch.randn(4, 9, 8), torch.ones(4, 9, dtype=torch.bool), logits, lengths)
    return DistillOutputs(speech, frames, acoustic, lengths)


def value_of(loss: DistillLoss, corpus: ExampleCorpus, acoustic: torch.Tensor | None = None) -> torch.Tensor:
    value = loss(outputs(acoustic), targets_of({"it": loss}, corpus, ROWS, step=1)["it"])
    assert value is not None
    return value  # type: ignore[no-any-return]


def test_every_loss_of_the_recipe_is_a_file() -> None:
    known = {name.replace("-", "_") for name in known_variants("sta.training.losses", DistillLoss)}  # type: ignore[type-abstract]
    assert known == set(DistillStage.model_fields["losses"].default)


def test_a_loss_that_weighs_nothing_is_not_built() -> None:
    assert build_losses(SIZES, stage()) == {}
    assert list(build_losses(SIZES, stage(kl=1.0, mood=2.0))) == ["mood", "kl"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "imagee",
            "losses.imagee' is 'imagee': no such loss; did you mean 'image'? (known: attributes, caption, concept",
        ),
        ("base", "losses.base' is 'base': no such loss (known: "),
    ],
)
def test_a_loss_that_is_not_there_is_one_sentence(name: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("garden-tiny", [f"stages.distill.losses={{{name}: 1.0}}"])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loss_of_ones_own_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(RecipeError, match=r"key 'stages.distill.losses.nowhere:Loss': 'nowhere:Loss' cannot be impor"):
        find_loss("nowhere:Loss")
    with pytest.raises(RecipeError, match=r"'torch.nn:Linear' is no DistillLoss of sta.training.losses.base"):
        find_loss("torch.nn:Linear")


@pytest.mark.parametrize(("kind", "left_out"), [(ImageLoss, "is_phrase"), (TextLoss, "teacher_reads")])
def test_rows_that_do_not_count_are_left_out_of_the_mean(kind: type[ImageLoss], left_out: str) -> None:
    """Phrases say a part of the picture only; captions in some languages the teacher cannot read."""
    loss, apart = kind(SIZES, stage()), left_out == "is_phrase"
    some = np.array([True, False, False, True, *[True] * 95])
    corpus, none = Corpus(**{left_out: some ^ apart}), Corpus(**{left_out: np.full(99, apart)})
    targets = targets_of({"it": loss}, corpus, ROWS, 1)["it"]
    losses = similarity_distillation(outputs().speech.embedding, targets["own"], targets["bank"], loss.temperature)
    torch.testing.assert_close(loss(outputs(), targets), losses[[0, 3]].mean())
    assert float(value_of(loss, none)) == 0


def test_the_bank_of_captions_holds_those_that_the_teacher_reads() -> None:
    read = np.array([True, False] * 49 + [True])
    assert len(TextLoss(SIZES, stage()).step_targets(Corpus(teacher_reads=read), 1)["bank"]) == 4


def test_a_name_finds_its_label_among_all() -> None:
    """Rows without a label, and phrases, are left out; what is left is InfoNCE against the centroids."""
    loss, corpus = ConceptLoss(SIZES, stage()), Corpus(is_phrase=[False, True, False, False] + [False] * 95)
    centroids = F.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    corpus.concepts = Concepts(centroids.numpy(), np.array([3, 1, IGNORE_INDEX, 4]))
    logits = outputs().speech.embedding[[0, 3]] @ centroids.T / loss.temperature
    torch.testing.assert_close(value_of(loss, corpus), F.cross_entropy(logits, torch.tensor([3, 4])))
    corpus.concepts = Concepts(centroids.numpy(), np.full(4, IGNORE_INDEX))
    assert float(value_of(loss, corpus)) == 0


def test_the_gradient_of_the_label_reaches_rows_that_have_one() -> None:
    corpus, speech = Corpus(), outputs().speech
    corpus.concepts = Concepts(
        F.normalize(torch.ones(2, 6) * torch.tensor([[1.0], [-1.0]])).numpy(), np.array([0, 1, IGNORE_INDEX, 0])
    )
    embedding = speech.embedding.requires_grad_()
    loss = ConceptLoss(SIZES, stage())
    value = loss(DistillOutputs(speech, outputs().encoder), targets_of({"it": loss}, corpus, ROWS, 1)["it"])
    assert value is not None
    value.backward()
    assert embedding.grad is not None
    assert (embedding.grad.norm(dim=1) > 0).tolist() == [True, True, False, True]


def test_a_corpus_without_labels_has_no_loss_of_labels() -> None:
    loss, corpus = ConceptLoss(SIZES, stage()), Corpus()
    corpus.concepts = Concepts(np.zeros((0, 6), np.float32), np.full(4, IGNORE_INDEX))
    assert loss(outputs(), targets_of({"it": loss}, corpus, ROWS, 1)["it"]) is None


def test_a_label_is_where_its_pictures_and_names_are() -> None:
    """Of training rows alone; pictures and names weigh alike, and names that the teacher cannot read are left out."""
    column = {"label": ["b", "b", "a", None, "b"], "language": ["en", "ar", "ar", "en", "en"]}
    columns = {name: Column(pa.chunked_array([values])) for name, values in column.items()}
    corpus: Any = SimpleNamespace(
        column=columns.__getitem__, select=lambda split: np.arange(4), has_text=np.ones(5, bool),
        image_index=(np.array([0, 0, 1, 1, 2]), None), __len__=lambda: 5,
    )  # fmt: skip
    image, text = np.eye(6, dtype=np.float32)[:3], np.eye(6, dtype=np.float32)[[3, 4, 5, 3, 3]]
    concepts = centroids_of(corpus, image, text, np.array([True, False, True, True, True]))
    half = 0.5**0.5
    np.testing.assert_allclose(concepts.centroids, [[0, half, 0, 0, 0, half], [half, 0, 0, half, 0, 0]], atol=1e-6)
    assert concepts.of_row.tolist() == [1, 1, 0, IGNORE_INDEX, 1]


def test_ctc_is_torchs_where_every_row_has_a_caption_and_leaves_out_those_that_have_none() -> None:
    loss = CTCLoss(SIZES, stage())
    targets = loss.targets(Corpus(), ROWS)
    logits, lengths = outputs().encoder.ctc_logits, outputs().input_lengths
    assert logits is not None
    assert lengths is not None
    counts = torch.tensor(targets["lengths"])
    expected = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), targets["pieces"], lengths, counts)
    torch.testing.assert_close(loss(outputs(), targets), expected)

    class Silent(Corpus):
        def captions(self, rows: np.ndarray) -> list[list[int]]:
            return [[1, 2], [], [3, 4, 5], []]

    known = [True, False, True, False] + [True] * 95
    found = value_of(loss, Silent(has_text=known))
    each = [
        F.ctc_loss(logits[[i]].log_softmax(-1).transpose(0, 1), torch.tensor([said]), lengths[[i]], torch.tensor([n]))
        for i, said, n in ((0, [1, 2], 2), (2, [3, 4, 5], 3))
    ]
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_the_mood_of_hidden_acoustics_is_not_asked_for() -> None:
    loss = MoodLoss(SIZES, stage())
    all_known, some = Corpus(moods=[0, 1, 2, 0]), Corpus(moods=[0, IGNORE_INDEX, 2, IGNORE_INDEX])
    hidden = torch.tensor([True, False, True, False])
    torch.testing.assert_close(value_of(loss, all_known, hidden), value_of(loss, some))
    assert not value_of(loss, all_known).allclose(value_of(loss, some))


def test_without_a_mood_or_a_ctc_head_what_needs_them_is_not_built() -> None:
    without = DistillSizes({"en": 5}, 6, 3, 4, moods=0, attributes={})
    assert list(build_losses(without, stage(mood=1.0, kl=1.0))) == ["kl"]
    assert list(build_losses(SIZES, stage(text_branch=1.0, text=1.0))) == ["text"]
    assert list(build_losses(SIZES, stage(text_branch=1.0, text=1.0, ctc=1.0))) == ["text", "text_branch", "ctc"]


def test_the_text_branch_weighs_the_losses_that_are_for_captions() -> None:
    torch.manual_seed(1)
    losses = build_losses(SIZES, stage(image=0.5, attributes=3.0, text_branch=1.0, mood=1.0, ctc=1.0))
    parts = {name: losses[name] for name in ("image", "attributes")}
    targets = targets_of(parts, Corpus(), ROWS, 1)
    expected = 0.5 * losses["image"](outputs(), targets["image"])
    expected = expected + 3 * losses["attributes"](outputs(), targets["attributes"])
    torch.testing.assert_close(losses["text_branch"](outputs(), targets), expected)
    own = {name for name, _ in losses["text_branch"].named_parameters()}
    assert not own, "the others' weights are theirs"


# --- similarity distillation ------------------------------------------------------------------------------------


def test_with_one_hot_targets_it_is_cross_entropy(generator: torch.Generator) -> None:
    """Target and bank are orthogonal, so the target's own similarity stands alone; the batch's others do not count."""
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    target, bank = basis[:3], basis[3:]
    student = F.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    loss = similarity_distillation(student, target, bank, 0.03)
    logits = torch.cat([(student * target).sum(-1, keepdim=True), student @ bank.T], -1) / 0.03
    first = torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(loss, F.cross_entropy(logits, first, reduction="none"), atol=1e-4, rtol=1e-4)


def test_a_perfect_student_has_the_least_loss(generator: torch.Generator) -> None:
    target, bank, other = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (4, 16, 4))
    perfect = similarity_distillation(target, target, bank, 0.2)
    assert (perfect < similarity_distillation(other, target, bank, 0.2)).all()
    student = target.clone().requires_grad_()
    similarity_distillation(F.normalize(student, dim=-1), target, bank, 0.2).sum().backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-5


def test_two_half_batches_are_one_batch_given_the_bank(generator: torch.Generator) -> None:
    student, target, bank = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (6, 6, 16))
    whole = similarity_distillation(student, target, bank, 0.1)
    halves = [similarity_distillation(student[part], target[part], bank, 0.1) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(whole, torch.cat(halves))
