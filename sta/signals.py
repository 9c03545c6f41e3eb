"""SIGINT, SIGTERM and SIGUSR1: either a request that the training loop looks at, or an exception that cleans up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sta.errors import Interrupted

#: SIGUSR1 is what SLURM is often set to send before it stops a job; Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopRequest:
    """Whether a signal came; the training loop looks between steps and saves before it leaves."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice at the keyboard: leave now
        self.signal = number


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Turn the signals into a request while the block runs."""
    request = StopRequest()
    with _handlers(request):
        yield request


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the signals into `Interrupted` while the block runs: clean-up happens, nothing is half-written."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(f"stopped on {signal.Signals(number).name}; run the same command again to continue")

    with _handlers(leave):
        yield


@contextmanager
def _handlers(handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals can only be handled in the main thread
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
