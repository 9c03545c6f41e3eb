"""Other processes, which run a script with this package at hand."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT, LIMIT = Path(__file__).parent.parent, 120

#: Takes the lock on what it is given, says so, and keeps it.
HOLD = """
import sys, time
from pathlib import Path
from sta.data.lock import Lock

assert Lock(Path(sys.argv[1])).take()
print("held", file=sys.stderr, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def started(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python script in a process of its own, which is gone when the block is left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said_by(process: subprocess.Popen[str]) -> str:
    """The next line that a process says on stderr."""
    assert process.stderr is not None
    return process.stderr.readline()


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
