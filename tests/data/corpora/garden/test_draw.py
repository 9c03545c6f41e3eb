"""What a picture of the garden must show: every value, in every mood, at every size, the same each time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sta.data.corpora.garden.draw import draw
from sta.data.corpora.garden.palette import PAINT
from sta.data.corpora.garden.pen import Contour
from sta.data.corpora.garden.world import COLOUR_SLOTS, COLOURS, KINDS, MOODS, SLOTS, Scene, World

PLAIN = {
    "bird": {"head": "blue", "belly": "yellow", "wings": "red", "size": "large", "beak": "short", "pose": "perched"},
    "flower": {"petals": "purple", "centre": "yellow", "count": "five", "shape": "round", "grouping": "single"},
}
VALUES = [(kind, slot, value) for slot, (kinds, values) in SLOTS.items() for kind in kinds for value in values]


def plain(kind: str, mood: str = "neutral", seed: int = 0, changed: Mapping[str, str] | None = None) -> Scene:
    return Scene(kind, {**PLAIN[kind], "background": "meadow", **(changed or {})}, mood, seed)


def pixels(scene: Scene, size: int = 48) -> np.ndarray:
    return np.asarray(draw(scene, size)).astype(int)


def changed_pixels(scene: Scene, other: Scene) -> np.ndarray:
    """Mask (size, size) of the pixels that clearly differ."""
    return np.abs(pixels(scene) - pixels(other)).sum(axis=2) > 60


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, 48, 100, 256])
def test_picture_is_rgb_of_the_size_asked(kind, size):
    image = draw(plain(kind), size)
    assert (image.mode, image.size) == ("RGB", (size, size))


@pytest.mark.parametrize("kind", KINDS)
def test_same_scene_gives_same_picture_and_another_seed_does_not(kind):
    first = pixels(plain(kind, seed=3))
    draw(plain(kind, "sad", seed=8), 48)  # drawing on a shared background would show up below
    assert np.array_equal(first, pixels(plain(kind, seed=3)))
    assert not np.array_equal(first, pixels(plain(kind, seed=4)))


@pytest.mark.parametrize("kind", KINDS)
def test_scene_looks_alike_at_every_size(kind):
    small, large = draw(plain(kind), 32), draw(plain(kind), 128).reduce(4)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(large)).mean() < 6


@pytest.mark.parametrize("mood", MOODS)
def test_every_value_shows_in_every_mood(mood):
    for kind, slot, value in VALUES:
        other = next(v for v in SLOTS[slot][1] if v != value)
        changed = changed_pixels(plain(kind, mood, changed={slot: value}), plain(kind, mood, changed={slot: other}))
        assert changed.mean() > 0.004, (kind, slot, value, other)


@pytest.mark.parametrize("kind", KINDS)
def test_every_mood_changes_most_of_the_sky(kind):
    skies = [pixels(plain(kind, mood))[:16] for mood in MOODS]
    for i, sky in enumerate(skies):
        for other in skies[i + 1 :]:
            assert (np.abs(sky - other).sum(axis=2) > 60).mean() > 0.4


@pytest.mark.parametrize("slot", COLOUR_SLOTS)
@pytest.mark.parametrize("colour", COLOURS)
def test_named_colour_fills_its_part(slot, colour):
    kind, other = SLOTS[slot][0][0], "black" if colour != "black" else "white"
    scene = plain(kind, changed={slot: colour})
    part = pixels(scene)[changed_pixels(scene, plain(kind, changed={slot: other}))]
    nearest = np.abs(part[:, None] - np.array(list(PAINT.values()))).sum(axis=2).argmin(axis=1)
    assert len(part) > 0.03 * 48 * 48
    assert (nearest == COLOURS.index(colour)).mean() > 0.5


def bird_width(size: str, seed: int) -> int:
    """How many columns of the picture a bird covers, from where repainting it shows."""
    pink = dict.fromkeys(("head", "belly", "wings"), "pink")
    bird, repainted = (plain("bird", seed=seed, changed={"size": size, **paint}) for paint in ({}, pink))
    return int(np.ptp(np.flatnonzero(changed_pixels(bird, repainted).any(axis=0))))


def test_seed_leaves_the_size_of_a_bird_alone():
    small, large = ([bird_width(size, seed) for seed in range(8)] for size in ("small", "large"))
    assert max(small) < 0.8 * min(large)
    for widths in (small, large):
        assert max(widths) - min(widths) < 0.15 * max(widths) + 1


def test_paints_lie_far_apart():
    paints = np.array([PAINT[colour] for colour in COLOURS])
    apart = np.linalg.norm(paints[:, None] - paints, axis=2) + 1e3 * np.eye(len(paints))
    assert apart.min() > 70


@pytest.mark.parametrize("turn", [1, -1])
def test_contour_swells_outwards_whichever_way_it_runs(turn):
    square = Contour([(0, 0), (1, 0), (1, 1), (0, 1)][::turn])
    assert np.allclose(np.abs(square.points + 0.1 * square.normals - 0.5), 0.6)


def test_scenes_look_as_they_always_did():
    """`scenes.png` holds 30 scenes at 8 pixels; no outline, colour or place may move by what one would see."""
    world = World({slot: values for slot, (_, values) in SLOTS.items()})
    drawn = [draw(world.sample(np.random.default_rng(seed)), 32).reduce(4) for seed in range(30)]
    before = np.asarray(Image.open(Path(__file__).parent / "scenes.png")).astype(int)
    assert np.abs(np.concatenate([np.asarray(image) for image in drawn], axis=1) - before).max() <= 2
