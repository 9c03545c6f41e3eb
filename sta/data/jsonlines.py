"""JSON Lines: one value a line, and only a newline ends a line.

`str.splitlines` would cut at U+2028 and U+0085 too, which a JSON string may hold as they are.
"""

from __future__ import annotations

from pathlib import Path


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, without a byte order mark.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")


def read_values(path: Path) -> list[str]:
    """Return the lines that hold something; none where there is no file."""
    return [line for line in read_lines(path) if line.strip()] if path.exists() else []
