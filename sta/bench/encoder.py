"""Speed of speech backbones on the processor, with fresh weights: it does not depend on them."""

from __future__ import annotations

from statistics import median

import numpy as np
import torch

from sta.bench.speed import Contestant, in_turn
from sta.config.recipe import EncoderSettings
from sta.models.backbones import build_backbone, describe_backbone


def bench_encoder(name: str | None, seconds: float, batch: int, repeats: int = 5) -> float:
    """Return how many recordings of some seconds a frozen backbone turns into frames a second, in float32.

    `name` is as `encoder.backbone` of a recipe; of `repeats` batches the median counts.
    """
    settings = EncoderSettings()
    backbone = build_backbone(
        describe_backbone(name, frozen=True), settings.width, convolutions=settings.convolutions, dropout=0.0
    ).eval()
    length, rng = round(seconds * backbone.features_per_second), np.random.default_rng(0)
    features = np.stack([backbone.example_features(rng, length, changes=5.0) for _ in range(batch)])
    inputs, lengths = backbone.inputs(torch.from_numpy(features)), torch.full((batch,), length)
    with torch.no_grad():
        (times,) = in_turn([Contestant("", 1, lambda _: backbone(inputs, lengths))], repeats)
    return batch / median(times)
