"""Draws a scene of garden's world as a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sta.data.corpora.garden.bird import draw_bird
from sta.data.corpora.garden.flower import draw_flower
from sta.data.corpora.garden.pen import Pen
from sta.data.corpora.garden.scenery import VARIANTS, background
from sta.data.corpora.garden.world import Scene

_SUBJECTS = {"bird": draw_bird, "flower": draw_flower}


def draw(scene: Scene, size: int) -> Image.Image:
    """Draw the scene: RGB, `size` by `size`, the same picture for the same scene.

    Everything is laid out in shares of the side, so one scene looks alike at every size.
    """
    fine = 4 if size <= 128 else 3  # drawn this many times larger, for smooth edges
    generator = np.random.default_rng(scene.seed)
    variant = int(generator.integers(VARIANTS))
    image = background(scene.attributes["background"], scene.mood, fine * size, variant).copy()
    _SUBJECTS[scene.kind](Pen(image), scene, generator)
    return image.reduce(fine)
