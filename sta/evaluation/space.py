"""The teacher's space: what an embedding is compared with, none of which depends on how many recordings are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sta.data.rows import Corpus
from sta.evaluation.judge import UNSEEN_STYLE, KnownPictures
from sta.metrics.judged import class_rows
from sta.metrics.retrieval import direction_rows
from sta.metrics.rows import ResultKey, Row
from sta.training.concepts import class_vectors
from sta.training.workspace import Captions

CONCEPT = {"speech_top1": 1, "speech_top5": 5}


class TeacherSpace:
    """Galleries of pictures, captions and concepts, as the frozen teacher sees them.

    Args:
        corpus: its rows. texts: their captions, normalised.
        image: [pictures, E]; text: [rows, E]: the teacher's unit vectors.
        reads: bool [rows], which captions the teacher reads.
        known: what the corpus says of its pictures.
        trained: of the corpus that the run was trained on, whose concepts are searched, where this is another.
    """

    def __init__(
        self, corpus: Corpus, texts: Sequence[str] | Captions, image: np.ndarray, text: np.ndarray, reads: np.ndarray,
        known: KnownPictures, trained: TeacherSpace | None = None,
    ):  # fmt: skip
        self.corpus, self.texts, self.image, self.text = corpus, texts, image, text
        self.reads, self.known, self.trained = reads, known, trained or self
        self.picture_of, _ = corpus.image_index
        self.names = sorted({label for label in known.labels if label is not None})
        self.label = self._numbers(self.names)

    def _numbers(self, names: Sequence[str]) -> np.ndarray:
        """Return the place of each picture's label among some names: int64 [pictures]; -1: not there."""
        number = {name: n for n, name in enumerate(names)}
        return np.array([number.get(label, -1) for label in self.known.labels])

    @cached_property
    def concept_of(self) -> np.ndarray:
        """The number of each picture's concept among those of the corpus that was trained on; -1: none of them."""
        return self._numbers(self.trained.names)

    def rows(self, embedding: Tensor, asked: np.ndarray, where: ResultKey) -> list[Row]:
        """Measure what embeddings [n, E] of the rows `asked` find: pictures, captions and concepts."""
        spoken = self.corpus.select(where["split"], where["language"])
        return [
            *self._picture_rows(embedding, asked, np.unique(self.picture_of[spoken]), where),
            *self._caption_rows(embedding, asked, spoken, where),
            *self._concept_rows(embedding, asked, where),
        ]

    def _picture_rows(self, embedding: Tensor, asked: np.ndarray, gallery: np.ndarray, where: ResultKey) -> list[Row]:
        """Search the split's pictures; where they are drawn in styles, any one of the same label is right."""
        styled = np.array([style is not None for style in self.known.styles]) & (self.label >= 0)
        wanted = np.where(styled, self.label, len(self.names) + np.arange(len(self.label)))
        own = torch.from_numpy(wanted[self.picture_of[asked]][:, None] == wanted[gallery])
        scores = embedding @ torch.from_numpy(self.image[gallery]).T
        found = own.any(0)
        return [
            *direction_rows("speech_to_image", scores, own, **where),
            *direction_rows("image_to_speech", scores.T[found], own.T[found], **where),
        ]

    def _caption_rows(self, embedding: Tensor, asked: np.ndarray, spoken: np.ndarray, where: ResultKey) -> list[Row]:
        """Search the distinct captions of the split in its language."""
        first: dict[str, int] = {}
        for row in spoken[self.reads[spoken]]:
            first.setdefault(self.texts[row], int(row))
        known = np.flatnonzero(self.reads[asked])
        if not len(known):
            return []
        place = {text: n for n, text in enumerate(first)}
        own = torch.tensor([place[self.texts[row]] for row in asked[known]])
        scores = embedding[torch.from_numpy(known)] @ torch.from_numpy(self.text[list(first.values())]).T
        return direction_rows("speech_to_text", scores, F.one_hot(own, len(first)).bool(), **where)

    def _concept_rows(self, embedding: Tensor, asked: np.ndarray, where: ResultKey) -> list[Row]:
        """Search all concepts of the corpus that was trained on."""
        labels = torch.from_numpy(self.concept_of[self.picture_of[asked]])
        known = labels >= 0
        if not known.any():
            return []
        return class_rows(CONCEPT, embedding[known] @ self.trained.concepts.T, labels[known], **where)

    @cached_property
    def concepts(self) -> Tensor:
        """Vectors [concepts, E]: of each the mean of its pictures' and the mean of its captions', as training has them.

        Of a concept that training lacks they are those of all its rows but the ones in an unseen style.
        """
        split, number = self.corpus.column("split"), {name: n for n, name in enumerate(self.names)}
        labels = np.array([number.get(label, -1) for label in self.corpus.column("label")])
        train = split.equal("train")
        lacking = np.setdiff1d(labels, labels[train])
        rows = np.flatnonzero((labels >= 0) & (train | (np.isin(labels, lacking) & ~split.equal(UNSEEN_STYLE))))
        return torch.from_numpy(
            class_vectors(self.corpus, rows, labels, len(self.names), self.image, self.text, self.reads)
        )

    def nearest_pictures(self, embedding: Tensor) -> np.ndarray:
        """Return of each embedding [n, E] the nearest training picture."""
        trained = np.flatnonzero(self.known.trained)
        return trained[(embedding @ torch.from_numpy(self.image[trained]).T).argmax(1).numpy()]

    def nearest_captions(self, vectors: Tensor, language: str) -> np.ndarray:
        """Return of each vector [n, E] the training row, spoken in a language, whose caption is nearest."""
        rows = self.corpus.select("train", language)
        rows = rows[self.reads[rows] & self.corpus.has_audio[rows]]
        return rows[(vectors @ torch.from_numpy(self.text[rows]).T).argmax(1).numpy()]
