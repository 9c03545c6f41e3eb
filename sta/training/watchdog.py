"""Whether training still moves: a rank that is stuck, or waits for one that is, ends by itself."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

from sta.errors import STALLED

LOOKS = 10  # in a time of patience


class Watchdog:
    """Ends this process with exit code `STALLED` where `seen` was not called for `patience` seconds within the block.

    A launcher takes the other ranks down with it, and starts all of them again where it is set to. A rank that waits
    for another inside a collective operation cannot be woken in any other way.
    """

    def __init__(self, patience: float, what: str):
        self.patience, self.what, self.left = patience, what, threading.Event()
        self.last = time.monotonic()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.seen()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.left.set()
        self.thread.join()

    def seen(self) -> None:
        """Note that training has moved."""
        self.last = time.monotonic()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self.left.wait(self.patience / LOOKS):
            slept, looked = time.monotonic() - looked, time.monotonic()
            if slept > self.patience / 2:
                self.seen()  # this whole process was suspended
            if time.monotonic() - self.last > self.patience:
                faulthandler.dump_traceback(sys.stderr)
                print(
                    f"sta: stage {self.what}: no step in {self.patience:g} s (stages.*.stall_timeout): this process, or"
                    " one that it waits for, is stuck; run the same command again to go on from the last checkpoint",
                    file=sys.stderr, flush=True,
                )  # fmt: skip
                os._exit(STALLED)
