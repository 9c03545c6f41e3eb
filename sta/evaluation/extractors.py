"""What looks at pictures: the attribute classifier, and the extractors behind FID and the inception score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sta.data.corpora.base import Attributes, World
from sta.distributed import ranks
from sta.evaluation.judge import PictureFeatures
from sta.metrics import fidelity
from sta.models.attribute_classifier import AttributeClassifier
from sta.models.loading import load_network
from sta.models.teachers.base import Teacher

PREDICT_BATCH, FEATURE_BATCH = 256, 64  # pictures


@dataclass
class Judge:
    """The attribute classifier, and what the corpus knows that it was trained on."""

    classifier: AttributeClassifier
    attributes: Attributes
    batch: int = PREDICT_BATCH

    @property
    def world(self) -> World:
        """The world that it answers for."""
        return self.attributes.world

    def predict(self, pictures: Tensor) -> list[dict[str, str]]:
        """Predict the attributes of pictures [n, 3, H, W] in [-1, 1], which all ranks have, a share on each rank."""
        parts = ranks.parallel_map(pictures.split(self.batch), self.classifier.predict)
        return [reading for part in parts for reading in part]


def features_of(extractor: nn.Module, pictures: Tensor, batch: int = FEATURE_BATCH) -> Tensor:
    """Return features [n, F] of pictures, uint8 [n, 3, H, W], which all ranks have, each of which sees its share."""
    parts = ranks.parallel_map(pictures.split(batch), lambda part: fidelity.extract(extractor, part))
    return torch.cat(list(parts))


class KindAndColour(nn.Module):
    """Logits of the classes that the inception score is computed on: kind times the colour of its first part."""

    def __init__(self, classifier: AttributeClassifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [n, 3, H, W] to [n, classes]."""
        logits = {k: v.log_softmax(-1) for k, v in self.classifier(images.float() / 127.5 - 1).items()}
        kinds = list(self.classifier.config.slots["kind"])
        parts = {"bird": "head", "flower": "petals"}
        return torch.cat(
            [logits["kind"][:, [i]] + logits[parts[k]] for i, k in enumerate(kinds) if parts[k] in logits], 1
        )


class AttributeClassifierFeatures(nn.Module):
    """What the attribute classifier sees before it answers."""

    def __init__(self, classifier: AttributeClassifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [n, 3, H, W] to [n, F]."""
        return self.classifier.features(images.float() / 127.5 - 1)


class TeacherFeatures(nn.Module):
    """What the teacher sees."""

    def __init__(self, teacher: Teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [n, 3, H, W] to [n, E]."""
        return self.teacher.encode_images(images.permute(0, 2, 3, 1))


class PooledFeatures(nn.Module):
    """The pooled features of the end of the judge's network, without those of its stages."""

    def __init__(self, network: PictureFeatures):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [n, 3, H, W] to [n, F]."""
        return self.network.parts(images)[0]


def load_judge(folder: Path, attributes: Attributes, device: torch.device) -> Judge:
    """Load the attribute classifier that a run trained, to a device."""
    classifier = load_network(AttributeClassifier, folder)
    classifier.to(device)  # type: ignore[arg-type]
    return Judge(classifier, attributes)


def fid_extractor(judge: Judge | None, load: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """Return what FID's features come from: the attribute classifier, or what `load` gives where there is none."""
    return load().to(device) if judge is None else AttributeClassifierFeatures(judge.classifier)
