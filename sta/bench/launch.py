"""Python programs in processes of their own, alone or under a launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PATIENCE = 60  # seconds that a launch which is stopped may take


def launch(command: Sequence[str], output: Path, variables: Mapping[str, str], limit: float | None = None) -> int:
    """Run Python with some arguments and return its exit code; a launch that is left takes its processes with it.

    Raises:
        subprocess.TimeoutExpired: it took more than `limit` seconds.
    """
    with output.open("ab") as file:
        started = subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **variables}
        )
        try:
            return started.wait(limit)
        finally:
            if started.poll() is None:  # its processes, only it can reach
                started.terminate()
                with suppress(subprocess.TimeoutExpired):
                    started.wait(PATIENCE)
                started.kill()
