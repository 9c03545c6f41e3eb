"""Batches are frozen dataclasses of tensors; the docstring of each is the schema of what its stage trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Base of every batch: moves all of its tensors, those in mappings and in batches within it among them.

    Attributes:
        host_fields: names of those that stay in the host's memory, as the host itself reads them.
    """

    host_fields: ClassVar[tuple[str, ...]] = ()

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Return the batch on a device."""
        moved: Self = _map(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return moved

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory, from which a GPU copies while it computes."""
        pinned: Self = _map(self, lambda tensor: tensor.pin_memory())
        return pinned


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map(inner, change) for key, inner in value.items()}
    if isinstance(value, Batch):
        moving = [f.name for f in fields(value) if f.name not in value.host_fields]
        return replace(value, **{name: _map(getattr(value, name), change) for name in moving})
    return value
