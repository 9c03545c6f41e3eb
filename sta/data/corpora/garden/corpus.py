"""Garden as a corpus: scenes drawn, described in every language and spoken in many voices, shard by shard.

Everything of a row follows from the recipe's seed and the row's number, so that any process can make
any shard, and an interrupted build goes on with the shards it lacks.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sta.config.cards import LanguageCard, load_language
from sta.config.recipe import GardenCorpus, WorldSettings
from sta.data.audio import wav_bytes
from sta.data.corpora.garden.draw import draw
from sta.data.corpora.garden.grammar import Grammar
from sta.data.corpora.garden.prosody import delivery
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
from sta.data.rows import write_shard
from sta.data.synthesis.base import Voice, synthesiser
from sta.data.synthesis.espeak import speakers
from sta.errors import RecipeError

SCENES_PER_SHARD = 100
MAX_DRAWS = 10_000


def world_of(settings: WorldSettings) -> World:
    """The world that a recipe asks for.

    Raises:
        RecipeError: a slot, kind, mood or value that Garden does not know; names the known ones.
    """
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


@dataclass(frozen=True)
class Garden:
    """Everything a process needs to make any shard."""

    settings: GardenCorpus
    languages: tuple[str, ...]
    seed: int

    def plans(self) -> list[SplitPlan]:
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

    def shards(self) -> list[tuple[SplitPlan, range]]:
        """The shards, in the order of the corpus: a split and a range of its scenes each."""
        return [
            (plan, range(start, min(start + SCENES_PER_SHARD, plan.scenes)))
            for plan in self.plans()
            for start in range(0, plan.scenes, SCENES_PER_SHARD)
        ]

    def rows(self, plan: SplitPlan, scenes: range) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The rows of some scenes of a split, and the truth about each."""
        maker = _Maker(self, plan)
        return [pair for number in scenes for pair in maker.rows(number)]

    def write(self, number: int, folder: Path) -> int:
        """Make shard `number` in `folder` unless it is there; returns its scenes."""
        plan, scenes = self.shards()[number]
        path = folder / "shards" / f"{number:05d}.arrow"
        if not path.exists():
            made = self.rows(plan, scenes)
            truths = "".join(json.dumps(t, ensure_ascii=False) + "\n" for _, t in made)
            (folder / "attributes" / f"{number:05d}.jsonl").write_text(truths, encoding="utf-8")
            write_shard([row for row, _ in made], path)
        return len(scenes)


class _Maker:
    """Makes the rows of one split's scenes."""

    def __init__(self, garden: Garden, plan: SplitPlan):
        self.garden, self.plan = garden, plan
        self.world = world_of(garden.settings.world)
        self.cards = {code: load_language(code) for code in garden.languages}
        self.grammars = {code: Grammar(card, self.world) for code, card in self.cards.items()}

    def rows(self, number: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(row, truth) pairs of one scene: a caption per language, then its short phrases."""
        rng = np.random.default_rng([self.garden.seed, zlib.crc32(self.plan.name.encode()), number])
        scene = self._scene(rng)
        if self.plan.name == "swap":
            yield from self._swap(scene, number, rng)
            return
        picture = _png(scene, self.garden.settings.size)
        for code in self.cards:
            yield self._row(scene, picture, code, f"{number:06d}", self._caption(scene, rng), rng)
            for phrase in range(self.plan.phrases):
                yield self._row(scene, picture, code, f"{number:06d}-p{phrase}", self._phrase(scene, rng), rng)

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
        """What a full caption says: every attribute that varies, each left out now and then, but never all."""
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
        wording: int | None = None, voice_seed: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
        wording = int(rng.integers(2**31)) if wording is None else wording
        voice_seed = int(rng.integers(2**31)) if voice_seed is None else voice_seed
        text = self.grammars[code].describe(scene.kind, said, np.random.default_rng(wording))
        others = self.garden.settings.other_engines if self.plan.name == "train" else 0.0
        audio, speaker = speak(
            self.cards[code], text, scene.mood, voice_seed, self.plan.new_voices, self.garden.settings.tempo, others
        )
        row = {
            "id": f"{self.plan.name}-{name}-{code}", "image": {"bytes": picture, "path": None},
            "audio": {"bytes": wav_bytes(audio), "path": None}, "text": text, "language": code, "speaker": speaker,
            "mood": scene.mood, "label": species(scene), "image_id": f"{self.plan.name}-{name.split('-p')[0]}",
            "split": self.plan.name,
        }  # fmt: skip
        return row, {"id": row["id"], "kind": scene.kind, "attributes": dict(scene.attributes), "said": said}

    def _other_colours(self, scene: Scene, slot: str) -> list[str]:
        """Colours that a part may take instead, so that it still differs from the part beside it."""
        neighbour = {a: b for pair in HIDING_PAIRS for a, b in (pair, pair[::-1])}.get(slot, slot)
        taken = (scene.attributes[slot], scene.attributes[neighbour])
        return [c for c in self.world.slots[slot] if c not in taken]

    def _swap(
        self, scene: Scene, number: int, rng: np.random.Generator
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Two recordings in one voice and wording that differ in one colour word, per language."""
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


def speak(
    card: LanguageCard, text: str, mood: str, seed: int, new_voice: bool, tempo: float = 1.0, others: float = 0.0
) -> tuple[np.ndarray, str]:
    """Say `text` in a mood, in a voice drawn by `seed` from the training or the test speakers.

    Args:
        others: chance of one of the card's other engines, if it names any.

    Returns:
        The waveform, float32 [T] at 16 kHz, and the speaker's name.
    """
    rng = np.random.default_rng(seed)
    by_other = bool(card.speech.other_engines) and np.random.default_rng([seed, 1]).random() < others
    pool = other_speakers(card) if by_other else _speakers(card)[new_voice]
    engine, voice = pool[int(rng.integers(len(pool)))]
    pace = round(card.speech.words_per_minute * tempo)
    return synthesiser(engine).speak(text, voice, delivery(mood, rng), pace), voice.name


def _speakers(card: LanguageCard) -> tuple[list[tuple[str, Voice]], list[tuple[str, Voice]]]:
    """Training and test speakers of the card's own engine."""
    train, test = _named(tuple(card.speech.voices), tuple(card.speech.test_voices))
    return [(card.speech.synthesiser, v) for v in train], [(card.speech.synthesiser, v) for v in test]


def other_speakers(card: LanguageCard) -> list[tuple[str, Voice]]:
    """Training speakers of the card's other engines, with the engine of each.

    Raises:
        VoiceError: an engine is not installed or lacks an accent.
    """
    return [(e, v) for e, accents in card.speech.other_engines.items() for v in synthesiser(e).voices(accents)]


@lru_cache
def _named(voices: tuple[str, ...], test_voices: tuple[str, ...]) -> tuple[list[Voice], list[Voice]]:
    return speakers(voices, test_voices)


def _png(scene: Scene, size: int) -> bytes:
    buffer = io.BytesIO()
    draw(scene, size).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
