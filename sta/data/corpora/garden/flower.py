"""Garden's flowers: petals in units of the flower's radius (origin in its centre), and how they are put together."""

from __future__ import annotations

from functools import cache

import numpy as np

from sta.data.corpora.garden.palette import RGB, ink, lit_paint, lit_scenery, shade
from sta.data.corpora.garden.pen import LINE, Contour, Pen, Place, shapes
from sta.data.corpora.garden.world import Scene

COUNTS = {"five": 5, "eight": 8, "twelve": 12}
STALK = (92, 150, 78)
#: Where the flowers stand and their radius.
BEDS = {
    "single": (((0.5, 0.41),), 0.365),
    "cluster": (((0.5, 0.69), (0.255, 0.29), (0.745, 0.29)), 0.225),
}


def draw_flower(pen: Pen, scene: Scene, generator: np.random.Generator) -> None:
    """Draw the scene's flowers; `generator` varies what no caption names."""
    places, radius = BEDS[scene.attributes["grouping"]]
    jitter = generator.uniform(-1, 1, 4)
    radius *= 1 + 0.04 * jitter[0]
    dx, dy, tilt = 0.02 * jitter[1], 0.02 * jitter[2], 0.09 * jitter[3]
    stalk = lit_scenery(STALK, scene.mood)
    for x, y in places:
        _stalk(pen, (x + dx, y + dy), stalk)
    for x, sign in ((0.5, 1), (0.5, -1)):
        _leaf(pen, x + dx, sign, stalk)
    for x, y in places:
        _bloom(pen, scene, Place(x + dx, y + dy, radius, tilt))


def _stalk(pen: Pen, top: tuple[float, float], fill: RGB) -> None:
    root = (0.5, 1.03)
    t = np.linspace(0, 1, 9)[:, None]
    bend = np.array([top[0], 0.8])
    curve = (1 - t) ** 2 * np.array(top) + 2 * t * (1 - t) * bend + t**2 * np.array(root)
    pen.line(curve, ink(fill), 0.034 + 2 * LINE)
    pen.line(curve, fill, 0.034)


def _leaf(pen: Pen, x: float, sign: int, fill: RGB) -> None:
    tilt = -0.45 if sign > 0 else np.pi + 0.45
    place = Place(x, 0.97, 0.3, tilt)
    pen.shape(shapes()["flower leaf"], place, fill, ink(fill))
    pen.line([place.at(0.1, 0.0), place.at(0.75, -0.01)], shade(fill), 0.6 * LINE)


def _bloom(pen: Pen, scene: Scene, place: Place) -> None:
    values = scene.attributes
    petals, centre = lit_paint(values["petals"], scene.mood), lit_paint(values["centre"], scene.mood)
    whole, each = petal_outlines(COUNTS[values["count"]], values["shape"], LINE / BEDS[values["grouping"]][1])
    pen.shape(whole, place, ink(petals))
    for petal in each:
        pen.shape(petal, place, petals)
    for tip in _creases(COUNTS[values["count"]]):
        pen.line([place.at(*(0.4 * tip)), place.at(*(0.62 * tip))], shade(petals), 0.6 * LINE)
    radius = 0.36 * place.scale
    pen.disc(place.x, place.y, radius + LINE, ink(centre))
    pen.disc(place.x, place.y, radius, centre)
    for x, y in 0.2 * _creases(5):
        pen.disc(*place.at(x, y), 0.045 * place.scale, shade(centre))


@cache
def _creases(count: int) -> np.ndarray:
    """Return unit vectors (count, 2) along the petals' middles, the first pointing up."""
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack([np.sin(angle), -np.cos(angle)], axis=1)


@cache
def petal_outlines(count: int, shape: str, swell: float) -> tuple[Contour, tuple[Contour, ...]]:
    """Return the outline of all petals together, `swell` larger, and that of each one, the first pointing up."""
    half = np.pi / count
    petal = Contour(_round_petal(half) if shape == "round" else _pointed_petal(half))
    rim = (petal.points + swell * petal.normals)[1:]
    # Kept within its wedge, so that neighbouring rims meet and never cross.
    angle, length = np.clip(np.arctan2(rim[:, 0], -rim[:, 1]), -half, half), np.hypot(rim[:, 0], rim[:, 1])
    rim = np.stack([length * np.sin(angle), -length * np.cos(angle)], axis=1)
    turns = [2 * half * i for i in range(count)]
    whole = Contour(np.concatenate([_turned(rim, turn) for turn in turns]))
    return whole, tuple(Contour(_turned(petal.points, turn)) for turn in turns)


def _round_petal(half: float) -> np.ndarray:
    """Return a cone from the centre with a round cap: the largest circle that fits its wedge."""
    reach = 1 / (1 + np.sin(half))
    radius = reach * np.sin(half) - 0.03  # a gap that keeps neighbours apart
    angle = np.linspace(-(np.pi / 2 + 0.9 * half), np.pi / 2 + 0.9 * half, 17)
    cap = np.stack([radius * np.sin(angle), -reach - radius * np.cos(angle)], axis=1)
    return np.concatenate([[[0.0, 0.0]], cap])


def _pointed_petal(half: float) -> np.ndarray:
    """Return a leaf from the centre to a sharp tip, as wide as its wedge half way."""
    t = np.linspace(0, 1, 8)
    middle = 0.55
    wide = 0.93 * middle * np.tan(half)
    y = middle + (1 - middle) * t
    x = wide * (1 - t**1.6)
    side = np.stack([x, -y], axis=1)
    return np.concatenate([[[0.0, 0.0]], side * [-1, 1], side[-2::-1]])


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])
