"""What reads pictures: the attribute reader of Garden, and the extractors behind FID and the inception score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sta import ranks
from sta.data.garden.world import World
from sta.metrics import fidelity
from sta.models.reader import AttributeReader
from sta.models.teacher import Teacher

READ_AT_ONCE, SEEN_AT_ONCE = 256, 64  # pictures


@dataclass
class Judge:
    """What reads pictures: the attribute reader and the world it answers for."""

    reader: AttributeReader
    world: World

    def read(self, pictures: Tensor) -> list[dict[str, str]]:
        """Readings of pictures [n, 3, H, W] in [-1, 1], which all ranks have, each of which reads its share."""
        parts = ranks.share_out(pictures.split(READ_AT_ONCE), self.reader.read)
        return [reading for part in parts for reading in part]


def features_of(extractor: nn.Module, pictures: Tensor) -> Tensor:
    """Features [n, F] of pictures, uint8 [n, 3, H, W], which all ranks have, each of which sees its share."""
    parts = ranks.share_out(pictures.split(SEEN_AT_ONCE), lambda part: fidelity.extract(extractor, part))
    return torch.cat(list(parts))


class KindAndColour(nn.Module):
    """Logits of the classes that the inception score is computed on: kind times the colour of its first part."""

    def __init__(self, reader: AttributeReader):
        super().__init__()
        self.reader = reader

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] to [n, classes]."""
        logits = {k: v.log_softmax(-1) for k, v in self.reader(images.float() / 127.5 - 1).items()}
        kinds = list(self.reader.config.slots["kind"])
        parts = {"bird": "head", "flower": "petals"}
        return torch.cat(
            [logits["kind"][:, [i]] + logits[parts[k]] for i, k in enumerate(kinds) if parts[k] in logits], 1
        )


class AttributeReaderFeatures(nn.Module):
    def __init__(self, reader: AttributeReader):
        super().__init__()
        self.reader = reader

    def forward(self, images: Tensor) -> Tensor:
        return self.reader.features(images.float() / 127.5 - 1)


class TeacherFeatures(nn.Module):
    def __init__(self, teacher: Teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher.encode_images(images.permute(0, 2, 3, 1))
