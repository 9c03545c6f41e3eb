"""Scores of generated pictures: spoken attributes, mood, and S2IGAN's colour swap.

Attributes map slot -> value. A reference holds what the caption names and the real picture shows, with the
pseudo-slot `kind`; a prediction holds what an attribute classifier sees in the generated picture. A slot that a
prediction lacks counts as wrong. A slot with one value in the world cannot be wrong and is not counted.
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
    """Return the values that `slot`, or the pseudo-slot `kind`, may take in `world`."""
    return world.kinds if slot == "kind" else world.slots[slot]


def counted_slots(reference: Attributes, world: World) -> tuple[str, ...]:
    """Return the slots of a caption that are scored: they apply to its kind and vary in `world`.

    Raises:
        ValueError: the kind is missing, or a slot or value is not of this world.
    """
    if "kind" not in reference:
        raise ValueError(f"caption without its kind: {dict(reference)}")
    for slot, value in reference.items():
        if slot not in ("kind", *world.slots) or value not in values_of(slot, world):
            raise ValueError(f"{slot}={value!r} is not of this world, which has {('kind', *world.slots)}")
    applying = ("kind", *world.slots_of(reference["kind"]))
    return tuple(s for s in reference if s in applying and len(values_of(s, world)) > 1)


def correct_slots(
    references: Sequence[Attributes], predictions: Sequence[Attributes], world: World
) -> list[dict[str, bool]]:
    """Compare each counted slot of each item with its prediction."""
    if not references:
        raise ValueError("no items to score")
    pairs = zip(references, predictions, strict=True)
    return [{slot: seen.get(slot) == true[slot] for slot in counted_slots(true, world)} for true, seen in pairs]


def attribute_rows(
    references: Sequence[Attributes], predictions: Sequence[Attributes], world: World, **where: Unpack[ResultKey]
) -> list[Row]:
    """Compute rows `attributes`, `colours` and `exact`; each item has the same weight, however much it names.

    `n` counts the items that name such a slot; a metric with none has no row. Chance is that of a classifier that
    guesses each slot uniformly.
    """
    correct = correct_slots(references, predictions, world)
    rows = []
    for metric, (slots, score) in _SCORES.items():
        items = [[s for s in item if s in slots] for item in correct]
        values = [score([item[s] for s in names]) for item, names in zip(correct, items, strict=True) if names]
        guesses = [score([1 / len(values_of(s, world)) for s in names]) for names in items if names]
        if values:
            rows.append(Row.of(metric, bootstrap(values), len(values), float(np.mean(guesses)), **where))
    return rows


def mood_rows(
    references: Sequence[str], predictions: Sequence[str], world: World, **where: Unpack[ResultKey]
) -> list[Row]:
    """Compute row `mood`: the share of pictures whose light is that of the speaker's mood."""
    unknown = set(references) - set(world.moods)
    if unknown:
        raise ValueError(f"moods {sorted(unknown)} are not of this world, which has {world.moods}")
    right = [a == b for a, b in zip(references, predictions, strict=True)]
    return [Row.of("mood", bootstrap(right), len(right), 1 / len(world.moods), **where)]


@dataclass(frozen=True)
class Swap:
    """Two captions that differ in one slot, and what is predicted for the pictures drawn from them."""

    reference_a: Attributes
    reference_b: Attributes
    predicted_a: Attributes
    predicted_b: Attributes

    @property
    def changed(self) -> str:
        """The slot in which the captions differ.

        Raises:
            ValueError: they do not differ in exactly one slot.
        """
        a, b = self.reference_a, self.reference_b
        changed = [s for s in a.keys() | b.keys() if a.get(s) != b.get(s)]
        if len(changed) != 1 or a.keys() != b.keys():
            raise ValueError(f"captions of a swap differ in one value, these in {sorted(changed)}")
        return changed[0]

    def others(self, world: World) -> tuple[str, ...]:
        """Return the counted slots that both captions leave alike."""
        return tuple(s for s in counted_slots(self.reference_a, world) if s != self.changed)

    def succeeds(self, world: World) -> bool:
        """Tell whether the changed slot follows its word in both pictures and the other slots look alike in both."""
        slot, a, b = self.changed, self.predicted_a, self.predicted_b
        follows = (a.get(slot), b.get(slot)) == (self.reference_a[slot], self.reference_b[slot])
        return follows and all(s in a and a[s] == b.get(s) for s in self.others(world))

    def chance(self, world: World) -> float:
        """Compute the probability that uniform guesses succeed: two right, and every other slot alike."""
        alike = [1 / len(values_of(s, world)) for s in self.others(world)]
        return float(np.prod(alike)) / len(values_of(self.changed, world)) ** 2


def swap_rows(swaps: Sequence[Swap], world: World, **where: Unpack[ResultKey]) -> list[Row]:
    """Compute row `swap`, after S2IGAN's colour-changed captions (figure 7 there shows them by eye)."""
    chance = float(np.mean([swap.chance(world) for swap in swaps]))
    return [Row.of("swap", bootstrap([swap.succeeds(world) for swap in swaps]), len(swaps), chance, **where)]
