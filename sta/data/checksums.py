"""SHA256SUMS of a folder, as `sha256sum -c` reads it: whether every file is still what it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

from sta.data.cache import write_atomically

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over every file of a folder that is being made."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = [f"{file_hash(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def renew(folder: Path, name: str, data: bytes) -> None:
    """Write one file of a folder anew; at every moment, a stop included, all files are what SHA256SUMS says.

    For that its line goes before it changes, and comes back after. The other lines stay: nothing that was damaged
    becomes right by this.
    """
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines(keepends=True)
    others = [line for line in lines if _named(line) != name]
    write_atomically(folder / SUMS, "".join(others).encode())
    write_atomically(folder / name, data)
    whole = sorted(
        [*others, f"{hashlib.sha256(data).hexdigest()}  {name}\n"], key=lambda line: PurePosixPath(_named(line))
    )
    write_atomically(folder / SUMS, "".join(whole).encode())


def first_fault(folder: Path) -> tuple[Path, str] | None:
    """Return the first file that is not what SHA256SUMS says, and what is wrong with it; None if all are."""
    sums, listed = folder / SUMS, {SUMS}
    if not sums.is_file():
        return sums, "missing"
    path = sums
    try:
        for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            path = folder / name
            if not name:
                return sums, f"'{line[:80]}' is no line of checksums"
            if not path.is_file():
                return path, "missing"
            if file_hash(path) != digest:
                return path, "truncated or changed"
            listed.add(name)
    except OSError as error:
        return path, f"cannot be read ({error.strerror or error})"
    if len(listed) == 1:
        return sums, "truncated or changed"  # it lists nothing
    return None


def _named(line: str) -> str:
    return line.rstrip("\n").partition("  ")[2]


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
