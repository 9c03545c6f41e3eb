"""A corpus of four things drawn in three styles, for an evaluation without attributes; nothing is trained."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sta.config.cards import load_language
from sta.config.recipe import load_recipe
from sta.data.audio import wav_bytes
from sta.data.rows import Corpus, Row, write_shard
from sta.evaluation.judge import KnownPictures, PictureFeatures
from sta.models.teachers.base import Preprocessing
from tests.release_fixtures import SIZE, wave

COLOURS = {"apple": (200, 30, 30), "leaf": (30, 160, 40), "sea": (30, 60, 190), "sun": (230, 200, 40)}
STYLES = ("flat", "lines", "outlined")
SPOKEN = {"train": ("flat", "lines"), "seen": ("flat",), "voice": ("flat", "lines"), "style": ("outlined",)}
WIDTH = 8  # of the teacher's vectors


def toy_picture(label: str, style: str) -> Image.Image:
    """A thing's colour, plain, striped, or in a frame."""
    pixels = np.full((SIZE, SIZE, 3), COLOURS[label], np.uint8)
    if style == "lines":
        pixels[::4] = 255
    if style == "outlined":
        pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = 0, 0, 0, 0
    return Image.fromarray(pixels)


def toy_corpus(folder: Path, languages: tuple[str, ...] = ("en", "ar"), labelled: bool = True) -> Corpus:
    """Every thing in every style, said in each language and split; only `outlined` is never trained on."""
    rows, number = [], 0
    for split, styles in SPOKEN.items():
        for language in languages:
            for label in COLOURS:
                for style in styles:
                    buffer, number = io.BytesIO(), number + 1
                    toy_picture(label, style).save(buffer, "PNG")
                    rows.append(
                        {
                            "id": f"{split}-{number}", "image": {"bytes": buffer.getvalue(), "path": None},
                            "audio": {"bytes": wav_bytes(wave(0.5, seed=number)), "path": None},
                            "text": f"{language} {label} {split}", "language": language, "split": split,
                            "image_id": f"{style}/{label}", "label": label if labelled else None,
                            "style": style if labelled else None,
                        }
                    )  # fmt: skip
    return write_rows(rows, folder)


def write_rows(rows: Sequence[Row], folder: Path) -> Corpus:
    """Write some rows as a prepared corpus."""
    (folder / "shards").mkdir(parents=True)
    write_shard(rows, folder / "shards" / "00000.arrow")
    return Corpus(folder)


class ToyTeacher(nn.Module):
    """Knows which thing a text is about, and of pictures their brightness."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return unit vectors [n, E] of pictures uint8 [n, H, W, 3]."""
        return F.normalize(F.adaptive_avg_pool1d(pixels.flatten(1).float(), WIDTH), dim=-1)

    def encode_texts(self, texts: list[str]) -> Tensor:
        """Return unit vectors [n, E], of each text its thing's and a little of its own."""
        things = list(COLOURS)
        near = torch.stack(
            [F.one_hot(torch.tensor([t in text for t in things]).int().argmax(), WIDTH) for text in texts]
        )
        own = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
        return F.normalize(near + 0.05 * torch.stack(own), dim=-1)


def toy_network(size: int = 64) -> PictureFeatures:
    """A small network of timm with weights by chance."""
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", pretrained=False)
    return PictureFeatures(network, Preprocessing(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize="squash"))


def toy_workspace(
    folder: Path, *overrides: str, languages: tuple[str, ...] = ("en", "ar"), labelled: bool = True
) -> Any:
    """What the evaluator asks of a workspace."""
    corpus, recipe = toy_corpus(folder / "corpus", languages, labelled), load_recipe("garden-tiny", list(overrides))
    _, shown_by = corpus.image_index
    return SimpleNamespace(
        recipe=recipe, corpus=corpus, texts=list(corpus.column("text")), cache=folder / "cache", folder=folder,
        pixels=np.stack([np.asarray(corpus.picture(row)) for row in shown_by]),
        cards={code: load_language(code) for code in ("en", "ar")},
        source=SimpleNamespace(attributes=lambda: None),
    )  # fmt: skip


def toy_vectors(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's vectors of pictures [pictures, E] and captions [rows, E]."""
    teacher, labels = ToyTeacher(), [name.rpartition("/")[2] for name in corpus.column("image_id")]
    images = teacher.encode_texts([f"{labels[row]} shown" for row in corpus.image_index[1]])
    return images.numpy(), teacher.encode_texts(list(corpus.column("text"))).numpy()


def known_of(labels: Sequence[str | None], styles: Sequence[str | None], trained: Sequence[bool]) -> KnownPictures:
    """What is known of pictures, those that are not trained on being of an unseen style."""
    seen = np.array(trained)
    return KnownPictures(np.array(labels, object), np.array(styles, object), seen, ~seen)
