"""Results computed once and kept on disk under a key of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sta.errors import StaError


def key_of(parts: Any) -> str:
    """Return sixteen hex digits that change whenever anything in `parts` (JSON-like) does."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_folder(final: Path, fill: Callable[[Path], None]) -> Path:
    """Make the folder `final` by `fill(partial)`; it appears whole or not at all."""
    if final.exists():
        return final
    partial = final.with_name(final.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        with writing(final):
            partial.mkdir(parents=True, exist_ok=True)
            fill(partial)
            os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


@contextmanager
def writing(final: Path) -> Iterator[None]:
    """Turn an error of the disk in the block into one sentence about `final`."""
    try:
        yield
    except OSError as error:
        raise StaError(
            f"{final}: cannot be written ({error.strerror or error}); free space or choose another --out"
        ) from error


def write_json(path: Path, data: object) -> None:
    """Write a JSON file that is complete or absent."""
    write_atomically(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


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
