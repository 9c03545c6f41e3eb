"""Drawn things as packages have them: npm's trees, sets of icons in SVG, pictures with a transparent ground.

Every picture comes out as PNG on white, square.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from sta.errors import CorpusError, RecipeError

NAMES, SEQUENCES, GROUPS = "cldr-annotations-full", "cldr-annotations-derived-full", "emojibase-data"
ICONS, RASTERS = "@iconify-json/", "@lobehub/"
#: The versions that were tried, for the command that brings a package.
TRIED = {
    NAMES: "48.2.0", SEQUENCES: "48.2.0", GROUPS: "17.0.0", f"{RASTERS}fluent-emoji-3d": "1.1.0",
    f"{ICONS}noto": "1.2.9", f"{ICONS}noto-v1": "1.2.5", f"{ICONS}openmoji": "1.2.29", f"{ICONS}twemoji": "1.2.5",
    f"{ICONS}emojione": "1.2.3", f"{ICONS}emojione-v1": "1.2.3", f"{ICONS}fluent-emoji-flat": "1.2.6",
}  # fmt: skip
#: Sets whose icons are found by their English names are older than later versions of Emoji, and a name may have meant
#: another thing then (`cricket` was the game).
LAST_BY_NAME = 4
WHITE, DPI = "#ffffff", 96  # without a DPI resvg takes a size in points for none


class Packages:
    """What npm unpacked into a folder."""

    def __init__(self, root: str | Path):
        place = Path(root)
        self.prefix = place.parent if place.name == "node_modules" else place
        self.folder = self.prefix / "node_modules"

    def require(self, packages: Sequence[str]) -> None:
        """Refuse a folder that lacks a package; raises a `CorpusError` with the command that brings it."""
        missing = [package for package in packages if not (self.folder / package / "package.json").is_file()]
        if missing:
            raise CorpusError(f"{self.folder}: has no {missing[0]}; {self._command(missing)}")

    def read(self, package: str, file: str) -> Any:
        """Return what a JSON file of a package holds; raises a `CorpusError` where it is missing or cut off."""
        self.require([package])
        try:
            return json.loads((self.folder / package / file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self.incomplete(package, f"{file} cannot be read ({error})") from error

    def incomplete(self, package: str, why: str) -> CorpusError:
        """Return the error about a package that was not unpacked to its end."""
        return CorpusError(
            f"{self.folder / package}: not complete, {why}; remove that folder and {self._command([package])}"
        )

    def _command(self, packages: Sequence[str]) -> str:
        wanted = " ".join(f"{p}@{TRIED[p]}" if p in TRIED else p for p in packages)
        return f"run npm install --ignore-scripts --prefix {self.prefix} {wanted}"


@dataclass(frozen=True)
class Concept:
    """An emoji without its variants.

    Attributes:
        id: its code points, such as `1F43B-200D-2744`, without variation selectors.
        name: in English, as CLDR has it.
        version: of Emoji, which brought it.
    """

    id: str
    name: str
    version: float


def code_points(hexcode: str) -> str:
    """Return an emoji's code points in capital letters, without variation selectors."""
    return "-".join(part for part in hexcode.upper().split("-") if part not in ("FE0E", "FE0F"))


def slug(text: str) -> str:
    """Return a name as icons are called: small Latin letters and digits, hyphens between words."""
    plain = unicodedata.normalize("NFKD", text.casefold().replace("’", "")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


class Style(ABC):
    """A set of pictures by one team.

    Attributes:
        licence: as the Hub writes it. maker: title, author and address, for the attribution.
    """

    licence: str
    maker: str

    @abstractmethod
    def place(self, concept: Concept) -> str | None:
        """Return where the set has a concept; None where it does not draw it."""

    @abstractmethod
    def draw(self, concept: Concept, side: int) -> bytes:
        """Draw a concept that the set has; raises a `ValueError` or `OSError` where it cannot be drawn."""


class IconSet(Style):
    """A package of @iconify-json: bodies of SVG files by name, and for some sets the names by code points."""

    def __init__(self, packages: Packages, package: str):
        self.set: dict[str, Any] = packages.read(package, "icons.json")
        self.aliases: dict[str, dict[str, Any]] = self.set.get("aliases", {})
        self.by_code = {code_points(code): name for code, name in packages.read(package, "chars.json").items()}
        info = packages.read(package, "info.json")
        self.licence = info["license"]["spdx"].lower()
        self.maker = f"{info['name']} by {info['author']['name']}, {info['author'].get('url', '')}".rstrip(", ")

    def place(self, concept: Concept) -> str | None:
        """Return the name of a concept's icon."""
        name = self.by_code.get(concept.id)
        if not self.by_code and concept.version <= LAST_BY_NAME:
            name = slug(concept.name)
        return name if name in self.set["icons"] or name in self.aliases else None

    def draw(self, concept: Concept, side: int) -> bytes:
        """Draw an icon, mirrored and turned where an alias says so."""
        name, changes = self.place(concept) or "", dict[str, Any]()
        while name in self.aliases:
            changes = {**self.aliases[name], **changes}
            name = changes.pop("parent")
        icon = {"left": 0, "top": 0, "width": 16, "height": 16, **self.set, **self.set["icons"][name], **changes}
        left, top, width, height = (icon[key] for key in ("left", "top", "width", "height"))
        x, y = left + width / 2, top + height / 2
        across, down = (-1 if icon.get(flip) else 1 for flip in ("hFlip", "vFlip"))
        turned = f"translate({x} {y}) rotate({90 * icon.get('rotate', 0)}) scale({across} {down}) translate({-x} {-y})"
        return draw_svg(
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{side}" height="{side}" viewBox="{left} {top} {width} {height}">'
            f'<g transform="{turned}">{icon["body"]}</g></svg>',
            side,
        )


class RasterSet(Style):
    """A package of @lobehub: WebP pictures by code points, which others drew."""

    def __init__(self, packages: Packages, package: str):
        about = packages.read(package, "package.json")
        self.files = {code_points(p.stem): p for p in (packages.folder / package / "assets").glob("*.webp")}
        self.licence, self.maker = about["license"].lower(), f"{about['description']}, {about['homepage']}"

    def place(self, concept: Concept) -> str | None:
        """Return the file of a concept."""
        path = self.files.get(concept.id)
        return None if path is None else str(path)

    def draw(self, concept: Concept, side: int) -> bytes:
        """Read a picture."""
        return on_white(self.files[concept.id], side)


def package_of(style: str) -> str:
    """Return the package that has a style's pictures."""
    return RASTERS + style if RASTERS + style in TRIED else ICONS + style


@lru_cache(maxsize=16)
def open_style(prefix: Path, style: str) -> Style:
    """Return a style out of the packages in a folder."""
    package = package_of(style)
    kind = RasterSet if package.startswith(RASTERS) else IconSet
    return kind(Packages(prefix), package)


def renderer() -> str:
    """Return the version of what draws SVG; raises a `RecipeError` where it is not installed."""
    try:
        return f"resvg-py {version('resvg-py')}"
    except PackageNotFoundError:
        raise RecipeError("SVG pictures need resvg-py; run pip install 'speak-the-art[picturebook]'") from None


def draw_svg(svg: str | Path, width: int) -> bytes:
    """Return an SVG, or that in a file, as PNG on white; raises a `ValueError` where it cannot be drawn."""
    from resvg_py import svg_to_bytes

    text, path = (None, str(svg)) if isinstance(svg, Path) else (svg, None)
    return bytes(
        svg_to_bytes(svg_string=text, svg_path=path, width=width, background=WHITE, dpi=DPI, skip_system_fonts=True)
    )


def on_white(source: Path | io.BytesIO, side: int) -> bytes:
    """Return a picture as PNG, square, on white, reduced to `side` where it is larger; raises an `OSError`."""
    with Image.open(source) as image:
        picture = image.convert("RGBA")
    picture.thumbnail((side, side))
    ground = Image.new("RGBA", picture.size, WHITE)
    flat = Image.alpha_composite(ground, picture).convert("RGB")
    buffer = io.BytesIO()
    ImageOps.pad(flat, (max(flat.size),) * 2, color=WHITE).save(buffer, "PNG")
    return buffer.getvalue()
