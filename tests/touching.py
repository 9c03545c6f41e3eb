"""Work for a process of its own, which imports nothing heavy."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def touch(folder: Path, number: int) -> int:
    """Leave a file that names its number and how many threads its process may have."""
    (folder / f"{number}-{os.environ['OMP_NUM_THREADS']}").touch()
    return 1


def kill() -> int:
    """Be ended as a system does that has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0
