"""What the frozen teacher makes of a corpus's pictures and captions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sta.config.cards import load_teacher
from sta.config.recipe import Recipe
from sta.data.cache import key_of
from sta.distributed.team import Team
from sta.errors import RecipeError
from sta.models.teachers.base import Teacher, teacher_class
from sta.training.caching import cache_arrays
from sta.training.runtime import bf16_autocast
from sta.training.workspace import Workspace, fingerprint

READERS = 4  # threads that decode pictures


def load_teacher_of(workspace: Workspace) -> Teacher:
    """Return the recipe's teacher: the one its stage trained, or a published one."""
    card, kind = workspace.teacher_card, workspace.teacher_class
    return kind.load(card, workspace.final("teacher") if kind.trained_here else None)


def teacher_features(workspace: Workspace, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Return the teacher's unit vectors of pictures [pictures, E] and captions [rows, E], float32, memory-mapped."""
    folder = cache_teacher(workspace, device)
    return np.load(folder / "image.npy", mmap_mode="r"), np.load(folder / "text.npy", mmap_mode="r")


def cache_teacher(workspace: Workspace, device: torch.device, team: Team | None = None) -> Path:
    """Compute what `teacher_features` gives, each rank of the team its share."""
    folder = workspace.cache / f"teacher-{_teacher_key(workspace)}"
    if folder.exists():
        return folder
    teacher = cache(lambda: load_teacher_of(workspace).to(device))
    texts, shown_by = workspace.texts, workspace.corpus.image_index[1]

    def read(part: range) -> Tensor:
        with bf16_autocast(device):
            return teacher().encode_texts([texts[row] for row in part])

    def see(part: range) -> Tensor:
        return _see(workspace, teacher(), teacher().encode_images, part, device)

    makers, frozen = {"image": see, "text": read}, cache_towers(workspace, device, team)
    for tower, features in frozen.items():
        makers[tower] = partial(_project, teacher, tower, features, device)
    arrays = {"image": (len(shown_by), makers["image"]), "text": (len(texts), makers["text"])}
    return cache_arrays(folder, arrays, "teacher's view", team)


def _see(
    workspace: Workspace, teacher: Teacher, encode: Callable[[Tensor], Tensor], part: range, device: torch.device
) -> Tensor:
    """Return what a network makes of some pictures, each at the teacher's resolution from the original."""
    corpus, (_, shown_by) = workspace.corpus, workspace.corpus.image_index
    with ThreadPoolExecutor(READERS) as readers, bf16_autocast(device):
        seen = readers.map(lambda row: teacher.fit(corpus.picture(int(row))), shown_by[part.start : part.stop])
        return encode(torch.from_numpy(np.stack(list(seen))).to(device))


# ---- towers that do not train while the teacher does ------------------------------------------------------------


@dataclass(frozen=True)
class TowerFeatures:
    """What a frozen tower makes of the corpus.

    Attributes:
        values: float32 [items, F], memory-mapped: of every picture, or of every distinct caption.
        item: int64, the number of each picture's or row's item.
    """

    values: np.ndarray
    item: np.ndarray

    def __getitem__(self, numbers: Any) -> np.ndarray:
        """Return the features of some pictures or rows: float32 [n, F]."""
        found: np.ndarray = self.values[self.item[numbers]]
        return found


def cache_towers(workspace: Workspace, device: torch.device, team: Team | None = None) -> dict[str, TowerFeatures]:
    """Compute what the frozen towers of a teacher that is trained here make of the corpus; {} where none is frozen.

    It is computed once, each rank of the team its share: pictures at the teacher's resolution from the originals, and
    every distinct caption, those of like length together.
    """
    card, kind = workspace.teacher_card, cast(Any, workspace.teacher_class)
    if not card.frozen_towers:
        return {}
    pieces = None if card.pieces is None else workspace.made("teacher's pieces") / "teacher.model"
    teacher = cache(lambda: kind.untrained(card, pieces).to(device))
    texts, (text_of, said_by) = workspace.texts, distinct_texts(workspace)
    pictures = len(workspace.corpus.image_index[1])

    def see(part: range) -> Tensor:
        return _see(workspace, teacher(), teacher().frozen_images, part, device)

    def read(part: range) -> Tensor:
        with bf16_autocast(device):
            return teacher().frozen_texts([texts[row] for row in said_by[part.start : part.stop]])

    arrays = {"image": (pictures, see), "text": (len(said_by), read)}
    folder = workspace.cache / f"towers-{key_of(kind.towers_version(card))}"
    cache_arrays(folder, {tower: arrays[tower] for tower in card.frozen_towers}, "frozen towers' view", team)
    items = {"image": np.arange(pictures), "text": text_of}
    return {t: TowerFeatures(np.load(folder / f"{t}.npy", mmap_mode="r"), items[t]) for t in card.frozen_towers}


def distinct_texts(workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """Return (row -> number of its text, number of a text -> first row that says it), short texts first.

    Texts differ by what is written and by the language, which decides how it is normalised.
    """
    corpus = workspace.corpus
    text, language = corpus.column("text").numbered(), corpus.column("language").numbered()
    pairs = text * (language.max(initial=0) + 1) + language
    _, first, text_of = np.unique(pairs, return_index=True, return_inverse=True)
    lengths = [len(workspace.texts[row]) for row in first]
    order = np.argsort(lengths, kind="stable")
    return np.argsort(order)[text_of], first[order]


def _project(
    teacher: Callable[[], Any], tower: str, features: TowerFeatures, device: torch.device, part: range
) -> Tensor:
    """Return what the trained head makes of a frozen tower's features of some pictures or rows."""
    given = torch.from_numpy(features[part.start : part.stop]).to(device)
    with bf16_autocast(device):
        projected: Tensor = teacher().project(tower, given)
        return projected


# ---- which teacher, and what it reads -----------------------------------------------------------------------------


def _teacher_key(workspace: Workspace) -> str:
    """Return what tells one state of the teacher from another, and from those that saw scaled pictures."""
    card, kind = workspace.teacher_card, workspace.teacher_class
    own = fingerprint(workspace.final("teacher")) if kind.trained_here else card.model_dump(mode="json")
    return key_of(["original pictures", own, kind.version(card)])


def teacher_reads(workspace: Workspace) -> np.ndarray:
    """Return which rows have a caption in a language that the teacher reads: bool [rows]."""
    corpus, card, kind = workspace.corpus, workspace.teacher_card, workspace.teacher_class
    codes = [code for code in workspace.recipe.languages if kind.reads(card, code)]
    return corpus.has_text & np.any([np.zeros(len(corpus), bool), *map(corpus.column("language").equal, codes)], 0)


def check_teacher_reads(recipe: Recipe, section: str) -> None:
    """Refuse a text loss of a stage where the teacher reads none of the languages, so that no row would have it.

    Raises:
        RecipeError: names a teacher that does, and the loss.
    """
    card = load_teacher(recipe.teacher)
    if not any(teacher_class(card).reads(card, code) for code in recipe.languages):
        raise RecipeError(
            f"teacher '{card.name}' reads no captions in {', '.join(recipe.languages)} (text_languages of its card: "
            f"{', '.join(card.text_languages)}); name one that does, such as teacher=xlm-roberta-base-vit-b-32, or set "
            f"stages.{section}.losses.text to 0 and keep its view of the pictures"
        )
