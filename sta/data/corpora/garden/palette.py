"""Garden's paints: the ten colours, and the light that each mood casts on the sky, the scenery and the subject."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

RGB = tuple[int, int, int]

#: The ten colours as they look in neutral light, chosen to lie far apart.
PAINT: dict[str, RGB] = {
    "red": (216, 26, 44), "orange": (250, 132, 20), "yellow": (255, 221, 32), "green": (48, 160, 66),
    "blue": (36, 96, 220), "purple": (122, 48, 180), "pink": (255, 152, 198), "brown": (124, 74, 38),
    "black": (52, 52, 62), "white": (252, 252, 248),
}  # fmt: skip


@dataclass(frozen=True)
class Light:
    """A mood's light: the sky from top to horizon, and the haze mixed into scenery and subject (shares in [0, 1])."""

    sky: tuple[RGB, RGB]
    haze: RGB
    on_scenery: float
    on_subject: float


LIGHTS: dict[str, Light] = {
    "neutral": Light(((186, 220, 242), (236, 246, 250)), (255, 255, 255), 0.06, 0.0),
    "happy": Light(((255, 226, 112), (255, 247, 206)), (255, 226, 120), 0.20, 0.04),
    "sad": Light(((112, 128, 150), (166, 178, 192)), (104, 118, 140), 0.42, 0.11),
    "angry": Light(((124, 26, 34), (244, 138, 82)), (168, 48, 36), 0.42, 0.07),
    "fearful": Light(((22, 20, 62), (74, 70, 138)), (36, 34, 88), 0.50, 0.10),
}


def mix(colour: RGB, other: RGB, share: float) -> RGB:
    """Mix a `share` in [0, 1] of `other` into `colour`."""
    r, g, b = (round(c + (o - c) * share) for c, o in zip(colour, other, strict=True))
    return r, g, b


@cache
def lit_paint(name: str, mood: str) -> RGB:
    """Return the named colour as it looks on a bird or flower in the mood's light."""
    light = LIGHTS[mood]
    return mix(PAINT[name], light.haze, light.on_subject)


@cache
def lit_scenery(colour: RGB, mood: str) -> RGB:
    """Return a scenery colour as it looks in the mood's light."""
    light = LIGHTS[mood]
    return mix(colour, light.haze, light.on_scenery)


@cache
def ink(fill: RGB) -> RGB:
    """Return the colour of the outline around `fill`: its own dark shade."""
    return mix(fill, (16, 8, 20), 0.78)


@cache
def shade(fill: RGB) -> RGB:
    """Darken `fill` a little (lighten a very dark one), for feathers and folds."""
    return mix(fill, (110, 112, 128), 0.3) if sum(fill) < 200 else mix(fill, (60, 24, 30), 0.22)
