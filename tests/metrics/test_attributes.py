"""Scores of generated pictures against answers known by hand."""

import numpy as np
import pytest

from sta.data.corpora.garden.world import MOODS, SLOTS, World
from sta.metrics.attributes import (
    Swap,
    attribute_rows,
    correct_slots,
    counted_slots,
    mood_rows,
    swap_rows,
)
from sta.metrics.rows import ResultKey

WHERE: ResultKey = {"language": "ar", "split": "both", "condition": "clean", "system": "speech"}
WORLD = World(
    {"head": ("red", "blue"), "belly": ("red", "blue", "white", "black"), "size": ("small",), "petals": ("red", "blue")}
)
BIRD = {"kind": "bird", "head": "red", "belly": "white", "size": "small"}
FLOWER = {"kind": "flower", "petals": "blue"}


def values(said: list[dict[str, str]], read: list[dict[str, str]]) -> dict[str, float]:
    return {r.metric: r.value for r in attribute_rows(said, read, WORLD, **WHERE)}


def test_perfect_reading_is_one() -> None:
    assert values([BIRD, FLOWER], [BIRD, FLOWER]) == {"attributes": 1, "colours": 1, "exact": 1}


def test_known_answers_weigh_items_not_slots() -> None:
    read = [BIRD | {"belly": "red"}, FLOWER | {"kind": "bird"}]
    found = values([BIRD, FLOWER], read)
    assert found["attributes"] == pytest.approx((2 / 3 + 1 / 2) / 2)  # pooled slots would give 3/5
    assert found["colours"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["exact"] == 0


def test_exact_asks_for_every_slot() -> None:
    assert values([BIRD, BIRD], [BIRD, BIRD | {"head": "blue"}])["exact"] == 0.5


def test_slot_that_was_not_read_is_wrong() -> None:
    assert values([FLOWER], [{"kind": "flower"}]) == {"attributes": 0.5, "colours": 0, "exact": 0}


def test_unspoken_and_constant_slots_do_not_count() -> None:
    assert counted_slots(BIRD, WORLD) == ("kind", "head", "belly")
    assert values([{"kind": "bird"}], [{"kind": "bird", "head": "blue"}]) == {"attributes": 1, "exact": 1}


def test_slots_of_the_other_kind_do_not_count() -> None:
    assert counted_slots(FLOWER | {"head": "red"}, WORLD) == ("kind", "petals")


def test_rows_carry_their_cell_their_count_and_an_interval() -> None:
    rows = attribute_rows([BIRD, FLOWER, {"kind": "bird"}], [BIRD, BIRD, BIRD], WORLD, **WHERE)
    assert [r.n for r in rows] == [3, 2, 3]
    assert {(r.language, r.split, r.condition, r.system) for r in rows} == {("ar", "both", "clean", "speech")}
    assert all(r.low <= r.value <= r.high for r in rows)


def test_chance_is_known_by_hand() -> None:
    chance = {r.metric: r.chance for r in attribute_rows([BIRD, FLOWER], [BIRD, FLOWER], WORLD, **WHERE)}
    assert chance["attributes"] == pytest.approx(((1 / 2 + 1 / 2 + 1 / 4) / 3 + 1 / 2) / 2)
    assert chance["colours"] == pytest.approx(((1 / 2 + 1 / 4) / 2 + 1 / 2) / 2)
    assert chance["exact"] == pytest.approx((1 / 16 + 1 / 4) / 2)


def test_chance_is_what_uniform_guesses_get() -> None:
    generator = np.random.default_rng(0)
    options = {"kind": WORLD.kinds, **WORLD.slots}
    said = [BIRD, FLOWER] * 1500
    read = [{s: str(generator.choice(v)) for s, v in options.items()} for _ in said]
    for row in attribute_rows(said, read, WORLD, **WHERE):
        assert row.value == pytest.approx(row.chance, abs=0.03)
        assert row.chance > 0


@pytest.mark.parametrize(
    "said", [{"head": "red"}, {"kind": "bird", "beak": "long"}, {"kind": "bird", "head": "pink"}, {"kind": "fish"}]
)
def test_caption_from_another_world_is_an_error(said: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="without its kind|not of this world"):
        correct_slots([said], [said], WORLD)


def test_lengths_must_agree_and_not_be_zero() -> None:
    with pytest.raises(ValueError, match="shorter"):
        correct_slots([BIRD, BIRD], [BIRD], WORLD)
    with pytest.raises(ValueError, match="no items"):
        attribute_rows([], [], WORLD, **WHERE)


def test_mood() -> None:
    (row,) = mood_rows(["sad", "happy", "angry"], ["sad", "happy", "neutral"], WORLD, **WHERE)
    assert (row.metric, row.value, row.chance, row.n) == ("mood", pytest.approx(2 / 3), 1 / len(MOODS), 3)
    with pytest.raises(ValueError, match="bored"):
        mood_rows(["bored"], ["sad"], WORLD, **WHERE)


OTHER = BIRD | {"belly": "black"}


def test_swap_succeeds_where_only_the_changed_slot_follows() -> None:
    assert Swap(BIRD, OTHER, BIRD, OTHER).succeeds(WORLD)


def test_swap_allows_a_mistake_that_both_pictures_share() -> None:
    assert Swap(BIRD, OTHER, BIRD | {"head": "blue"}, OTHER | {"head": "blue"}).succeeds(WORLD)


@pytest.mark.parametrize(
    ("read_a", "read_b"),
    [
        (BIRD, BIRD),  # did not change
        (OTHER, OTHER),
        (OTHER, BIRD),  # changed the wrong way round
        (BIRD, OTHER | {"head": "blue"}),  # something else changed too
        (BIRD, OTHER | {"kind": "flower"}),
        (BIRD, {s: v for s, v in OTHER.items() if s != "head"}),
        ({"kind": "bird", "belly": "white"}, {"kind": "bird", "belly": "black"}),  # head seen in neither
    ],
)
def test_swap_fails(read_a: dict[str, str], read_b: dict[str, str]) -> None:
    assert not Swap(BIRD, OTHER, read_a, read_b).succeeds(WORLD)


@pytest.mark.parametrize("other", [BIRD, FLOWER, OTHER | {"head": "blue"}, {"kind": "bird", "head": "red"}])
def test_swap_of_other_than_one_slot_is_an_error(other: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="differ in one value"):
        swap_rows([Swap(BIRD, other, BIRD, other)], WORLD, **WHERE)


def test_swap_chance_is_what_uniform_guesses_get() -> None:
    generator = np.random.default_rng(0)

    def guess() -> dict[str, str]:
        return {s: str(generator.choice(v)) for s, v in {"kind": WORLD.kinds, **WORLD.slots}.items()}

    (row,) = swap_rows([Swap(BIRD, OTHER, guess(), guess()) for _ in range(6000)], WORLD, **WHERE)
    assert row.chance == pytest.approx(1 / 4**2 / 2 / 2)
    assert row.value == pytest.approx(row.chance, abs=0.006)


def test_every_slot_of_the_full_world_can_be_scored() -> None:
    world = World({slot: options for slot, (_, options) in SLOTS.items()})
    scenes = [world.sample(np.random.default_rng(i)) for i in range(20)]
    said = [{"kind": s.kind, **s.attributes} for s in scenes]
    assert all(r.value == 1 for r in attribute_rows(said, said, world, **WHERE))
    assert {slot for item in correct_slots(said, said, world) for slot in item} == {"kind", *SLOTS}
