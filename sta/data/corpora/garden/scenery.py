"""Garden's backgrounds: a sky in the mood's light, its weather, and the land below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from sta.data.corpora.garden.palette import LIGHTS, RGB, lit_scenery, mix
from sta.data.corpora.garden.pen import Pen, Points, shapes

VARIANTS = 2  # each background is kept in this many slightly shifted copies
WATER = (104, 176, 214)
FOOT = 0.86  # of the mountains


@lru_cache(maxsize=96)
def background(name: str, mood: str, side: int, variant: int) -> Image.Image:
    """Draw the picture behind the subject, RGB, `side` by `side`. It is cached: copy it before drawing on it."""
    image = _sky(mood, side)
    shift = 0.03 * (variant - (VARIANTS - 1) / 2)
    _draw(Pen(image), shapes()["weather"][mood], shift)
    _draw(Pen(image), shapes()["land"][name], shift, mood)
    if mood == "fearful":
        image, shift = _by_night(image), 0.0  # the moon stays where it is
    _draw(Pen(image), shapes()["front"].get(mood, ()), shift)
    return image


def _draw(pen: Pen, items: Iterable[Sequence[Any]], shift: float, mood: str | None = None) -> None:
    """Draw items of `shapes.json`: what draws it, its colour, which a mood may tint, and numbers."""
    for name, colour, *numbers in items:
        fill = lit_scenery(tuple(colour), mood) if mood else tuple(colour)
        _SHAPES[name](pen, fill, shift, *numbers)


def water_line(x: np.ndarray, level: float, phase: float) -> np.ndarray:
    """Return the height of gentle waves around `level`, for each x."""
    return level + 0.008 * np.sin(2 * np.pi * (3 * x + phase))


def pour_water(pen: Pen, mood: str, level: float, phase: float, front: bool) -> None:
    """Fill the picture with water from `level` down; `front` is the nearer, deeper-coloured part."""
    fill = lit_scenery(WATER, mood)
    if front:
        fill = mix(fill, (40, 90, 170), 0.18)
    x = np.linspace(0, 1, 25)
    y = water_line(x, level, phase)
    pen.polygon(np.stack([np.r_[x, 1, 0], np.r_[y, 1, 1]], axis=1), fill)
    crest = mix(fill, (255, 255, 255), 0.5)
    pen.line(np.stack([x, y], axis=1), crest, 0.014)
    if front:
        for left, depth in ((0.10, 0.07), (0.64, 0.10), (0.36, 0.15)):
            pen.line([(left, level + depth), (left + 0.2, level + depth)], crest, 0.014)


def _sky(mood: str, side: int) -> Image.Image:
    top, low = LIGHTS[mood].sky
    ramp = Image.linear_gradient("L").resize((side, side)).point(lambda v: min(255, v * 3 // 2))
    return Image.composite(Image.new("RGB", (side, side), low), Image.new("RGB", (side, side), top), ramp)


def _by_night(image: Image.Image) -> Image.Image:
    """Moonlight in the middle of the picture, darkness at its edges."""
    size = image.size
    far = Image.radial_gradient("L").resize(size)  # 0 in the middle, 181 at the sides' middle, 255 in the corners
    glow = Image.composite(image, Image.new("RGB", size, (150, 150, 208)), far.point(lambda v: min(255, 130 + v)))
    return Image.composite(Image.new("RGB", size, (10, 8, 30)), glow, far.point(lambda v: max(0, v - 110)))


def _dot(pen: Pen, fill: RGB, shift: float, x: float, y: float, radius: float) -> None:
    pen.disc(x + shift, y, radius, fill)


def _polygon(pen: Pen, fill: RGB, shift: float, points: Points) -> None:
    pen.polygon([(x + shift, y) for x, y in points], fill)


def _cloud(pen: Pen, fill: RGB, shift: float, x: float, y: float, width: float) -> None:
    x += shift
    for dx, dy, r in ((-0.32, 0.04, 0.18), (0.0, -0.06, 0.27), (0.3, 0.03, 0.2)):
        pen.disc(x + dx * width, y + dy * width, r * width, fill)
    pen.oval(x, y + 0.12 * width, 0.5 * width, 0.12 * width, fill)


def _cloud_bank(pen: Pen, fill: RGB, shift: float, x: float, depth: float) -> None:
    for i in range(6):
        pen.disc(0.2 * i + (shift + x), depth * (0.1 + 0.35 * (i % 2)), 0.13, fill)


def _sun(pen: Pen, fill: RGB, shift: float) -> None:
    x = y = 0.07
    for angle in np.linspace(-0.2, 1.8, 9) + shift:
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        base = np.array([x, y]) + 0.22 * along
        pen.polygon(np.stack([base + 0.035 * across, base - 0.035 * across, base + 0.15 * along]), (255, 196, 40))
    pen.disc(x, y, 0.215, (236, 150, 20))
    pen.disc(x, y, 0.2, fill)


def _rain(pen: Pen, fill: RGB, shift: float) -> None:
    """Draw slanting streaks."""
    for row in range(5):
        for column in range(6):
            x, y = 0.18 * column + 0.09 * (row % 2) + shift, 0.2 * row + 0.12 + 0.03 * (column % 3)
            pen.line([(x + 0.03, y), (x, y + 0.09)], fill, 0.011)


def _bolt(pen: Pen, fill: RGB, shift: float) -> None:
    bolt = [(0.86, 0.04), (0.97, 0.04), (0.91, 0.19), (0.985, 0.19), (0.83, 0.46), (0.88, 0.26), (0.80, 0.26)]
    pen.polygon(bolt, fill)
    pen.line([*bolt, bolt[0]], (120, 40, 20), 0.01)


def _hill(
    pen: Pen, fill: RGB, shift: float, level: float, height: float, waves: float, phase: float, moves: int = 1
) -> None:
    x = np.linspace(0, 1, 33)
    y = level + height * np.sin(2 * np.pi * (waves * x + (phase + shift * moves)))
    pen.polygon(np.stack([np.r_[x, 1, 0], np.r_[y, 1, 1]], axis=1), fill)


def _fir(pen: Pen, fill: RGB, shift: float, x: float, foot: float, height: float) -> None:
    x += shift
    for low, high, wide in ((0.0, 0.48, 0.30), (0.28, 0.74, 0.24), (0.55, 1.0, 0.17)):
        left, right = (x - wide * height, foot - low * height), (x + wide * height, foot - low * height)
        pen.polygon([left, (x, foot - high * height), right], fill)


def _peak(pen: Pen, fill: RGB, shift: float, x: float, top: float, wide: float) -> None:
    x += shift
    pen.polygon([(x - wide, FOOT), (x, top), (x + wide, FOOT)], fill)


def _snow(pen: Pen, fill: RGB, shift: float, x: float, top: float, wide: float) -> None:
    """Cover a peak."""
    x, drop = x + shift, 0.36 * (FOOT - top)
    edge = [(0.36, 1.0), (0.17, 0.78), (0.06, 1.1), (-0.10, 0.8), (-0.2, 1.1), (-0.36, 1.0)]
    pen.polygon([(x, top), *((x + e * wide, top + d * drop) for e, d in edge)], fill)


def _cactus(pen: Pen, fill: RGB, shift: float, x: float, foot: float, height: float) -> None:
    x, wide = x + shift, 0.2 * height
    pen.line([(x, foot), (x, foot - height)], fill, wide)
    pen.disc(x, foot - height, wide / 2, fill)
    for side, low in ((-1, 0.4), (1, 0.55)):
        elbow, tip = ((x + side * 0.3 * height, foot - y * height) for y in (low, low + 0.28))
        pen.line([(x, elbow[1]), elbow], fill, 0.7 * wide)
        pen.line([elbow, tip], fill, 0.7 * wide)
        pen.disc(*elbow, 0.35 * wide, fill)
        pen.disc(*tip, 0.35 * wide, fill)


_SHAPES: dict[str, Callable[..., None]] = {
    "dot": _dot, "polygon": _polygon, "cloud": _cloud, "bank": _cloud_bank, "sun": _sun, "rain": _rain,
    "bolt": _bolt, "hill": _hill, "fir": _fir, "peak": _peak, "snow": _snow, "cactus": _cactus,
}  # fmt: skip
