"""Precisions in which weights are kept: half, or int8 with one scale per output row (symmetric, the largest at 127)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALES = "::scales"  # after the name of a weight in int8, that of its scales; no parameter of torch has a colon
FEWEST = 32_768  # elements in int8: norms, positions and a decoder's first and last layer lose more than they save


def in_half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with their floats in half precision, but for tensors that are too large for it."""
    halves = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
    return {name: half if half.isfinite().all() else weights[name] for name, half in halves.items()}


def in_int8(weights: Mapping[str, Tensor], fewest: int = FEWEST) -> dict[str, Tensor]:
    """Return weights with matrices of at least `fewest` numbers as int8 [R, ...] beside scales, float32 [R].

    The others are in half precision.
    """
    found = in_half(weights)
    for name, weight in weights.items():
        if weight.is_floating_point() and weight.ndim > 1 and weight.numel() >= fewest:
            scales = weight.float().flatten(1).abs().amax(1) / 127
            by_row = scales.clamp_min(torch.finfo(torch.float32).tiny).view(-1, *[1] * (weight.ndim - 1))
            found[name], found[name + SCALES] = (weight.float() / by_row).round().to(torch.int8), scales
    return found


def from_int8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with those that `in_int8` made as floats again, in half precision.

    Half precision keeps them to a tenth of what int8 lost, and saved in it they are the same numbers again.

    Raises:
        ValueError: scales and their weight do not belong together; names the weight.
    """
    found = {name: weight for name, weight in weights.items() if not name.endswith(SCALES)}
    floats = dict[str, Tensor]()
    for name in weights.keys() - found.keys():
        weight, scales = found.get(of := name.removesuffix(SCALES)), weights[name]
        if weight is None or weight.dtype != torch.int8 or scales.shape != weight.shape[:1]:
            raise ValueError(f"{name} has no int8 weight '{of}' of as many rows beside it")
        floats[of] = weight.float() * scales.view(-1, *[1] * (weight.ndim - 1))
    return {**found, **in_half(floats)}
