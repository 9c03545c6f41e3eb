"""Marks generated pictures right or wrong: spoken attributes, mood, and S2IGAN's colour swap.

An item is a pair of mappings slot -> value: `said`, what the caption names and the real picture
shows, with the pseudo-slot `kind`; and `read`, what an attribute classifier saw in the generated
picture. A slot that is absent from `read` counts as wrong. A slot with one value in the world
cannot be wrong and is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from sta.data.corpora.base import World
from sta.data.corpora.garden.world import COLOUR_SLOTS, SLOTS
from sta.metrics.rows import ResultKey, Row, bootstrap

Attributes = Mapping[str, str]

#: metric -> (slots it looks at, how one item's slots become one number: the product asks for all)
_SCORES: dict[str, tuple[Sequence[str], Callable[[Any], Any]]] = {
    "attributes": (("kind", *SLOTS), np.mean),
    "colours": (COLOUR_SLOTS, np.mean),
    "exact": (("kind", *SLOTS), np.prod),
}


def values_of(slot: str, world: World) -> tuple[str, ...]:
    """Values that `slot`, or the pseudo-slot `kind`, may take in `world`."""
    return world.kinds if slot == "kind" else world.slots[slot]


def counted_slots(said: Attributes, world: World) -> tuple[str, ...]:
    """Slots of a caption that are marked: they apply to its kind and vary in `world`.

    Raises:
        ValueError: the kind is not said, or a slot or value is not of this world.
    """
    if "kind" not in said:
        raise ValueError(f"caption without its kind: {dict(said)}")
    for slot, value in said.items():
        if slot not in ("kind", *world.slots) or value not in values_of(slot, world):
            raise ValueError(f"{slot}={value!r} is not of this world, which has {('kind', *world.slots)}")
    applying = ("kind", *world.slots_of(said["kind"]))
    return tuple(s for s in said if s in applying and len(values_of(s, world)) > 1)


def marks(said: Sequence[Attributes], read: Sequence[Attributes], world: World) -> list[dict[str, bool]]:
    """Per item, whether each counted slot was read as it was said."""
    if not said:
        raise ValueError("no items to mark")
    pairs = zip(said, read, strict=True)
    return [{slot: seen.get(slot) == spoken[slot] for slot in counted_slots(spoken, world)} for spoken, seen in pairs]


def attribute_rows(
    said: Sequence[Attributes], read: Sequence[Attributes], world: World, **where: Unpack[ResultKey]
) -> list[Row]:
    """Rows `attributes`, `colours` and `exact`; each item has the same weight, however much it says.

    `n` counts the items that say something of the sort; a metric with none has no row. Chance is that
    of a reader that guesses each slot uniformly.
    """
    marked = marks(said, read, world)
    rows = []
    for metric, (slots, score) in _SCORES.items():
        items = [[s for s in item if s in slots] for item in marked]
        values = [score([item[s] for s in names]) for item, names in zip(marked, items, strict=True) if names]
        guesses = [score([1 / len(values_of(s, world)) for s in names]) for names in items if names]
        if values:
            rows.append(Row.of(metric, bootstrap(values), len(values), float(np.mean(guesses)), **where))
    return rows


def mood_rows(truth: Sequence[str], read: Sequence[str], world: World, **where: Unpack[ResultKey]) -> list[Row]:
    """Row `mood`: the share of pictures whose light is that of the speaker's mood."""
    unknown = set(truth) - set(world.moods)
    if unknown:
        raise ValueError(f"moods {sorted(unknown)} are not of this world, which has {world.moods}")
    right = [a == b for a, b in zip(truth, read, strict=True)]
    return [Row.of("mood", bootstrap(right), len(right), 1 / len(world.moods), **where)]


@dataclass(frozen=True)
class Swap:
    """Two captions that differ in one slot, and what was read in the pictures drawn for them."""

    said_a: Attributes
    said_b: Attributes
    read_a: Attributes
    read_b: Attributes

    @property
    def changed(self) -> str:
        """The slot in which the captions differ.

        Raises:
            ValueError: they do not differ in exactly one slot.
        """
        slots = self.said_a.keys() | self.said_b.keys()
        changed = [s for s in slots if self.said_a.get(s) != self.said_b.get(s)]
        if len(changed) != 1 or self.said_a.keys() != self.said_b.keys():
            raise ValueError(f"captions of a swap differ in one value, these in {sorted(changed)}")
        return changed[0]

    def others(self, world: World) -> tuple[str, ...]:
        """The counted slots that both captions leave alike."""
        return tuple(s for s in counted_slots(self.said_a, world) if s != self.changed)

    def succeeds(self, world: World) -> bool:
        """Whether the changed slot follows its word in both pictures and all else said reads alike in both."""
        follows = all(
            read.get(self.changed) == said[self.changed]
            for said, read in ((self.said_a, self.read_a), (self.said_b, self.read_b))
        )
        return follows and all(s in self.read_a and self.read_a[s] == self.read_b.get(s) for s in self.others(world))

    def chance(self, world: World) -> float:
        """Probability that uniform guesses succeed: two right, and every other slot alike."""
        alike = [1 / len(values_of(s, world)) for s in self.others(world)]
        return float(np.prod(alike)) / len(values_of(self.changed, world)) ** 2


def swap_rows(swaps: Sequence[Swap], world: World, **where: Unpack[ResultKey]) -> list[Row]:
    """Row `swap`, after S2IGAN's colour-changed captions (figure 7 there shows them by eye)."""
    chance = float(np.mean([swap.chance(world) for swap in swaps]))
    return [Row.of("swap", bootstrap([swap.succeeds(world) for swap in swaps]), len(swaps), chance, **where)]
