"""The interface of a frozen image-text teacher: one file of this package each, or `module:Class` of one's own.

A teacher card's `kind` names it, and is validated by its `Settings`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sta.config.cards import TeacherCard
from sta.config.variants import find_variant
from sta.errors import WeightsError

#: Mean and deviation of the channels of OpenAI's training pictures (CLIP, Radford et al. 2021).
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """How pictures are made ready for a teacher; by default as for OpenAI's CLIP.

    Attributes:
        size: pixels a side.
        mean, deviation: of each channel, in [0, 1].
        interpolation: how pictures of another size are scaled.
        resize: whether the `shortest` side is scaled to the size and the middle cut out, or the `longest` and the rest
            filled with black, or both, `squash`.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    deviation: tuple[float, ...] = CLIP_DEVIATION
    interpolation: str = "bicubic"
    resize: str = "shortest"

    def fit(self, picture: Image.Image) -> np.ndarray:
        """Return an RGB picture of any size as uint8 [size, size, 3]: scaled, and cut where it is not square."""
        short, long = min(picture.size), max(picture.size)
        width, height = {
            "shortest": [self.size * side // short for side in picture.size],
            "longest": [round(self.size * side / long) for side in picture.size],
            "squash": [self.size, self.size],
        }[self.resize]
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = (_before(side - self.size) for side in (width, height))
        return np.asarray(picture.crop((left, top, left + self.size, top + self.size)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return uint8 [B, H, W, 3] as a network's input [B, 3, size, size]; another size is scaled."""
        x = pixels.permute(0, 3, 1, 2).float() / 255
        if x.shape[-1] != self.size:
            x = F.interpolate(x, (self.size, self.size), mode=self.interpolation, antialias=True).clamp(0, 1)
        mean, deviation = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.deviation))
        return (x - mean) / deviation


def _before(spare: int) -> int:
    """Return how much of what is spare, or lacking, lies before the middle, as torchvision and open_clip have it."""
    return round(spare / 2) if spare > 0 else -(-spare // 2)


class Teacher(nn.Module, ABC):
    """A network that cannot train: no gradients, pinned in evaluation mode.

    Attributes:
        Settings: the model that its cards are validated by.
        trained_here: whether the recipe's teacher stage trains it on the corpus at hand.
        preprocessing: of its pictures.
    """

    Settings: ClassVar[type[TeacherCard]] = TeacherCard
    trained_here: ClassVar[bool] = False

    def __init__(self, card: TeacherCard, preprocessing: Preprocessing):
        super().__init__()
        self.card, self.preprocessing = card, preprocessing

    @classmethod
    @abstractmethod
    def load(cls, card: Any, folder: Path | None = None) -> Teacher:
        """Load the teacher of a card.

        Args:
            folder: what the teacher stage left, for one that is trained here.

        Raises:
            WeightsError: it is not to be had, or is not what the card says.
        """

    @classmethod
    def version(cls, card: Any) -> object:
        """Return what tells one state of the card's weights from another without reading them, JSON-like."""
        return None

    @classmethod
    def outline(cls, card: Any) -> tuple[nn.Module, int]:
        """Return the network on torch's meta device, which has `encode_image` and `encode_text`, and a text's length.

        Raises:
            WeightsError: it cannot be built here, or the class does not say how.
        """
        raise WeightsError(f"{cls.__name__} has no `outline`, without which its operations cannot be counted")

    @classmethod
    def reads(cls, card: TeacherCard, language: str) -> bool:
        """Return whether it reads captions in a language."""
        return bool({language, language.partition("-")[0]} & set(card.text_languages))

    def freeze(self) -> None:
        """Let nothing train, once the networks are there."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode whatever `mode` is: a teacher does not change."""
        return super().train(False)

    def fit(self, picture: Image.Image) -> np.ndarray:
        """Return a picture at the resolution that it is seen at: uint8 [size, size, 3]."""
        return self.preprocessing.fit(picture)

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return unit vectors [B, E] of pictures uint8 [B, H, W, 3], of any size."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [B, E] of captions."""


def teacher_class(card: TeacherCard) -> type[Teacher]:
    """Return the class of a card's kind."""
    return find_variant("sta.models.teachers", card.kind, Teacher, "kind")  # type: ignore[type-abstract]
