"""What the tests of the documentation read in a Markdown page: code blocks, links, anchors, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^ *```(\w*)$")
_MARK = re.compile(r"^ *<!-- (.+) -->$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"^# ([\w.-]+\.yaml)$")


@dataclass(frozen=True)
class Block:
    """One fenced code block.

    Attributes:
        mark: text of the HTML comment right above it; empty if there is none.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that its first line names, such as `# my-birds.yaml`."""
        named = _FILE.match(self.text.partition("\n")[0])
        return named[1] if named else None


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the code blocks of a page in some languages, or all of them."""
    return [block for block in _blocks(page) if not languages or block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    before, start, language, held = "", 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and start:
            mark = _MARK.match(before)
            yield Block(page, start, language, dedent("\n".join(held)) + "\n", mark[1] if mark else "")
            before, start, held = "", 0, []
        elif fence:
            start, language = number, fence[1]
        elif start:
            held.append(line)
        else:
            before = line
    assert not start, f"{page}:{start}: the block is not closed"


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = _FENCE.match(line) is not None
        inside ^= fence
        kept += [] if inside or fence else [line]
    return "\n".join(kept)


def links(page: Path) -> list[str]:
    """Return the targets of links and pictures."""
    return _LINK.findall(re.sub(r"`[^`]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        repeats = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{repeats}" if repeats else slug)
    return set(found)


def commands(script: str) -> list[list[str]]:
    """Return the simple commands of a shell script as words, without the variables that are set before one."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("&;|"):
                found += [command] if command else []
                command = []
            elif command or not re.match(r"^\w+=", word):
                command.append(word)
    return found
