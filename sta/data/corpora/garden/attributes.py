"""What Garden can do with what is true of its pictures: draw fresh ones, and say their captions otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from sta.config.cards import LanguageCard
from sta.data.corpora.base import Attributes, Utterance
from sta.data.corpora.garden.draw import draw
from sta.data.corpora.garden.grammar import Grammar
from sta.data.corpora.garden.prosody import speak
from sta.data.corpora.garden.respeak import Respeaker
from sta.data.corpora.garden.world import World
from sta.data.rows import Truth
from sta.data.synthesis.base import Wave

MAX_DRAWS = 10_000


class GardenAttributes(Attributes):
    """Garden's world in the languages of some cards.

    Args:
        tempo: the recipe's factor on a language's words per minute.
        held_out: share of the combinations of attributes that training does not have.
    """

    world: World

    def __init__(self, world: World, cards: Mapping[str, LanguageCard], tempo: float, held_out: float):
        self.world, self.cards, self.tempo, self.share = world, cards, tempo, held_out

    @cached_property
    def _speakers(self) -> dict[str, Respeaker]:
        return {code: Respeaker(card, self.world, self.tempo) for code, card in self.cards.items()}

    def draw(self, rng: np.random.Generator, size: int) -> tuple[np.ndarray, dict[str, str]]:
        """Draw a fresh picture of any combination, and return its values."""
        scene = self.world.sample(rng)
        return np.asarray(draw(scene, size)), {**scene.attributes, "kind": scene.kind, "mood": scene.mood}

    def unseen(self, rng: np.random.Generator, mood: str) -> Truth:
        """Draw a combination that is held out of training, where any is; all that varies of it is said."""
        for _ in range(MAX_DRAWS):
            if self.world.held_out(scene := self.world.sample(rng, mood), self.share):
                break
        said = {slot: scene.attributes[slot] for slot in self.world.spoken_slots(scene.kind)}
        return Truth(scene.kind, dict(scene.attributes), said)

    def describe(self, language: str, truth: Truth, rng: np.random.Generator, plain: bool = False) -> str:
        """Write a sentence of the language's grammar; the plain one is its first pattern."""
        grammar = Grammar(self.cards[language], self.world)
        return grammar.describe(truth.kind, truth.said, rng, pattern=0 if plain else None)

    def speak(self, language: str, text: str, mood: str, seed: int) -> tuple[Wave, str]:
        """Say a text by one of the test speakers."""
        return speak(self.cards[language], text, mood, seed, True, self.tempo)

    def respeak(self, language: str, condition: str, utterance: Utterance, rng: np.random.Generator) -> Wave:
        """Say a recording's text anew, under a condition of `RESPOKEN`."""
        return self._speakers[language].speak(condition, utterance, rng)
