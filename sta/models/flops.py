"""Floating-point operations of a computation."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def flops_of(compute: Callable[[], object]) -> int:
    """Count the operations of matrix products, convolutions and attentions; an addition counts as one."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())
