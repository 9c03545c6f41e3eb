"""The attribute classifier: a small convolutional network that says what a Garden picture shows.

It judges generated pictures, so it is trained apart from everything it judges, and its own accuracy on real
renders is part of every report.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from sta.distributed import sharding


class AttributeClassifier(ModelMixin, ConfigMixin):
    """Pictures [B, 3, H, W] in [-1, 1] to logits of each slot's values.

    Args:
        slots: slot -> its values, `kind` and `mood` among them.
        size: picture side, pixels.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, slots: dict[str, list[str]], size: int, width: int = 48):
        super().__init__()
        widths = [width, width, 2 * width, 2 * width, 3 * width]
        layers: list[nn.Module] = []
        channels, side = 3, size
        for i, following in enumerate(widths):
            stride = 2 if i % 2 or side > 48 else 1
            layers += [nn.Conv2d(channels, following, 3, stride, 1), sharding.BatchNorm(following), nn.ReLU()]
            channels, side = following, -(-side // stride)
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(6), nn.Flatten())
        self.features_out = nn.Sequential(nn.Linear(36 * channels, 256), sharding.BatchNorm(256), nn.ReLU())
        self.heads = nn.ModuleDict({slot: nn.Linear(256, len(values)) for slot, values in slots.items()})

    def features(self, pictures: Tensor) -> Tensor:
        """Return [B, 256], the features that FID is computed on where no Inception network is at hand."""
        features: Tensor = self.features_out(self.trunk(pictures))
        return features

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return slot -> logits [B, number of values]."""
        features = self.features(pictures)
        return {slot: head(features) for slot, head in self.heads.items()}

    @torch.no_grad()
    def predict(self, pictures: Tensor, batch: int = 256) -> list[dict[str, str]]:
        """Return what each picture [n, 3, H, W], on any device, shows: slot -> value, every slot answered."""
        slots: Mapping[str, list[str]] = self.config.slots
        readings: list[dict[str, str]] = []
        for part in pictures.split(batch):
            best = {slot: logits.argmax(-1).tolist() for slot, logits in self(part.to(self.device)).items()}
            readings += [{slot: slots[slot][best[slot][i]] for slot in slots} for i in range(len(part))]
        return readings
