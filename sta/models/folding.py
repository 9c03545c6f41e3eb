"""Squares of a picture's codes or latents that share a position of a transformer."""

from __future__ import annotations

from torch import Tensor


def positions_of(side: int, group: int) -> int:
    """How many squares of `group` x `group` a picture of `side` x `side` has.

    Raises:
        ValueError: they do not fill it.
    """
    if side % group:
        raise ValueError(f"side {side} is not a multiple of group {group}")
    return (side // group) ** 2


def fold(x: Tensor, side: int, group: int) -> Tensor:
    """[B, side * side, d] in rows of the picture to [B, positions, group * group * d]."""
    x = x.view(len(x), side // group, group, side // group, group, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), (side // group) ** 2, -1)


def unfold(x: Tensor, side: int, group: int) -> Tensor:
    """The inverse of `fold`."""
    x = x.view(len(x), side // group, side // group, group, group, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), side * side, -1)
