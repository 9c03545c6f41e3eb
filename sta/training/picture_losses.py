"""How far reconstructed pictures [B, 3, H, W] in [-1, 1] are from the real ones: what the tokenizer learns by."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.models.timm_networks import load_timm

LEVELS = 4  # halvings of the Laplacian pyramid


def edge_loss(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Compute the mean distance of the differences between neighbouring pixels: scalar."""
    apart = drawn - pictures
    return apart.diff(dim=2).abs().mean() + apart.diff(dim=3).abs().mean()


def pyramid_loss(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Compute the mean distance in the bands of a Laplacian pyramid, each alike (Bojanowski et al. 2018): scalar.

    The pyramid is linear, so it is taken of the difference.
    """
    apart, bands = drawn - pictures, []
    for _ in range(LEVELS):
        coarse = F.avg_pool2d(apart, 2)
        bands.append((apart - F.interpolate(coarse, scale_factor=2.0)).abs().mean())
        apart = coarse
    return torch.stack([*bands, apart.abs().mean()]).sum()


def colour_loss(drawn: Tensor, pictures: Tensor) -> Tensor:
    """Compute the mean distance of the opponent colours red-green and yellow-blue, whatever the brightness: scalar."""
    red, green, blue = (drawn - pictures).unbind(1)
    return (red - green).abs().mean() + ((red + green) / 2 - blue).abs().mean()


class PerceptualDistance(nn.Module):
    """Distance in the features of a frozen network, by unit vectors of each layer (Zhang et al. 2018, unweighted).

    Args:
        name: of a timm network on the Hub, or its folder, such as `timm/vgg16.tv_in1k`.

    Raises:
        WeightsError: there is no such network.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str):
        super().__init__()
        self.network = (
            load_timm(name, "stages.tokenizer.perceptual_network", features_only=True).eval().requires_grad_(False)
        )
        config: Any = self.network.pretrained_cfg
        for key, buffer in (("mean", "mean"), ("std", "deviation")):
            self.register_buffer(buffer, torch.tensor(config[key]).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Keep the network in evaluation mode, always."""
        return super().train(False)

    def forward(self, drawn: Tensor, pictures: Tensor) -> Tensor:
        """Compute the distance, summed over the layers: scalar."""
        with torch.no_grad():
            real = self._features(pictures)
        pairs = zip(self._features(drawn), real, strict=True)
        return torch.stack([(x - y).square().sum(1).mean() for x, y in pairs]).sum()

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """Return unit vectors of pictures [B, 3, H, W] in each of the network's layers, [B, D, h, w]."""
        maps = self.network(((pictures + 1) / 2 - self.mean) / self.deviation)
        return [F.normalize(each.float(), dim=1) for each in maps]
