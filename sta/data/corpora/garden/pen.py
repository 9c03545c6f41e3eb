"""A pen that draws outlined shapes on a picture in relative units (0 to 1, y downwards)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sta.data.corpora.garden.palette import RGB

LINE = 0.017  # an outline's width, as a share of the picture's side
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Place:
    """Where a shape's own units land on the picture: its origin, the length of one unit, and a tilt in radians."""

    x: float
    y: float
    scale: float
    tilt: float = 0.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where the shape's point (x, y) lands."""
        c, s = np.cos(self.tilt) * self.scale, np.sin(self.tilt) * self.scale
        return float(self.x + c * x - s * y), float(self.y + s * x + c * y)


class Contour:
    """A closed outline: `points` (P, 2), and `normals` (P, 2) along which it swells by one unit."""

    def __init__(self, points: np.ndarray | Points) -> None:
        self.points = np.asarray(points, dtype=np.float64)
        edge = np.roll(self.points, -1, axis=0) - self.points
        x, y = self.points.T
        area = np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
        out = np.stack([edge[:, 1], -edge[:, 0]], axis=1) * np.sign(area)
        out /= np.linalg.norm(out, axis=1, keepdims=True) + 1e-12
        before = np.roll(out, 1, axis=0)
        # A mitre joins two edges; sharp tips are cut at 2.5 widths.
        mitre = (out + before) / np.maximum(1 + np.sum(out * before, axis=1, keepdims=True), 1e-3)
        self.normals = mitre / np.maximum(np.linalg.norm(mitre, axis=1, keepdims=True) / 2.5, 1)


def smooth(points: Points, steps: int = 6) -> Contour:
    """Return the closed Catmull-Rom curve through `points`, with `steps` points for each one given."""
    p = np.asarray(points, dtype=np.float64)
    p0, p2, p3 = np.roll(p, 1, axis=0), np.roll(p, -1, axis=0), np.roll(p, -2, axis=0)
    t = np.arange(steps).reshape(1, -1, 1) / steps
    p0, p1, p2, p3 = (q[:, None] for q in (p0, p, p2, p3))
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return Contour(curve.reshape(-1, 2))


@cache
def shapes() -> dict[str, Any]:
    """Read `shapes.json`, in which `{"smooth": points}` and `{"corners": points}` are contours."""

    def build(found: dict[str, Any]) -> Any:
        if "smooth" in found:
            return smooth(found["smooth"])
        return Contour(found["corners"]) if "corners" in found else found

    text = (Path(__file__).parent / "shapes.json").read_text(encoding="utf-8")
    return json.loads(text, object_hook=build)  # type: ignore[no-any-return]


class Pen:
    """Draws on `image`, whose side is one unit."""

    def __init__(self, image: Image.Image) -> None:
        self.side = image.width
        self.draw = ImageDraw.Draw(image)

    def shape(self, contour: Contour, place: Place, fill: RGB, outline: RGB | None = None) -> None:
        """Fill `contour` at `place`, with an outline around it where one is given."""
        c, s = np.cos(place.tilt) * self.side, np.sin(place.tilt) * self.side
        turn = np.array([[c, s], [-s, c]])
        origin = np.array([place.x, place.y]) * self.side
        inner = contour.points * place.scale
        if outline is not None:
            outer = (inner + contour.normals * LINE) @ turn + origin
            self.draw.polygon(outer.ravel().tolist(), fill=outline)
        self.draw.polygon((inner @ turn + origin).ravel().tolist(), fill=fill)

    def polygon(self, points: Points | np.ndarray, fill: RGB) -> None:
        """Fill the polygon through `points`."""
        self.draw.polygon((np.asarray(points) * self.side).ravel().tolist(), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: RGB) -> None:
        """Fill a disc."""
        self.oval(x, y, radius, radius, fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: RGB) -> None:
        """Fill an upright ellipse."""
        s = self.side
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=fill)

    def line(self, points: Points | np.ndarray, fill: RGB, width: float = LINE) -> None:
        """Draw an open line of the given width."""
        flat = (np.asarray(points) * self.side).ravel().tolist()
        self.draw.line(flat, fill=fill, width=max(1, round(width * self.side)))
