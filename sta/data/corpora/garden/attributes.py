"""What Garden can do with what is true of its pictures: draw fresh ones, and say their captions anew.

Recordings are spoken slower, faster, in two sentences, in another mood, or by an engine never heard in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from sta.config.cards import LanguageCard
from sta.config.limits import SAMPLE_RATE
from sta.data.corpora.base import Attributes, Utterance
from sta.data.corpora.garden.draw import draw
from sta.data.corpora.garden.grammar import Grammar
from sta.data.corpora.garden.prosody import delivery, speak
from sta.data.corpora.garden.world import World
from sta.data.rows import Truth
from sta.data.synthesis.base import Synthesiser, Voice, Wave, synthesiser
from sta.data.synthesis.espeak import speakers
from sta.data.synthesis.flite import Flite, command

PACES = {"slow": 0.75, "fast": 1.3}
BREATH = 0.4  # seconds between two sentences
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
    def _grammars(self) -> dict[str, Grammar]:
        return {code: Grammar(card, self.world) for code, card in self.cards.items()}

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
        return self._grammars[language].describe(truth.kind, truth.said, rng, pattern=0 if plain else None)

    def speak(self, language: str, text: str, mood: str, seed: int) -> tuple[Wave, str]:
        """Say a text by one of the test speakers."""
        return speak(self.cards[language], text, mood, seed, True, self.tempo)

    def respeak(self, language: str, condition: str, utterance: Utterance, rng: np.random.Generator) -> Wave:
        """Say a recording's text anew in its mood: `slow`, `fast`, in `two-sentences`, by `flite`, or as it was."""
        texts, speech = [utterance.text], self.cards[language].speech
        if condition == "two-sentences":
            texts = self._halves(language, utterance.truth, rng)
        engine, voice = _flite(language, rng) if condition == "flite" else self._voice(language, utterance.speaker)
        pace = round(speech.words_per_minute * self.tempo * PACES.get(condition, 1.0))
        waves = [engine.speak(text, voice, delivery(utterance.mood, rng), pace) for text in texts]
        pause = np.zeros(round(BREATH * SAMPLE_RATE), np.float32)
        return np.concatenate([waves[0], *(part for wave in waves[1:] for part in (pause, wave))])

    def _halves(self, language: str, truth: Truth, rng: np.random.Generator) -> list[str]:
        """Write half of what is said in one sentence, and the other half in the next."""
        slots, middle = list(truth.said), len(truth.said) // 2
        return [
            self._grammars[language].describe(truth.kind, {s: truth.said[s] for s in half}, rng)
            for half in (slots[:middle], slots[middle:])
        ]

    def _voice(self, language: str, name: str) -> tuple[Synthesiser, Voice]:
        speech = self.cards[language].speech
        train, test = speakers(speech.voices, speech.test_voices)
        return synthesiser(speech.synthesiser), next(voice for voice in [*train, *test] if voice.name == name)


def _flite(language: str, rng: np.random.Generator) -> tuple[Synthesiser, Voice]:
    """Return the engine that is never trained on, and one of its voices; raises `VoiceError` where it has none."""
    voices = Flite().voices([language])
    command()
    return Flite(), voices[int(rng.integers(len(voices)))]
