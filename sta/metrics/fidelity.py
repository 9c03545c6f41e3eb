"""FID and inception score of generated pictures, with any feature extractor; tests compare both with torchmetrics.

Features are extracted once (`extract`) and shared by every system that is compared. A number is only
comparable with others of the same extractor, so `extractor_meta` goes into the report's meta.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from sta.metrics.rows import Interval, ResultKey, Row


@torch.no_grad()
def extract(extractor: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Compute features of pictures, uint8 [n, 3, H, W] in 0..255 to float [n, F] on the CPU.

    `extractor` takes such a batch and gives [b, F]: features for FID, logits for the inception score.
    It runs where its weights are, in evaluation mode, and is left in it.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"pictures are uint8 [n, 3, H, W], got {images.dtype} {tuple(images.shape)}")
    device = next((p.device for p in extractor.parameters()), images.device)
    extractor.eval()
    features = [extractor(part.to(device)).float().cpu() for part in images.split(batch)]
    return torch.cat(features)


def extractor_meta(extractor: nn.Module, features: Tensor) -> dict[str, Any]:
    """Name what makes FIDs comparable: the extractor's class, width and a digest of its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(extractor.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    name = f"{type(extractor).__name__}-{features.shape[1]}-{digest.hexdigest()[:12]}"
    return {"fid_extractor": name}


def frechet(real: Tensor, drawn: Tensor) -> float:
    """Compute the Fréchet distance of features [n, F] and [m, F] from the factors R of the centred features.

    With S = RᵀR / (n-1), tr sqrt(S₁S₂) is the sum of the singular values of R₁R₂ᵀ / sqrt((n₁-1)(n₂-1)),
    whose size is the smaller of items and features, so that it is quick enough to resample.
    """
    real, drawn = real.double(), drawn.double()
    one, other = (torch.linalg.qr(x - x.mean(0), mode="r").R / (len(x) - 1) ** 0.5 for x in (real, drawn))
    shared = torch.linalg.svdvals(one @ other.T).sum()
    spread = one.square().sum() + other.square().sum()
    return max(0.0, ((real.mean(0) - drawn.mean(0)).square().sum() + spread - 2 * shared).item())


def fid_rows(real: Tensor, drawn: Tensor, samples: int = 20, seed: int = 0, **where: Unpack[ResultKey]) -> list[Row]:
    """Compute row `fid` of features [n, F] of real and [m, F] of generated pictures; both sets are resampled."""
    if len(real) < 2 or len(drawn) < 2 or real.shape[1] != drawn.shape[1]:
        shapes = f"{tuple(real.shape)} and {tuple(drawn.shape)}"
        raise ValueError(f"FID takes two or more features of one width from either side, got {shapes}")
    generator = torch.Generator().manual_seed(seed)
    deviation = _deviation(lambda: frechet(_resample(real, generator), _resample(drawn, generator)), samples)
    return [Row.of("fid", _normal(frechet(real, drawn), deviation, floor=0.0), len(drawn), **where)]


def inception_score(logits: Tensor, splits: int = 10, seed: int = 0) -> float:
    """Compute the inception score of logits [n, classes]: exp of the mean KL, mean of `splits` parts by `seed`."""
    if len(logits) < splits:
        raise ValueError(f"{len(logits)} pictures cannot be split into {splits} parts")
    shuffled = logits.double()[torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))]
    parts = [part.log_softmax(1) for part in shuffled.chunk(splits)]
    divergences = [(p.exp() * (p - p.exp().mean(0).log())).nan_to_num().sum(1).mean() for p in parts]
    return torch.stack(divergences).exp().mean().item()


def inception_score_rows(
    logits: Tensor, splits: int = 10, samples: int = 20, seed: int = 0, **where: Unpack[ResultKey]
) -> list[Row]:
    """Compute row `is` of logits [n, classes]; chance is 1, the score of pictures that are all of one sort."""
    generator = torch.Generator().manual_seed(seed)
    deviation = _deviation(lambda: inception_score(_resample(logits, generator), splits, seed), samples)
    value = inception_score(logits, splits, seed)
    return [Row.of("is", _normal(value, deviation, floor=1.0), len(logits), 1.0, **where)]


def _resample(features: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many rows as there are, with replacement."""
    return features[torch.randint(len(features), (len(features),), generator=generator)]


def _deviation(draw: Callable[[], float], samples: int) -> float:
    """Compute the standard deviation of `samples` resampled values."""
    return float(np.std([draw() for _ in range(samples)], ddof=1))


def _normal(value: float, deviation: float, floor: float) -> Interval:
    """Return the normal interval; percentiles would be off, as repeated items push both scores one way."""
    return Interval(value, max(floor, value - 1.96 * deviation), value + 1.96 * deviation)
