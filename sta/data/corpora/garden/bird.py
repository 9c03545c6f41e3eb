"""Garden's birds, put together from `shapes.json`: units of a bird's length, origin in the body, facing right.

Beaks, skull and eye are the same in every pose, in units from the middle of the head, which each pose places.
"""

from __future__ import annotations

import numpy as np

from sta.data.corpora.garden.palette import LIGHTS, RGB, ink, lit_paint, lit_scenery, mix, shade
from sta.data.corpora.garden.pen import LINE, Contour, Pen, Place, shapes
from sta.data.corpora.garden.scenery import pour_water
from sta.data.corpora.garden.world import Scene

LENGTH = {"small": 0.48, "large": 0.75}
BEAK = (250, 176, 44)
BARK = (150, 112, 82)


def draw_bird(pen: Pen, scene: Scene, generator: np.random.Generator) -> None:
    """Draw the scene's bird with its branch or water; `generator` varies what no caption names."""
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
    values, parts = scene.attributes, shapes()["bird"][scene.attributes["pose"]]
    head, belly, wings = (lit_paint(values[part], scene.mood) for part in ("head", "belly", "wings"))
    for contour in parts["behind"]:
        pen.shape(contour, place, wings, ink(wings))
    pen.shape(parts["body"], place, belly, ink(belly))
    for x, y in parts["breast"]:
        pen.line([place.at(x - 0.03, y), place.at(x, y + 0.022), place.at(x + 0.03, y)], shade(belly), 0.6 * LINE)
    pen.shape(parts["wing"], place, wings, ink(wings))
    for feather in parts["feathers"]:
        pen.line([place.at(*point) for point in feather], mix(wings, ink(wings), 0.6), 0.8 * LINE)
    pen.shape(parts["neck"], place, head, ink(head))
    _head(pen, scene, Place(*place.at(*parts["head"]), place.scale, place.tilt), parts["neck"], place, head)


def _head(pen: Pen, scene: Scene, place: Place, neck: Contour, body: Place, fill: RGB) -> None:
    beak = mix(BEAK, LIGHTS[scene.mood].haze, LIGHTS[scene.mood].on_subject)
    pen.shape(shapes()["beaks"][scene.attributes["beak"]], place, beak, ink(beak))
    pen.line([place.at(0.14, 0.012), place.at(0.26, 0.03)], ink(beak), 0.5 * LINE)
    pen.shape(shapes()["skull"], place, fill, ink(fill))
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
    pen.shape(shapes()["branch"], Place(0, level + 0.02, 1), bark, ink(bark))
    for x, y in ((0.08, 0.06), (0.9, 0.05)):
        pen.shape(shapes()["branch leaf"], Place(x, level + y, 0.12, 0.5), leaf, ink(leaf))
