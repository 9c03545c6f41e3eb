"""Devices that are sent operations ahead of time, as GPUs are, and those that do each at once, as a CPU does.

Ahead of a device the host must not wait for a number of it, and few operations count more than small ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_everywhere: ContextVar[bool] = ContextVar("everywhere", default=False)


def runs_ahead(device: torch.device) -> bool:
    """Return whether the host runs ahead of a device; if so, the code takes the way that has fewer operations."""
    return _everywhere.get() or device.type != "cpu"


@contextmanager
def ahead_everywhere() -> Iterator[None]:
    """Within, a CPU is treated as a GPU is: to count what a GPU would be sent, and to test it."""
    token = _everywhere.set(True)
    try:
        yield
    finally:
        _everywhere.reset(token)
