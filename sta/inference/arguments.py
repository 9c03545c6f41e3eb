"""What a call of the pipeline accepts: each check returns the value, or says in one sentence what would do."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sta.config.limits import MAX_GUIDANCE
from sta.data.audio import check_waveform, read_audio
from sta.errors import ArgumentError, AudioError

Audio = str | Path | bytes | np.ndarray | Tensor
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def whole(name: str, value: Any, most: int | None = None) -> int:
    """Check a whole number from 1 to `most`."""
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
    """Check a strength of guidance; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 1 <= float(value) <= MAX_GUIDANCE:
        raise ArgumentError(f"guidance_scale {value!r} must be a number from 1 (no guidance) to {MAX_GUIDANCE:g}")
    return float(value)


def output_type(value: Any) -> str:
    """Check the form that pictures are wanted in."""
    if value not in OUTPUT_TYPES:
        raise ArgumentError(f"output_type '{value}' is not one of {', '.join(OUTPUT_TYPES)}")
    return str(value)


def texts(value: Any) -> list[str]:
    """Check a caption, or several."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not several or not all(isinstance(text, str) for text in several):
        raise ArgumentError(f"text {value!r} is neither a caption nor a list of captions; give one, or several")
    return list(several)


def styles(value: Any, known: Sequence[str], count: int) -> list[int]:
    """Check the name of a style, or one for each of `count` pictures; returns their numbers, that of None last.

    Raises:
        ArgumentError: a name is not known, or there are more or fewer names than pictures.
    """
    names = list(value) if isinstance(value, list | tuple) else [value] * count
    for name in names:
        if name is not None and name not in known:
            why = f"is not one of {', '.join(known)}" if known else "cannot be asked for: this release knows no styles"
            raise ArgumentError(f"style {name!r} {why}")
    if len(names) != count:
        raise ArgumentError(f"{len(names)} styles were given for {count} recordings; give one, or as many")
    return [len(known) if name is None else list(known).index(name) for name in names]


def waves(audio: Audio | Sequence[Audio], sampling_rate: int) -> list[np.ndarray]:
    """Read one recording or several: float32 [T] each, at 16 kHz.

    Raises:
        AudioError: there is none, or one cannot be read or drawn.
    """
    several = audio if isinstance(audio, list | tuple) else [audio]
    if not several:
        raise AudioError("no recording was given; pass a path, a file's bytes or a waveform")
    return [_wave(one, sampling_rate) for one in several]  # type: ignore[arg-type]


def _wave(audio: Audio, sampling_rate: int) -> np.ndarray:
    if isinstance(audio, str | Path | bytes):
        return read_audio(audio)
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu()
        audio = audio.float() if audio.dtype == torch.bfloat16 else audio  # which NumPy lacks
    return check_waveform(np.asarray(audio), sampling_rate)


def generators(value: Any) -> torch.Generator | list[torch.Generator] | None:
    """Check None, one generator, or one for each picture."""
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
    """Check what a drawing may start from instead of `start`: codes, of which the mask is the last, or noise."""
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
