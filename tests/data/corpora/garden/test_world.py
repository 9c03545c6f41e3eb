"""Garden's world: what scenes may show, and which combinations are kept for the test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sta.data.corpora.garden.corpus import WorldSettings, world_of
from sta.data.corpora.garden.world import COLOUR_SLOTS, COLOURS, KINDS, MOODS, SLOTS, World, species
from sta.errors import RecipeError

FULL = world_of(WorldSettings())


def scenes(world: World, count: int = 300) -> list:
    return [world.sample(np.random.default_rng(seed)) for seed in range(count)]


def test_defaults_are_the_whole_world() -> None:
    assert World({slot: values for slot, (_, values) in SLOTS.items()}, KINDS, MOODS) == FULL
    assert set(COLOUR_SLOTS) == {slot for slot, (_, values) in SLOTS.items() if values == COLOURS}


def test_scenes_take_every_value_of_their_slots_and_no_other() -> None:
    seen: dict[str, set[str]] = {}
    for scene in scenes(FULL, 600):
        assert tuple(scene.attributes) == FULL.slots_of(scene.kind)
        for slot, value in scene.attributes.items():
            seen.setdefault(slot, set()).add(value)
    assert seen == {slot: set(values) for slot, (_, values) in SLOTS.items()}


def test_parts_that_touch_differ_in_colour() -> None:
    for scene in scenes(FULL, 600):
        a = scene.attributes
        assert a["centre"] != a["petals"] if scene.kind == "flower" else a["wings"] != a["belly"]


def test_the_same_seed_is_the_same_scene() -> None:
    assert scenes(FULL, 20) == scenes(FULL, 20)
    assert len({s.seed for s in scenes(FULL, 50)}) == 50
    assert {s.mood for s in scenes(FULL)} == set(MOODS)
    assert FULL.sample(np.random.default_rng(0), mood="sad").mood == "sad"


def test_a_narrow_world_has_only_what_was_asked() -> None:
    world = world_of(WorldSettings(colours=["blue", "red"], moods=["sad"], kinds=["bird"], slots={"pose": ["flying"]}))
    for scene in scenes(world, 50):
        assert (scene.kind, scene.mood, scene.attributes["pose"]) == ("bird", "sad", "flying")
        assert {scene.attributes[s] for s in ("head", "belly", "wings")} <= {"red", "blue"}
    assert "pose" not in world.spoken_slots("bird")
    assert "pose" in world.slots_of("bird")
    assert "petals" not in world.slots_of("bird")


def test_a_slot_of_colours_may_be_narrower_still() -> None:
    world = world_of(WorldSettings(colours=["blue", "red"], slots={"head": ["green", "pink"]}))
    assert (world.slots["head"], world.slots["belly"]) == (("green", "pink"), ("blue", "red"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (WorldSettings(colours=["red", "mauve"]), ["corpus.world.colours", "'mauve'", *COLOURS]),
        (WorldSettings(moods=["bored"]), ["corpus.world.moods", "'bored'", *MOODS]),
        (WorldSettings(kinds=["tree"]), ["corpus.world.kinds", "'tree'", *KINDS]),
        (WorldSettings(slots={"tail": ["long"]}), ["corpus.world.slots", "'tail'", *SLOTS]),
        (WorldSettings(slots={"beak": ["blunt"]}), ["corpus.world.slots.beak", "'blunt'", "short", "long", "hooked"]),
    ],
)
def test_an_unknown_value_names_the_known(settings: WorldSettings, said: list[str]) -> None:
    with pytest.raises(RecipeError) as error:
        world_of(settings)
    assert all(part in str(error.value) for part in said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "world", [WorldSettings(colours=["red"]), WorldSettings(slots={"wings": ["red"], "belly": ["red"]})]
)
def test_a_world_whose_parts_cannot_differ_is_refused(world: WorldSettings) -> None:
    with pytest.raises(RecipeError, match="colour"):
        scenes(world_of(world), 20)


def test_held_out_is_a_matter_of_the_combination() -> None:
    for scene in scenes(FULL, 100):
        held = FULL.held_out(scene, 0.5)
        assert FULL.held_out(replace(scene, seed=scene.seed + 1, mood="angry"), 0.5) == held
    colours = [replace(s, attributes={**s.attributes, "background": "desert"}) for s in scenes(FULL, 200)]
    assert any(FULL.held_out(a, 0.5) != FULL.held_out(b, 0.5) for a, b in zip(scenes(FULL, 200), colours, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_held_out_is_about_its_share(share: float) -> None:
    held = [FULL.held_out(scene, share) for scene in scenes(FULL, 1500)]
    assert abs(np.mean(held) - share) < 0.04
    assert share > 0 or not any(held)
    assert share < 1 or all(held)


def test_a_larger_share_holds_out_the_same_and_more() -> None:
    for scene in scenes(FULL, 200):
        assert FULL.held_out(scene, 0.6) or not FULL.held_out(scene, 0.3)


def test_constant_slots_do_not_make_a_combination() -> None:
    world = world_of(WorldSettings(slots={"background": ["meadow"]}))
    for scene in scenes(world, 50):
        moved = replace(scene, attributes={**scene.attributes, "background": "desert"})
        assert world.held_out(scene, 0.5) == world.held_out(moved, 0.5)


def test_species_is_kind_and_colours() -> None:
    scene = FULL.sample(np.random.default_rng(1))
    colours = [scene.attributes[s] for s in COLOUR_SLOTS if s in scene.attributes]
    assert species(scene) == "-".join([scene.kind, *colours])
    assert species(replace(scene, seed=0, mood="sad", attributes={**scene.attributes, "background": "x"})) == species(
        scene
    )
