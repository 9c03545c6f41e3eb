"""Garden's world: which attributes birds and flowers have, and how scenes and splits are drawn from them.

Attributes follow CUB-200 (colours of head, belly and wings; size, beak, pose) and Oxford-102
(petals' colour, number and shape, centre, single or cluster). A recipe narrows the world by
listing the values it wants; a slot left with one value is constant and never spoken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
MOODS = ("neutral", "happy", "sad", "angry", "fearful")
KINDS = ("bird", "flower")

#: slot -> (kinds it applies to, values); the order is the order of reports.
SLOTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "head": (("bird",), COLOURS),
    "belly": (("bird",), COLOURS),
    "wings": (("bird",), COLOURS),
    "size": (("bird",), ("small", "large")),
    "beak": (("bird",), ("short", "long", "hooked")),
    "pose": (("bird",), ("perched", "flying", "swimming")),
    "petals": (("flower",), COLOURS),
    "centre": (("flower",), COLOURS),
    "count": (("flower",), ("five", "eight", "twelve")),
    "shape": (("flower",), ("round", "pointed")),
    "grouping": (("flower",), ("single", "cluster")),
    "background": (("bird", "flower"), ("meadow", "forest", "mountains", "desert")),
}
#: Parts that lie on another part: in one colour a picture could not show them apart.
HIDING_PAIRS = (("centre", "petals"), ("wings", "belly"))
COLOUR_SLOTS = ("head", "belly", "wings", "petals", "centre")


@dataclass(frozen=True)
class Scene:
    """One picture's truth: its kind, the value of every slot that applies, the mood of its light.

    `seed` draws what nobody speaks of: exact place, scale and texture.
    """

    kind: str
    attributes: Mapping[str, str]
    mood: str
    seed: int


@dataclass(frozen=True)
class World:
    """The values each slot may take (a subset of `SLOTS`), the kinds and the moods."""

    slots: Mapping[str, tuple[str, ...]]
    kinds: tuple[str, ...] = KINDS
    moods: tuple[str, ...] = MOODS

    def slots_of(self, kind: str) -> tuple[str, ...]:
        """Return the slots that apply to `kind`, constant ones included."""
        return tuple(s for s in self.slots if kind in SLOTS[s][0])

    def spoken_slots(self, kind: str) -> tuple[str, ...]:
        """Return the slots of `kind` that vary, and so are worth a word."""
        return tuple(s for s in self.slots_of(kind) if len(self.slots[s]) > 1)

    def sample(self, generator: np.random.Generator, mood: str | None = None) -> Scene:
        """Draw a scene with every slot uniform and independent, but for colours that hide a part.

        A flower's centre differs from its petals, and a bird's belly from its wings, since a picture
        could not show them apart.
        """
        kind = str(generator.choice(self.kinds))
        attributes = {s: str(generator.choice(self.slots[s])) for s in self.slots_of(kind)}
        for part, other in HIDING_PAIRS:
            if attributes.get(part) is not None and attributes[part] == attributes[other]:
                attributes[part] = str(generator.choice([v for v in self.slots[part] if v != attributes[other]]))
        mood = mood or str(generator.choice(self.moods))
        return Scene(kind, attributes, mood, int(generator.integers(2**31)))

    def held_out(self, scene: Scene, share: float) -> bool:
        """Return whether the scene's combination of attributes is kept for the test, by hash, whatever the seed.

        `share` in [0, 1] is the part of all combinations that no training row may show. The mood is
        not part of a combination.
        """
        key = scene.kind + "|" + "|".join(f"{s}={scene.attributes[s]}" for s in self.spoken_slots(scene.kind))
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < share * 2**32


def species(scene: Scene) -> str:
    """Return the class label of a scene: the kind and its colours, as a species is told by its plumage."""
    parts = [scene.attributes[s] for s in COLOUR_SLOTS if s in scene.attributes]
    return "-".join([scene.kind, *parts])
