"""Garden's birds: outlines in units of a bird's length (origin in the body, facing right), and their assembly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sta.data.corpora.garden.palette import LIGHTS, RGB, ink, lit_paint, lit_scenery, mix, shade
from sta.data.corpora.garden.pen import LINE, Contour, Pen, Place, Points, smooth
from sta.data.corpora.garden.scenery import pour_water
from sta.data.corpora.garden.world import Scene

LENGTH = {"small": 0.48, "large": 0.75}
BEAK = (250, 176, 44)
BARK = (150, 112, 82)


@dataclass(frozen=True)
class Plumage:
    """The outlines of a bird in one pose; the head (with beak and eye) is the same, moved to `head`."""

    behind: tuple[Contour, ...]
    body: Contour
    wing: Contour
    feathers: tuple[Points, ...]
    breast: Points
    neck: Contour
    head: tuple[float, float]


#: Beaks and eye, from the middle of the head.
BEAKS = {
    "short": Contour([(0.14, -0.055), (0.285, 0.015), (0.14, 0.075)]),
    "long": Contour([(0.13, -0.06), (0.41, 0.03), (0.13, 0.075)]),
    "hooked": smooth([(0.11, -0.11), (0.25, -0.105), (0.35, -0.01), (0.345, 0.17), (0.27, 0.09), (0.12, 0.09)]),
}
SKULL = smooth(
    [
        (0.0, -0.19),
        (0.135, -0.135),
        (0.19, 0.0),
        (0.135, 0.135),
        (0.0, 0.19),
        (-0.135, 0.135),
        (-0.19, 0.0),
        (-0.135, -0.135),
    ]
)
#: A leaf of the branch.
LEAF = smooth([(0.0, 0.0), (0.3, -0.22), (0.7, -0.2), (1.0, 0.0), (0.7, 0.2), (0.3, 0.22)])

PLUMAGE = {
    "perched": Plumage(
        behind=(Contour([(-0.20, 0.02), (-0.50, 0.21), (-0.57, 0.33), (-0.43, 0.35), (-0.16, 0.20)]),),
        body=smooth(
            [
                (0.20, -0.16),
                (0.31, 0.04),
                (0.29, 0.23),
                (0.13, 0.36),
                (-0.08, 0.36),
                (-0.25, 0.24),
                (-0.31, 0.08),
                (-0.20, -0.06),
                (-0.02, -0.22),
            ]
        ),
        wing=smooth(
            [
                (0.02, -0.11),
                (0.07, 0.0),
                (0.02, 0.11),
                (-0.12, 0.17),
                (-0.28, 0.19),
                (-0.45, 0.25),
                (-0.38, 0.11),
                (-0.26, -0.03),
                (-0.11, -0.13),
            ]
        ),
        feathers=(((-0.05, 0.07), (-0.17, 0.10), (-0.31, 0.15)), ((-0.07, -0.02), (-0.18, 0.02), (-0.29, 0.07))),
        breast=((0.14, 0.10), (0.02, 0.23), (0.16, 0.23)),
        neck=smooth([(0.30, -0.20), (0.28, -0.08), (0.18, -0.03), (0.04, -0.08), (-0.05, -0.18), (0.08, -0.28)]),
        head=(0.17, -0.27),
    ),
    "flying": Plumage(
        behind=(
            Contour([(-0.22, 0.05), (-0.52, -0.03), (-0.59, 0.07), (-0.53, 0.18), (-0.22, 0.19)]),
            smooth(
                [
                    (0.18, 0.0),
                    (0.17, -0.22),
                    (0.08, -0.42),
                    (-0.03, -0.55),
                    (-0.08, -0.36),
                    (-0.08, -0.15),
                    (-0.02, 0.02),
                ]
            ),
        ),
        body=smooth(
            [
                (0.36, 0.02),
                (0.35, 0.19),
                (0.18, 0.33),
                (-0.07, 0.33),
                (-0.28, 0.21),
                (-0.37, 0.09),
                (-0.20, 0.0),
                (0.0, -0.05),
                (0.2, -0.08),
            ]
        ),
        wing=smooth(
            [
                (0.09, 0.0),
                (0.03, -0.19),
                (-0.12, -0.34),
                (-0.37, -0.45),
                (-0.39, -0.26),
                (-0.33, -0.08),
                (-0.21, 0.05),
                (-0.02, 0.09),
            ]
        ),
        feathers=(((-0.05, -0.03), (-0.17, -0.16), (-0.31, -0.31)), ((-0.13, 0.01), (-0.23, -0.07), (-0.32, -0.18))),
        breast=((0.12, 0.20), (-0.04, 0.24), (-0.16, 0.15)),
        neck=smooth([(0.38, -0.02), (0.32, 0.09), (0.19, 0.09), (0.11, 0.0), (0.13, -0.14)]),
        head=(0.28, -0.11),
    ),
    "swimming": Plumage(
        behind=(Contour([(-0.30, 0.0), (-0.52, -0.17), (-0.58, -0.04), (-0.47, 0.12), (-0.30, 0.15)]),),
        body=smooth(
            [
                (0.28, -0.04),
                (0.38, 0.12),
                (0.38, 0.30),
                (0.14, 0.42),
                (-0.22, 0.40),
                (-0.44, 0.22),
                (-0.47, 0.05),
                (-0.25, -0.05),
                (0.0, -0.10),
            ]
        ),
        wing=smooth(
            [(0.08, -0.08), (0.11, 0.02), (0.02, 0.10), (-0.20, 0.12), (-0.47, -0.02), (-0.30, -0.10), (-0.10, -0.15)]
        ),
        feathers=(((0.0, 0.03), (-0.14, 0.045), (-0.29, 0.02)), ((-0.06, -0.05), (-0.16, -0.04), (-0.27, -0.05))),
        breast=((0.21, 0.15), (0.08, 0.21), (-0.10, 0.20)),
        neck=smooth(
            [(0.37, -0.20), (0.35, -0.07), (0.26, 0.0), (0.15, -0.02), (0.07, -0.10), (0.07, -0.20), (0.2, -0.3)]
        ),
        head=(0.22, -0.27),
    ),
}


def draw_bird(pen: Pen, scene: Scene, generator: np.random.Generator) -> None:
    """Draw the scene's bird with its branch or water; `generator` gives what nobody speaks of."""
    values, pose = scene.attributes, scene.attributes["pose"]
    jitter = generator.uniform(-1, 1, 4)
    length = LENGTH[values["size"]] * (1 + 0.05 * jitter[0])
    x, tilt = 0.475 + 0.025 * jitter[1], 0.06 * jitter[2]
    if pose == "flying":
        return _plumage(pen, scene, Place(x - 0.02, 0.54 + 0.025 * jitter[3], 0.9 * length, tilt - 0.08))
    ground = (0.80 if values["size"] == "large" else 0.72) + 0.02 * jitter[3]
    if pose == "perched":
        _branch(pen, scene.mood, ground)
        place = Place(x, ground - 0.45 * length, length, tilt)
        _legs(pen, scene.mood, place)
        return _plumage(pen, scene, place)
    pour_water(pen, scene.mood, ground - 0.13, jitter[1], front=False)
    _plumage(pen, scene, Place(x - 0.01, ground - 0.28 * length, 0.95 * length, tilt / 2))
    pour_water(pen, scene.mood, ground, 0.3 + jitter[1], front=True)


def _plumage(pen: Pen, scene: Scene, place: Place) -> None:
    values, parts = scene.attributes, PLUMAGE[scene.attributes["pose"]]
    head, belly, wings = (lit_paint(values[part], scene.mood) for part in ("head", "belly", "wings"))
    for contour in parts.behind:
        pen.shape(contour, place, wings, ink(wings))
    pen.shape(parts.body, place, belly, ink(belly))
    for x, y in parts.breast:
        pen.line([place.at(x - 0.03, y), place.at(x, y + 0.022), place.at(x + 0.03, y)], shade(belly), 0.6 * LINE)
    pen.shape(parts.wing, place, wings, ink(wings))
    for feather in parts.feathers:
        pen.line([place.at(*point) for point in feather], mix(wings, ink(wings), 0.6), 0.8 * LINE)
    pen.shape(parts.neck, place, head, ink(head))
    _head(pen, scene, Place(*place.at(*parts.head), place.scale, place.tilt), parts.neck, place, head)


def _head(pen: Pen, scene: Scene, place: Place, neck: Contour, body: Place, fill: RGB) -> None:
    beak = mix(BEAK, LIGHTS[scene.mood].haze, LIGHTS[scene.mood].on_subject)
    pen.shape(BEAKS[scene.attributes["beak"]], place, beak, ink(beak))
    pen.line([place.at(0.14, 0.012), place.at(0.26, 0.03)], ink(beak), 0.5 * LINE)
    pen.shape(SKULL, place, fill, ink(fill))
    pen.shape(neck, body, fill)
    x, y = place.at(0.06, -0.045)
    radius = 0.062 * place.scale
    pen.disc(x, y, radius + 0.006, ink(fill))
    pen.disc(x, y, radius, (255, 255, 255))
    pen.disc(x + 0.2 * radius, y, 0.7 * radius, (24, 20, 30))
    pen.disc(x + 0.4 * radius, y - 0.3 * radius, 0.26 * radius, (255, 255, 255))


def _legs(pen: Pen, mood: str, place: Place) -> None:
    fill = lit_scenery((196, 112, 40), mood)
    for x in (-0.03, 0.12):
        foot = place.at(x + 0.01, 0.46)
        for points in ([place.at(x, 0.30), foot], [place.at(x - 0.05, 0.47), place.at(x + 0.09, 0.47)]):
            pen.line(points, ink(fill), 0.034)
            pen.line(points, fill, 0.02)


def _branch(pen: Pen, mood: str, level: float) -> None:
    bark = lit_scenery(BARK, mood)
    leaf = lit_scenery((110, 160, 90), mood)
    contour = Contour([(0.0, -0.035), (0.5, -0.02), (1.0, -0.012), (1.0, 0.02), (0.5, 0.03), (0.0, 0.045)])
    pen.shape(contour, Place(0, level + 0.02, 1), bark, ink(bark))
    for x, y in ((0.08, 0.06), (0.9, 0.05)):
        pen.shape(LEAF, Place(x, level + y, 0.12, 0.5), leaf, ink(leaf))
