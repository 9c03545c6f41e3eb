"""How well a teacher knows what it is to teach: pictures find the names of their label, in each language and in all."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sta.data.rows import TEST_SPLITS
from sta.metrics.retrieval import hits
from sta.metrics.rows import Row, bootstrap
from sta.training.workspace import Workspace

RANKS = (1, 5)
#: In the place of a language: a label is the mean over the languages of its names.
EVERY_LANGUAGE = "all"


def zero_shot_rows(workspace: Workspace, image: np.ndarray, text: np.ndarray) -> list[Row]:
    """Compute rows `zero_shot1` and `zero_shot5`: pictures whose own label is the nearest, or in the first five.

    A label is where the mean of its texts is, in one language or in all; a picture counts once in a test split, among
    the labels of its part of a mixture, whether they were trained on or not.

    Args:
        image, text: the teacher's unit vectors of pictures [pictures, E] and captions [rows, E].
    """
    corpus, (image_of, _) = workspace.corpus, workspace.corpus.image_index
    _, label = np.unique([name or "" for name in corpus.column("label")], return_inverse=True)
    known = np.array([name is not None for name in corpus.column("label")], bool)
    named = known & corpus.has_text & ~corpus.column("phrase").equal(True)
    means = {code: _means(text, label, named & corpus.column("language").equal(code)) for code in workspace.cards}
    galleries = {EVERY_LANGUAGE: F.normalize(torch.stack(list(means.values())).sum(0), dim=-1), **means}
    rows = []
    for split in TEST_SPLITS:
        shown = corpus.select(split)
        shown = shown[known[shown]]
        _, first = np.unique(image_of[shown], return_index=True)
        shown = shown[first]
        in_parts = np.isin(corpus.part_of, corpus.part_of[shown])
        for code, gallery in galleries.items():
            there = torch.zeros(len(gallery), dtype=torch.bool)
            there[label[known & in_parts]] = True
            there &= gallery.norm(dim=1) > 0
            own = torch.from_numpy(label[shown])
            asked = there[own].numpy()
            if asked.any():
                scores = torch.from_numpy(image[image_of[shown[asked]]]).float() @ gallery.T
                rows += _rows(scores[:, there], own[asked, None] == there.nonzero().flatten(), code, split)
    return rows


def _means(text: np.ndarray, label: np.ndarray, named: np.ndarray) -> Tensor:
    """Return the unit vector of the mean of each label's texts [labels, E]; zeros where it has none."""
    sums = np.zeros((label.max() + 1, text.shape[1]), np.float32)
    rows = np.flatnonzero(named)
    np.add.at(sums, label[rows], text[rows])
    return F.normalize(torch.from_numpy(sums), dim=-1)


def _rows(scores: Tensor, own: Tensor, language: str, split: str) -> list[Row]:
    found = {rank: hits(scores, own, rank).numpy() for rank in RANKS}
    where = {"language": language, "split": split, "condition": "clean", "system": "teacher"}
    return [
        Row.of(f"zero_shot{k}", bootstrap(v), len(v), min(1.0, k / scores.shape[1]), **where)  # type: ignore[arg-type]
        for k, v in found.items()
    ]
