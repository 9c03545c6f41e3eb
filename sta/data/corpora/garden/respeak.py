"""Garden's test recordings spoken anew: slower, faster, in two sentences, or by an engine never heard in training."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from sta.config.cards import LanguageCard
from sta.config.limits import SAMPLE_RATE
from sta.data.corpora.base import Utterance
from sta.data.corpora.garden.grammar import Grammar
from sta.data.corpora.garden.prosody import delivery
from sta.data.corpora.garden.world import World
from sta.data.synthesis.base import Synthesiser, Voice, Wave, synthesiser
from sta.data.synthesis.espeak import speakers
from sta.data.synthesis.flite import Flite, command

SLOW, FAST = 0.75, 1.3
BREATH = 0.4  # seconds between two sentences


class Respeaker:
    """Speaks Garden's captions anew in one language.

    Args:
        card: the language, with its voices.
        world: what its grammar must be able to say.
        tempo: the recipe's factor on the language's words per minute.
    """

    def __init__(self, card: LanguageCard, world: World, tempo: float):
        self.card, self.grammar, self.tempo = card, Grammar(card, world), tempo
        train, test = speakers(card.speech.voices, card.speech.test_voices)
        self.voices = {voice.name: voice for voice in [*train, *test]}

    def speak(self, condition: str, utterance: Utterance, rng: np.random.Generator) -> Wave:
        """Say the recording under `condition`, one of `RESPOKEN`; float32 [T] at 16 kHz.

        Raises:
            VoiceError: the condition needs an engine that is not installed or does not speak the language.
        """
        return RESPOKEN[condition](self, utterance, rng)

    def at_pace(self, utterance: Utterance, pace: float, rng: np.random.Generator) -> Wave:
        """Say the same words in the same voice and mood, at a pace."""
        return self._say(utterance.text, self.voices[utterance.speaker], utterance.mood, pace, rng)

    def in_two_sentences(self, utterance: Utterance, rng: np.random.Generator) -> Wave:
        """Say half of it in one sentence, the other half in the next, in one voice and mood."""
        said = utterance.truth.said
        slots = list(said)
        halves = [slots[: len(slots) // 2], slots[len(slots) // 2 :]]
        voice = self.voices[utterance.speaker]
        sentences = [
            self._say(
                self.grammar.describe(utterance.truth.kind, {s: said[s] for s in half}, rng),
                voice, utterance.mood, 1.0, rng,
            )
            for half in halves
        ]  # fmt: skip
        pause = np.zeros(round(BREATH * SAMPLE_RATE), np.float32)
        return np.concatenate([sentences[0], pause, sentences[1]])

    def by_flite(self, utterance: Utterance, rng: np.random.Generator) -> Wave:
        """Say the same words by an engine that is never trained on."""
        engine = Flite()
        voices = engine.voices([self.card.code])
        command()
        return self._say(utterance.text, voices[int(rng.integers(len(voices)))], utterance.mood, 1.0, rng, engine)

    def _say(
        self, text: str, voice: Voice, mood: str, pace: float, rng: np.random.Generator,
        engine: Synthesiser | None = None,
    ) -> Wave:  # fmt: skip
        engine = engine or _engine(self.card.speech.synthesiser)
        words_per_minute = round(self.card.speech.words_per_minute * self.tempo * pace)
        return engine.speak(text, voice, delivery(mood, rng), words_per_minute)


@cache
def _engine(name: str) -> Synthesiser:
    return synthesiser(name)


#: condition of a report -> how a recording is spoken for it.
RESPOKEN: dict[str, Callable[[Respeaker, Utterance, np.random.Generator], Wave]] = {
    "same": lambda speaker, utterance, rng: speaker.at_pace(utterance, 1.0, rng),
    "slow": lambda speaker, utterance, rng: speaker.at_pace(utterance, SLOW, rng),
    "fast": lambda speaker, utterance, rng: speaker.at_pace(utterance, FAST, rng),
    "two-sentences": Respeaker.in_two_sentences,
    "flite": Respeaker.by_flite,
}
