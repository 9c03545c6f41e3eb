"""Locks on what is made on disk, so that two launches do not make the same; they are gone with the process."""

from __future__ import annotations

import errno
import os
import sys
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TAKEN = (errno.EACCES, errno.EAGAIN)  # what systems say of a lock that another process has
PAUSE = 0.5  # seconds


class Lock(AbstractContextManager["Lock"]):
    """The right of one process to make a file or folder, kept in `NAME.lock` beside it while it is held.

    A process that is killed loses it at once, though the empty file stays until the next one has had it; what the
    process has forked does not keep it. Where the system or the disk has no locks, it is always free.
    """

    def __init__(self, made: Path):
        self.made, self.path = made, made.with_name(made.name + ".lock")
        self.descriptor: int | None = None
        self.reported = False

    def take(self) -> bool:
        """Take it, unless another process has it; whether that one has not."""
        while fcntl is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # whoever makes something here will say so
                return True
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                return error.errno not in TAKEN
            if _is(self.path, descriptor):
                self.descriptor = descriptor
                break
            os.close(descriptor)  # the one before has removed the file since it was opened
        return True

    def release(self) -> None:
        """Let others have it."""
        if self.descriptor is not None:
            with suppress(OSError):
                self.path.unlink()
            os.close(self.descriptor)
            self.descriptor = None

    def __exit__(self, *error: object) -> None:
        self.release()

    def is_made(self) -> bool | None:
        """Return whether it is there: None, after a while, if another process makes it; False where this one is to."""
        if self.made.exists():
            return True
        if not self.take():
            if not self.reported:
                print(f"sta: {self.made}: another process is making it; waiting until it is there", file=sys.stderr)
            self.reported = True
            time.sleep(PAUSE)
            return None
        if self.made.exists():  # made since it was looked for
            self.release()
            return True
        return False


def _is(path: Path, descriptor: int) -> bool:
    """Return whether a path is the file that was opened."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
