"""Results computed once and kept on disk under a key of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sta.errors import StaError


def key_of(parts: Any) -> str:
    """Sixteen hex digits that change whenever anything in `parts` (JSON-like) does."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_folder(final: Path, fill: Callable[[Path], None], *, resume: bool = False) -> Path:
    """Make the folder `final` by `fill(partial)`; it appears whole or not at all.

    With `resume`, what an interrupted `fill` left in the partial folder is offered to the next one;
    otherwise it starts from an empty folder.
    """
    if final.exists():
        return final
    partial = final.with_name(final.name + ".partial")
    if partial.exists() and not resume:
        shutil.rmtree(partial)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        fill(partial)
        os.replace(partial, final)
    except BaseException as error:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise StaError(
            f"{final}: cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from error
    return final


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is complete or absent."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StaError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
