"""Garden's backgrounds: a sky in the mood's light, its weather, and the land below."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from sta.data.corpora.garden.palette import LIGHTS, RGB, lit_scenery, mix
from sta.data.corpora.garden.pen import Pen

VARIANTS = 2  # each background is kept in this many slightly shifted copies
WATER = (104, 176, 214)


@lru_cache(maxsize=96)
def background(name: str, mood: str, side: int, variant: int) -> Image.Image:
    """Draw the picture behind the subject, RGB, `side` by `side`. It is cached: copy it before drawing on it."""
    image = _sky(mood, side)
    pen = Pen(image)
    shift = 0.03 * (variant - (VARIANTS - 1) / 2)
    _WEATHER[mood](pen, shift)
    _LAND[name](pen, mood, shift)
    if mood == "sad":
        _rain(pen, shift)
    if mood == "fearful":
        image = _by_night(image)
        _moon(Pen(image))
    return image


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


def _cloud(pen: Pen, x: float, y: float, width: float, fill: RGB) -> None:
    for dx, dy, r in ((-0.32, 0.04, 0.18), (0.0, -0.06, 0.27), (0.3, 0.03, 0.2)):
        pen.disc(x + dx * width, y + dy * width, r * width, fill)
    pen.oval(x, y + 0.12 * width, 0.5 * width, 0.12 * width, fill)


def _cloud_bank(pen: Pen, shift: float, depth: float, fill: RGB) -> None:
    for i in range(6):
        pen.disc(0.2 * i + shift, depth * (0.1 + 0.35 * (i % 2)), 0.13, fill)


def _fair(pen: Pen, shift: float) -> None:
    _cloud(pen, 0.16 + shift, 0.13, 0.26, (252, 254, 255))
    _cloud(pen, 0.84 + shift, 0.19, 0.22, (252, 254, 255))


def _sunny(pen: Pen, shift: float) -> None:
    x = y = 0.07
    for angle in np.linspace(-0.2, 1.8, 9) + shift:
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        base = np.array([x, y]) + 0.22 * along
        pen.polygon(np.stack([base + 0.035 * across, base - 0.035 * across, base + 0.15 * along]), (255, 196, 40))
    pen.disc(x, y, 0.215, (236, 150, 20))
    pen.disc(x, y, 0.2, (255, 206, 30))


def _rainy(pen: Pen, shift: float) -> None:
    _cloud_bank(pen, shift + 0.08, 0.16, (112, 122, 140))
    _cloud_bank(pen, shift, 0.04, (86, 96, 114))


def _rain(pen: Pen, shift: float) -> None:
    """Slanting streaks, in front of the land."""
    for row in range(5):
        for column in range(6):
            x, y = 0.18 * column + 0.09 * (row % 2) + shift, 0.2 * row + 0.12 + 0.03 * (column % 3)
            pen.line([(x + 0.03, y), (x, y + 0.09)], (206, 222, 240), 0.011)


def _stormy(pen: Pen, shift: float) -> None:
    _cloud_bank(pen, shift + 0.08, 0.16, (92, 26, 34))
    _cloud_bank(pen, shift, 0.04, (58, 18, 28))
    bolt = [(0.86, 0.04), (0.97, 0.04), (0.91, 0.19), (0.985, 0.19), (0.83, 0.46), (0.88, 0.26), (0.80, 0.26)]
    pen.polygon(bolt, (255, 240, 120))
    pen.line([*bolt, bolt[0]], (120, 40, 20), 0.01)


def _starry(pen: Pen, shift: float) -> None:
    for x, y in ((0.08, 0.10), (0.27, 0.06), (0.05, 0.34), (0.46, 0.05), (0.64, 0.10), (0.94, 0.40), (0.17, 0.22)):
        pen.disc(x + shift, y, 0.013, (240, 236, 190))


def _moon(pen: Pen) -> None:
    pen.disc(0.86, 0.15, 0.135, (120, 120, 176))
    pen.disc(0.86, 0.15, 0.115, (250, 246, 214))
    pen.disc(0.83, 0.12, 0.03, (226, 220, 186))
    pen.disc(0.89, 0.19, 0.022, (226, 220, 186))


def _hill(pen: Pen, fill: RGB, level: float, height: float, waves: float, phase: float) -> None:
    x = np.linspace(0, 1, 33)
    y = level + height * np.sin(2 * np.pi * (waves * x + phase))
    pen.polygon(np.stack([np.r_[x, 1, 0], np.r_[y, 1, 1]], axis=1), fill)


def _meadow(pen: Pen, mood: str, shift: float) -> None:
    _hill(pen, lit_scenery((190, 222, 164), mood), 0.54, 0.06, 1.1, 0.55 + shift)
    _hill(pen, lit_scenery((162, 208, 132), mood), 0.66, 0.05, 0.9, 0.10 + shift)
    _hill(pen, lit_scenery((134, 190, 108), mood), 0.86, 0.03, 1.2, 0.65 + shift)
    for i, x in enumerate((0.06, 0.16, 0.27, 0.75, 0.86, 0.95)):
        petal = ((255, 250, 236), (255, 214, 224))[i % 2]
        pen.disc(x + shift, 0.92 + 0.03 * (i % 2), 0.016, lit_scenery(petal, mood))


def _fir(pen: Pen, x: float, foot: float, height: float, fill: RGB) -> None:
    for low, high, wide in ((0.0, 0.48, 0.30), (0.28, 0.74, 0.24), (0.55, 1.0, 0.17)):
        left, right = (x - wide * height, foot - low * height), (x + wide * height, foot - low * height)
        pen.polygon([left, (x, foot - high * height), right], fill)


def _forest(pen: Pen, mood: str, shift: float) -> None:
    tips = [(0.0625 * i + shift, (0.60, 0.44, 0.60, 0.50)[i % 4]) for i in range(-1, 18)]
    pen.polygon([(-0.1, 1), *tips, (1.1, 1)], lit_scenery((112, 154, 136), mood))
    pen.polygon([(0, 0.66), (1, 0.66), (1, 1), (0, 1)], lit_scenery((62, 110, 94), mood))
    for i, height in enumerate((0.52, 0.42, 0.36, 0.36, 0.42, 0.52)):
        _fir(pen, 0.02 + 0.192 * i + shift, 0.86, height, lit_scenery((62, 110, 94), mood))
    _hill(pen, lit_scenery((146, 170, 122), mood), 0.83, 0.012, 1.0, 0.2)


def _peak(pen: Pen, x: float, top: float, wide: float, rock: RGB, snow: RGB) -> None:
    foot = 0.86
    pen.polygon([(x - wide, foot), (x, top), (x + wide, foot)], rock)
    drop = 0.36 * (foot - top)
    edge = [(0.36, 1.0), (0.17, 0.78), (0.06, 1.1), (-0.10, 0.8), (-0.2, 1.1), (-0.36, 1.0)]
    pen.polygon([(x, top), *((x + e * wide, top + d * drop) for e, d in edge)], snow)


def _mountains(pen: Pen, mood: str, shift: float) -> None:
    snow = lit_scenery((252, 252, 255), mood)
    _peak(pen, 0.52 + shift, 0.36, 0.36, lit_scenery((172, 180, 206), mood), snow)
    _peak(pen, 0.12 + shift, 0.28, 0.36, lit_scenery((146, 154, 184), mood), snow)
    _peak(pen, 0.92 + shift, 0.30, 0.36, lit_scenery((146, 154, 184), mood), snow)
    _hill(pen, lit_scenery((186, 196, 190), mood), 0.84, 0.02, 1.0, 0.4)


def _cactus(pen: Pen, x: float, foot: float, height: float, fill: RGB) -> None:
    wide = 0.2 * height
    pen.line([(x, foot), (x, foot - height)], fill, wide)
    pen.disc(x, foot - height, wide / 2, fill)
    for side, low in ((-1, 0.4), (1, 0.55)):
        elbow, tip = ((x + side * 0.3 * height, foot - y * height) for y in (low, low + 0.28))
        pen.line([(x, elbow[1]), elbow], fill, 0.7 * wide)
        pen.line([elbow, tip], fill, 0.7 * wide)
        pen.disc(*elbow, 0.35 * wide, fill)
        pen.disc(*tip, 0.35 * wide, fill)


def _desert(pen: Pen, mood: str, shift: float) -> None:
    mesa = [(0.30, 0.70), (0.35, 0.50), (0.62, 0.50), (0.68, 0.70)]
    pen.polygon([(x + shift, y) for x, y in mesa], lit_scenery((222, 172, 138), mood))
    _hill(pen, lit_scenery((244, 222, 168), mood), 0.64, 0.04, 0.8, 0.45 + shift)
    cactus = lit_scenery((122, 164, 110), mood)
    _cactus(pen, 0.10 + shift, 0.80, 0.38, cactus)
    _cactus(pen, 0.91 + shift, 0.78, 0.32, cactus)
    _hill(pen, lit_scenery((232, 200, 138), mood), 0.78, 0.04, 0.9, 0.95 + shift)
    _hill(pen, lit_scenery((220, 182, 116), mood), 0.91, 0.025, 1.1, 0.3 + shift)


_WEATHER = {"neutral": _fair, "happy": _sunny, "sad": _rainy, "angry": _stormy, "fearful": _starry}
_LAND = {"meadow": _meadow, "forest": _forest, "mountains": _mountains, "desert": _desert}
