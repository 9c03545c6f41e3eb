"""Squares of a picture's codes or latents that share a position of a transformer."""

from __future__ import annotations

from torch import Tensor


def num_patches(side: int, patch_size: int) -> int:
    """Count how many squares of `patch_size` x `patch_size` a picture of `side` x `side` has.

    Raises:
        ValueError: they do not fill it.
    """
    if side % patch_size:
        raise ValueError(f"side {side} is not a multiple of patch_size {patch_size}")
    return (side // patch_size) ** 2


def patchify(x: Tensor, side: int, patch_size: int) -> Tensor:
    """Rearrange [B, side * side, d] in rows of the picture to [B, positions, patch_size * patch_size * d]."""
    x = x.view(len(x), side // patch_size, patch_size, side // patch_size, patch_size, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), (side // patch_size) ** 2, -1)


def unpatchify(x: Tensor, side: int, patch_size: int) -> Tensor:
    """Undo `patchify`."""
    x = x.view(len(x), side // patch_size, side // patch_size, patch_size, patch_size, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), side * side, -1)
