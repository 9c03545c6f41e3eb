"""The interface of a loss of the distill stage, and what it may ask of the corpus and of the networks.

A loss of one's own is one file with one class and `stages.distill.losses: {"my_losses:Duration": 0.5}` in the recipe:

    class Duration(DistillLoss):
        def __init__(self, sizes, settings):
            super().__init__(sizes, settings)
            self.seconds = nn.Linear(sizes.token_width, 1)

        def targets(self, corpus, rows):
            return {"letters": torch.tensor([len(text) for text in corpus.column("text", rows)])}

        def forward(self, outputs, targets):
            letters = self.seconds(outputs.speech.tokens.mean(1)).squeeze(-1)
            return sharding.mean((letters - targets["letters"]).square())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.config.recipe import DistillStage, Recipe
from sta.config.variants import find_variant
from sta.models.bottleneck import SpeechCondition
from sta.models.encoder import EncoderOutput

if TYPE_CHECKING:  # it knows the workspace, which asks this module what a recipe's losses read
    from sta.training.concepts import Concepts

Targets = Mapping[str, Any]


@dataclass(frozen=True)
class DistillSizes:
    """What the networks of a distill stage are sized by.

    Attributes:
        pieces: language -> pieces of its SentencePiece model.
        embedding_width: E. tokens: K. token_width: C.
        moods: how many the corpus names.
        attributes: attribute -> number of its values; empty where the corpus does not know what its captions name.
    """

    pieces: Mapping[str, int]
    embedding_width: int
    tokens: int
    token_width: int
    moods: int
    attributes: Mapping[str, int]

    @property
    def vocabulary(self) -> int:
        """Return P: the pieces of every language, and the blank."""
        return 1 + sum(self.pieces.values())


class DistillCorpus(Protocol):
    """A group's recordings as losses see them; `rows` int64 [n] are the corpus's row numbers."""

    @property
    def concepts(self) -> Concepts:
        """Return the training rows' labels as the teacher sees them."""

    def image_features(self, rows: np.ndarray) -> np.ndarray:
        """Return the teacher's unit vectors of the rows' pictures: float32 [n, E]."""

    def text_features(self, rows: np.ndarray) -> np.ndarray:
        """Return the teacher's unit vectors of the rows' captions: float32 [n, E]."""

    def negatives(self, step: int) -> np.ndarray:
        """Return rows [M] to tell a step's items from, the same on every rank."""

    def captions(self, rows: np.ndarray) -> list[list[int]]:
        """Return the captions as pieces of the CTC head; empty where a row has none."""

    def has_text(self, rows: np.ndarray) -> np.ndarray:
        """Return which rows have a caption: bool [n]."""

    def teacher_reads(self, rows: np.ndarray) -> np.ndarray:
        """Return which rows have a caption in a language that the teacher reads: bool [n]."""

    def is_phrase(self, rows: np.ndarray) -> np.ndarray:
        """Return which rows say only a part of what their picture shows: bool [n]."""

    def moods(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of each row's mood: int64 [n], `IGNORE_INDEX` where it has none."""

    def attributes(self, rows: np.ndarray) -> np.ndarray:
        """Return the value of each attribute that the captions name: int64 [n, attributes]."""

    def column(self, name: str, rows: np.ndarray) -> list[Any]:
        """Return a column of the rows, such as `speaker`."""


@dataclass(frozen=True)
class DistillOutputs:
    """What the networks made of B recordings or written captions.

    Attributes:
        speech: tokens [B, K, C], embedding [B, E], kl [B]; of no item where the step trains the CTC head alone.
        encoder: frames, and the CTC head's logits where it has read recordings.
        acoustic: bool [B], False where the acoustic frames were hidden; None: of no recording.
        input_lengths: int64 [B] on the host, frames of the CTC head's logits; None where the host does not know them.
    """

    speech: SpeechCondition
    encoder: EncoderOutput
    acoustic: Tensor | None = None
    input_lengths: Tensor | None = None


class DistillLoss(nn.Module, ABC):
    """One loss of the distill stage, with modules of its own that are not released.

    It is built only where its weight is above 0; else its targets are not read either.

    Attributes:
        on_captions: whether the text branch, which reads captions in the place of recordings, is to have it too.
        branch: whether its own outputs are of recordings, or of written captions.
        reads_pieces: whether it asks the corpus for `captions`; pieces are trained only where something does.
        of_readings: whether it wants nothing of recordings but the CTC head's logits, so that it applies to the steps
            of `stages.distill.ctc_warmup` too.
    """

    on_captions: ClassVar[bool] = False
    branch: ClassVar[Literal["speech", "text"]] = "speech"
    reads_pieces: ClassVar[bool] = False
    of_readings: ClassVar[bool] = False

    def __init__(self, sizes: DistillSizes, settings: DistillStage):
        super().__init__()

    @classmethod
    def applies(cls, sizes: DistillSizes, settings: DistillStage) -> bool:
        """Return whether the corpus has what the loss needs."""
        return True

    def add_others(self, losses: Mapping[str, DistillLoss]) -> None:
        """Take note of all losses of the stage, for a loss that is made of others."""

    def targets(self, corpus: DistillCorpus, rows: np.ndarray) -> Targets:
        """Return what `forward` wants to know of some rows: tensors [n, ...] by name; others stay on the host."""
        return {}

    def step_targets(self, corpus: DistillCorpus, step: int) -> Targets:
        """Return what it wants to know of a step besides, the same for all items and ranks."""
        return {}

    @abstractmethod
    def forward(self, outputs: DistillOutputs, targets: Targets) -> Tensor | None:
        """Return the mean loss of the batch, a scalar; None where it does not apply.

        Where items are left out, `sharding.global_mean` divides by how many count on all ranks.

        Args:
            targets: of `targets` and of `step_targets`.
        """


def build_losses(sizes: DistillSizes, settings: DistillStage) -> dict[str, DistillLoss]:
    """Return the losses of a recipe that weigh something and apply, by name, in its order."""
    kinds = {name: find_loss(name) for name, weight in settings.losses.items() if weight}
    losses = {name: kind(sizes, settings) for name, kind in kinds.items() if kind.applies(sizes, settings)}
    for loss in losses.values():
        loss.add_others(losses)
    return losses


def find_loss(name: str) -> type[DistillLoss]:
    """Return the class of a loss: `text_branch` is that of text_branch.py, `module:Class` is imported."""
    variant = name if ":" in name else name.replace("_", "-")
    return find_variant("sta.training.losses", variant, DistillLoss, f"stages.distill.losses.{name}")  # type: ignore[type-abstract]


def reads_pieces(recipe: Recipe) -> bool:
    """Return whether a stage reads captions as SentencePiece pieces; tasks of others may."""
    stages = recipe.stages
    if any(getattr(stages, name).task for name in ("distill", "decoder")):
        return True
    read = any(find_loss(name).reads_pieces for name, weight in stages.distill.losses.items() if weight)
    return read or bool(getattr(stages.decoder, "losses", {}).get("caption"))


def similarity_distillation(student: Tensor, target: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Make the student see the bank as its target does (SEED, Fang et al. 2021, Eq. 4): [B].

    A frozen teacher allows any number of negatives at no cost, and soft targets forgive those that say the same thing.
    With one-hot targets this is InfoNCE (van den Oord et al. 2018, Eq. 4).

    Args:
        student: [B, E]; target: [B, E], what the teacher made of the same items; both unit vectors.
        bank: [M, E], unit vectors of the teacher.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, columns = student.float() / temperature, bank.T
        wanted = torch.cat([(target * target).sum(-1, keepdim=True), target @ columns], -1)  # [B, 1+M]
        seen = torch.cat([(student * target).sum(-1, keepdim=True), student @ columns], -1)
        return F.cross_entropy(seen, (wanted / temperature).softmax(-1), reduction="none")


def targets_of(
    losses: Mapping[str, DistillLoss], corpus: DistillCorpus, rows: np.ndarray, step: int
) -> dict[str, Targets]:
    """Return what each loss wants to know of some rows in a step."""
    return {name: {**loss.targets(corpus, rows), **loss.step_targets(corpus, step)} for name, loss in losses.items()}
