"""What the frozen teacher makes of a corpus's pictures and captions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

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
    teacher = cache(lambda: load_teacher_of(workspace).to(device))
    corpus, texts, (_, shown_by) = workspace.corpus, workspace.texts, workspace.corpus.image_index

    def see(part: range) -> Tensor:
        with ThreadPoolExecutor(READERS) as readers, bf16_autocast(device):
            seen = readers.map(lambda row: teacher().fit(corpus.picture(int(row))), shown_by[part.start : part.stop])
            return teacher().encode_images(torch.from_numpy(np.stack(list(seen))).to(device))

    def read(part: range) -> Tensor:
        with bf16_autocast(device):
            return teacher().encode_texts([texts[row] for row in part])

    arrays = {"image": (len(shown_by), see), "text": (len(texts), read)}
    return cache_arrays(workspace.cache / f"teacher-{_teacher_key(workspace)}", arrays, "teacher's view", team)


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
