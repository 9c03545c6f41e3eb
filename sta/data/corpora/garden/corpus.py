"""Garden as a corpus: scenes drawn, described in every language and spoken in many voices, shard by shard.

Everything of a row follows from the recipe's seed and the row's number, so that any process can make
any shard, and an interrupted build goes on with the shards it lacks.
"""

from __future__ import annotations

import io
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from sta.config.recipe import CorpusSettings, Natural, Positive, Share, Strict
from sta.data.audio import wav_bytes
from sta.data.corpora.base import CorpusShard, CorpusSource, DataCard, Outline, outline_of
from sta.data.corpora.garden.attributes import GardenAttributes
from sta.data.corpora.garden.draw import draw
from sta.data.corpora.garden.grammar import Grammar
from sta.data.corpora.garden.prosody import other_speakers, speak
from sta.data.corpora.garden.world import (
    COLOUR_SLOTS,
    COLOURS,
    HIDING_PAIRS,
    KINDS,
    MOODS,
    SLOTS,
    Scene,
    World,
    species,
)
from sta.data.rows import Sample, Truth, file_column
from sta.errors import RecipeError, VoiceError

SCENES_PER_SHARD = 100
MAX_DRAWS = 10_000


class WorldSettings(Strict):
    """Which values Garden's attributes take; a slot left out of `slots` takes every value it knows."""

    colours: list[str] = Field([])  # of every coloured part; empty: all ten
    moods: list[str] = Field([])  # empty: all five
    kinds: list[str] = Field([])  # bird, flower; empty: both
    slots: dict[str, list[str]] = Field({})  # values of one slot, such as pose: [perched]


class GardenSettings(CorpusSettings):
    """Garden: drawn pictures, grammar captions and synthesised speech, built here from nothing."""

    scenes: Positive = 20_000  # training pictures
    phrases: Natural = 1  # short phrases spoken per training picture and language
    omit: Share = 0.1  # chance that a caption leaves an attribute out
    validation: Positive = 200  # validation recordings per language
    test: Positive = 200  # test recordings per language and test split
    swaps: Positive = 50  # pairs per language whose captions differ in one colour word
    held_out: Share = 0.1  # share of attribute combinations kept for the test
    tempo: Annotated[float, Field(gt=0.3, lt=3)] = 1.0  # as a factor of the language card's
    other_engines: Share = 0.0  # share of training recordings by the language card's other engines, if it names any
    world: WorldSettings = WorldSettings()

    @property
    def knows_attributes(self) -> bool:
        """Return true: scenes are made from their attributes."""
        return True


def world_of(settings: WorldSettings) -> World:
    """Return the world that a recipe asks for; a RecipeError about what Garden does not know names what it does."""
    colours = _chosen("corpus.world.colours", settings.colours, COLOURS)
    slots = {}
    for slot, (_, values) in SLOTS.items():
        slots[slot] = colours if values == COLOURS else values
    for slot, values_wanted in settings.slots.items():
        _chosen("corpus.world.slots", [slot], tuple(SLOTS))
        slots[slot] = _chosen(f"corpus.world.slots.{slot}", values_wanted, SLOTS[slot][1])
    for part, other in HIDING_PAIRS:
        same = next((v for v in slots[other] if set(slots[part]) == {v}), None)
        if same:
            raise RecipeError(
                f"key 'corpus.world': {part} and {other} would both be {same}; give {part} a second colour"
            )
    kinds = _chosen("corpus.world.kinds", settings.kinds, KINDS)
    return World(slots, kinds, _chosen("corpus.world.moods", settings.moods, MOODS))


def _chosen(key: str, wanted: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [w for w in wanted if w not in known]
    if unknown:
        raise RecipeError(f"key '{key}' names '{unknown[0]}', which Garden does not know (known: {', '.join(known)})")
    return tuple(wanted) or known


@dataclass(frozen=True)
class SplitPlan:
    """How many scenes a split has and whether its combinations and voices are those of training."""

    name: str
    scenes: int
    phrases: int
    new_combinations: bool
    new_voices: bool


class GardenSource(CorpusSource):
    """Garden in the languages of the cards."""

    Settings: ClassVar[type[CorpusSettings]] = GardenSettings
    settings: GardenSettings

    @cached_property
    def world(self) -> World:
        """What can be drawn and said."""
        return world_of(self.settings.world)

    def check(self) -> None:
        """Refuse a world that a language cannot say, and engines that are not installed."""
        for card in self.cards.values():
            Grammar(card, self.world)
            if self.settings.other_engines:
                try:
                    other_speakers(card)
                except VoiceError as error:
                    raise RecipeError(
                        f"{error}; or say corpus.other_engines=0 and train on the language's own engine"
                    ) from error

    def plans(self) -> list[SplitPlan]:
        """Return the splits, in the order of the corpus."""
        s = self.settings
        return [
            SplitPlan("train", s.scenes, s.phrases, False, False),
            SplitPlan("validation", s.validation, 0, False, False),
            SplitPlan("seen", s.test, 0, False, False),
            SplitPlan("voice", s.test, 0, False, True),
            SplitPlan("combination", s.test, 0, True, False),
            SplitPlan("both", s.test, 0, True, True),
            SplitPlan("swap", s.swaps, 0, True, True),
        ]

    def shards(self) -> list[GardenShard]:
        """Return the shards: a split and a range of its scenes each."""
        return [
            GardenShard(self, plan, range(start, min(start + SCENES_PER_SHARD, plan.scenes)))
            for plan in self.plans()
            for start in range(0, plan.scenes, SCENES_PER_SHARD)
        ]

    def attributes(self) -> GardenAttributes:
        """Return what Garden can do with its pictures' attributes."""
        return GardenAttributes(self.world, self.cards, self.settings.tempo, self.settings.held_out)

    def outline(self, most: int) -> Outline:
        """Count all rows, and make some as the prepare stage does."""
        s, world, count = self.settings, self.world, len(self.cards)
        train, scenes = self.plans()[0], max(1, most // (count * (1 + self.settings.phrases)))
        list(GardenShard(self, train, range(1)).samples())  # the synthesisers start
        started = time.perf_counter()
        rows = [sample.row for sample in GardenShard(self, train, range(min(scenes, train.scenes))).samples()]
        seconds, held_out = time.perf_counter() - started, s.validation + 4 * s.test + 2 * s.swaps
        spoken = {slot for kind in world.kinds for slot in world.spoken_slots(kind)}
        return replace(
            outline_of(rows, rows, 1.0, f"from {len(rows)} recordings made here"), seconds=seconds,
            recordings=s.scenes * (1 + s.phrases) * count, others=held_out * count, pictures=s.scenes + held_out,
            moods=len(world.moods),
            attributes={"kind": len(world.kinds) + 1, **{slot: len(world.slots[slot]) + 1 for slot in sorted(spoken)}},
        )  # fmt: skip

    def card(self) -> DataCard:
        """Return what a model card says of it."""
        made = f"Garden, {self.settings.scenes} pictures of {self.settings.size} px, described and spoken in every "
        return DataCard(
            "Garden", "garden", f"{made}language", {"corpus Garden": "apache-2.0"},
            "drawn birds and flowers, in synthetic voices and in sentences of Garden's grammar",
        )  # fmt: skip


@dataclass(frozen=True)
class GardenShard(CorpusShard):
    """Some scenes of a split."""

    garden: GardenSource
    plan: SplitPlan
    scenes: range
    trusted: bool = True

    def __len__(self) -> int:
        return len(self.scenes) * len(self.garden.cards) * (1 + self.plan.phrases)

    def samples(self) -> Iterator[Sample]:
        """Yield the rows of the scenes."""
        maker = _Maker(self.garden, self.plan)
        return (sample for number in self.scenes for sample in maker.samples(number))


class _Maker:
    """Makes the rows of one split's scenes."""

    def __init__(self, garden: GardenSource, plan: SplitPlan):
        self.garden, self.plan, self.world, self.cards = garden, plan, garden.world, garden.cards
        self.grammars = {code: Grammar(card, self.world) for code, card in self.cards.items()}

    def samples(self, number: int) -> Iterator[Sample]:
        """Yield the rows of one scene: a caption per language, then its short phrases."""
        rng = np.random.default_rng([self.garden.seed, zlib.crc32(self.plan.name.encode()), number])
        scene = self._scene(rng)
        if self.plan.name == "swap":
            yield from self._swap(scene, number, rng)
            return
        picture = _png(scene, self.garden.settings.size)
        for code in self.cards:
            yield self._row(scene, picture, code, f"{number:06d}", self._caption(scene, rng), rng)
            for phrase in range(self.plan.phrases):
                said = self._phrase(scene, rng)
                yield self._row(scene, picture, code, f"{number:06d}-p{phrase}", said, rng, phrase=True)

    def _scene(self, rng: np.random.Generator) -> Scene:
        for _ in range(MAX_DRAWS):
            scene = self.world.sample(rng)
            if self.world.held_out(scene, self.garden.settings.held_out) == self.plan.new_combinations:
                return scene
        which = "held-out" if self.plan.new_combinations else "training"
        raise RecipeError(
            f"corpus.held_out {self.garden.settings.held_out}: no {which} combination is left in this world"
        )

    def _caption(self, scene: Scene, rng: np.random.Generator) -> dict[str, str]:
        """Draw what a full caption says: every attribute that varies, each left out now and then, but never all."""
        slots = self.world.spoken_slots(scene.kind)
        kept = [s for s in slots if rng.random() >= self.garden.settings.omit]
        return {s: scene.attributes[s] for s in kept or slots[:1]}

    def _phrase(self, scene: Scene, rng: np.random.Generator) -> dict[str, str]:
        slots = self.world.spoken_slots(scene.kind)
        count = min(int(rng.integers(1, 3)), len(slots))
        chosen = set(rng.choice(slots, count, replace=False).tolist())
        return {s: scene.attributes[s] for s in slots if s in chosen}

    def _row(
        self, scene: Scene, picture: bytes, code: str, name: str, said: dict[str, str], rng: np.random.Generator,
        wording: int | None = None, voice_seed: int | None = None, phrase: bool = False,
    ) -> Sample:  # fmt: skip
        wording = int(rng.integers(2**31)) if wording is None else wording
        voice_seed = int(rng.integers(2**31)) if voice_seed is None else voice_seed
        text = self.grammars[code].describe(scene.kind, said, np.random.default_rng(wording))
        others = self.garden.settings.other_engines if self.plan.name == "train" else 0.0
        audio, speaker = speak(
            self.cards[code], text, scene.mood, voice_seed, self.plan.new_voices, self.garden.settings.tempo, others
        )
        row = {
            "id": f"{self.plan.name}-{name}-{code}", "image": file_column(picture),
            "audio": file_column(wav_bytes(audio)), "text": text, "language": code, "speaker": speaker,
            "mood": scene.mood, "label": species(scene), "image_id": f"{self.plan.name}-{name.split('-p')[0]}",
            "split": self.plan.name, "phrase": phrase,
        }  # fmt: skip
        return Sample(row, self.plan.name, Truth(scene.kind, dict(scene.attributes), said))

    def _other_colours(self, scene: Scene, slot: str) -> list[str]:
        """Return the colours that a part may take instead, so that it still differs from the part beside it."""
        neighbour = {a: b for pair in HIDING_PAIRS for a, b in (pair, pair[::-1])}.get(slot, slot)
        taken = (scene.attributes[slot], scene.attributes[neighbour])
        return [c for c in self.world.slots[slot] if c not in taken]

    def _swap(self, scene: Scene, number: int, rng: np.random.Generator) -> Iterator[Sample]:
        """Yield two recordings in one voice and wording that differ in one colour word, per language."""
        said = {s: scene.attributes[s] for s in self.world.spoken_slots(scene.kind)}
        free = {s: self._other_colours(scene, s) for s in COLOUR_SLOTS if s in said}
        changeable = [s for s, colours in free.items() if colours]
        if not changeable:
            return  # two colours leave a flower nothing to change to
        slot = str(rng.choice(changeable))
        other = replace(scene, attributes={**scene.attributes, slot: str(rng.choice(free[slot]))})
        for code in self.cards:
            wording, voice = int(rng.integers(2**31)), int(rng.integers(2**31))
            for side, shown in (("a", scene), ("b", other)):
                words = {s: shown.attributes[s] for s in said}
                picture = _png(shown, self.garden.settings.size)
                yield self._row(shown, picture, code, f"{number:06d}{side}", words, rng, wording, voice)


def _png(scene: Scene, size: int) -> bytes:
    buffer = io.BytesIO()
    draw(scene, size).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
