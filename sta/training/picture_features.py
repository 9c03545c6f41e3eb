"""What the frozen tokenizer makes of a corpus's pictures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sta.distributed.team import Team
from sta.models.autoencoder import tokenizer_class
from sta.models.decoders.base import Target
from sta.models.loading import load_network
from sta.models.vq import to_unit_range
from sta.training.caching import cache_arrays
from sta.training.workspace import Workspace, fingerprint


def pictures_as(workspace: Workspace, target: Target, device: torch.device) -> np.ndarray:
    """Return what the tokenizer gives: codes int64 [pictures, N], or latents float16 [pictures, d, h, w]."""
    return np.load(cache_pictures(workspace, target, device) / f"{target}.npy", mmap_mode="r")


def cache_pictures(workspace: Workspace, target: Target, device: torch.device, team: Team | None = None) -> Path:
    """Compute what the tokenizer makes of every picture, each rank of the team its share."""
    final, pixels = workspace.final("tokenizer"), workspace.pixels
    made = tokenizer_class(workspace.recipe.tokenizer.codes)
    tokenizer = cache(lambda: load_network(made, final / "tokenizer").to(device))

    @torch.no_grad()
    def make(part: range) -> Tensor:
        pictures = to_unit_range(torch.from_numpy(np.array(pixels[part.start : part.stop])).to(device))
        made = tokenizer().encode_as(pictures, target)
        return made.half() if made.is_floating_point() else made

    folder = workspace.cache / f"{target}-{fingerprint(final)}"
    return cache_arrays(folder, {target: (len(pixels), make)}, f"{target} of the pictures", team)
