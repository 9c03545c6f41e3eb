"""What a call of the pipeline accepts: each check gives the value back, or says in one sentence what would do."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from sta.config.limits import MAX_GUIDANCE
from sta.errors import ArgumentError


def whole(name: str, value: Any, most: int | None = None) -> int:
    """A whole number from 1 to `most`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or int(value) < 1
        or (most is not None and int(value) > most)
    ):
        raise ArgumentError(
            f"{name} {value!r} must be a whole number of at least 1" + (f", at most {most}" * bool(most))
        )
    return int(value)


def guidance(value: Any) -> float:
    """A strength of guidance; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 1 <= float(value) <= MAX_GUIDANCE:
        raise ArgumentError(f"guidance_scale {value!r} must be a number from 1 (no guidance) to {MAX_GUIDANCE:g}")
    return float(value)


def generators(value: Any) -> torch.Generator | list[torch.Generator] | None:
    """None, one generator, or one for each picture."""
    if value is None or isinstance(value, torch.Generator):
        return value
    if not isinstance(value, list | tuple):
        raise ArgumentError(f"generator is of type {type(value).__name__}; give torch.Generator().manual_seed(0)")
    if other := [one for one in value if not isinstance(one, torch.Generator)]:
        raise ArgumentError(
            f"generator holds {type(other[0]).__name__}; give torch.Generator().manual_seed(0), one for each picture"
        )
    return list(value)


def latents(value: Any, start: Tensor) -> Tensor:
    """What the sampler may start from instead of `start`: codes, of which the mask is the last, or noise."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"latents are of type {type(value).__name__}; give a torch tensor {tuple(start.shape)}")
    if value.shape != start.shape:
        raise ArgumentError(f"latents have shape {tuple(value.shape)}, expected {tuple(start.shape)}")
    if value.is_floating_point() != start.is_floating_point():
        raise ArgumentError(f"latents are {value.dtype}; this decoder starts from {start.dtype}")
    if start.is_floating_point() and not value.isfinite().all():
        raise ArgumentError("latents hold NaN or infinite numbers; give finite noise, such as of torch.randn")
    if not start.is_floating_point() and not (value.min() >= 0 and value.max() <= start.max()):
        raise ArgumentError(
            f"latents hold codes from {value.min()} to {value.max()}; give 0 to {start.max()}, the last for masked ones"
        )
    return value
