"""What every speech backbone can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from sta.data.audio import SAMPLE_RATE


class SpeechBackbone(nn.Module, ABC):
    """Recordings to acoustic frames: the part of a speech encoder that knows about sound.

    A variant is one class in one module. It is built as `Class(width, **description)`: D, and what `describe` returned,
    which is saved as JSON in the encoder's configuration. Frames of a recording must depend neither on what it is
    padded with nor on the other recordings of its batch.

    Attributes:
        feature_kind: names what `cached_features` returns; backbones of one kind share a cache.
        features_per_second: its rows in a second of speech.
        augments: whether `inputs` are scaled log-mel, to which the augmentation of the distill stage applies.
        has_layers: whether a recipe may choose layers, pool their frames and cache them, as of transformers' models.
    """

    feature_kind: ClassVar[str]
    features_per_second: ClassVar[int]
    augments: ClassVar[bool] = False
    has_layers: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def cached_features(wave: np.ndarray) -> np.ndarray:
        """Return what the prepare stage caches of a recording float32 [T] at 16 kHz: [S, F].

        Worker processes import the module of this function.
        """

    @abstractmethod
    def inputs(self, features: Tensor) -> Tensor:
        """Return a batch of cached features [B, S, F], padded with anything, as the floats that `forward` takes."""

    @abstractmethod
    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return acoustic frames [B, S', D] and how many of them are valid [B].

        Args:
            inputs: of `inputs`, [B, S, F].
            lengths: [B], valid rows of inputs.
        """

    def start_from(self, inputs: Tensor, lengths: Tensor) -> None:
        """Take what has to be known of recordings before a training, such as the scale of features, from some."""

    def output_lengths(self, lengths: Tensor) -> Tensor | None:
        """Return the lengths [B] of `forward`, on the device of the given ones; None where they are not worked out.

        The CTC loss reads lengths on the host, which waits for the device where only that knows them.
        """
        return None

    @property
    def frozen_part(self) -> nn.Module | None:
        """What never changes and is stored apart, once for all encoders that have it; None: nothing."""
        return None

    def reader(self) -> SpeechBackbone:
        """Return the backbone without its frozen part, with the same trainable parts."""
        return self

    @classmethod
    def describe(cls, name: str, frozen: bool) -> dict[str, Any]:
        """Return the keyword arguments of the class, which have to be JSON, without reading weights.

        Args:
            name: what the recipe says in `encoder.backbone`.
            frozen: whether the recipe wants published weights left as they are.
        """
        return {}

    def load_published(self, name: str) -> None:
        """Load the weights that were published under `name`, if there are any; by default there are none."""

    @classmethod
    def example_features(cls, rng: np.random.Generator, length: int, changes: float) -> np.ndarray:
        """Return synthetic cached features [length, F], for planning without a corpus.

        Args:
            length: S.
            changes: how often a second the speech changes; noise, the default, does all the time.
        """
        wave = 0.1 * rng.standard_normal(-(-length * SAMPLE_RATE // cls.features_per_second), dtype=np.float32)
        features = cls.cached_features(wave)
        return np.resize(features, (length, features.shape[1]))
