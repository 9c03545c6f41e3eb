"""What `sta demo` does: says things in every language of some releases, draws them, and writes a page to look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from sta.config.cards import LanguageCard
from sta.config.limits import MAX_SECONDS, SAMPLE_RATE
from sta.config.recipe import load_recipe
from sta.data.audio import wav_bytes
from sta.data.corpora.base import Attributes, Wave, open_source
from sta.data.corpora.garden.prosody import speak as say
from sta.errors import VoiceError, WeightsError
from sta.inference.release import load_release
from sta.inference.weights import GARDEN, classifier_of
from sta.metrics.page import Example, write_grid, write_page
from sta.metrics.rows import Report
from sta.models.attribute_classifier import AttributeClassifier
from sta.models.loading import load_network
from sta.models.vq import to_pixels

if TYPE_CHECKING:
    from sta.inference.pipeline import SpeechToImagePipeline

CAPTIONS, NAMES = 6, 8  # said in each language; in all languages together, one in each at least
UNHEARD = "unheard voice"
PLAIN = "neutral"  # the mood where a release knows none


@dataclass(frozen=True)
class Sentence:
    """One recording of the demo: what is said and how; `said` is empty for a text of the user's own."""

    text: str
    language: str
    mood: str
    seed: int
    said: dict[str, str] = field(default_factory=dict)


class Said(ABC):
    """What there is to say to a release, by its corpus.

    Attributes:
        moods: those that it can be said in.
    """

    moods: Sequence[str] = (PLAIN,)

    @abstractmethod
    def sentences(self, languages: Sequence[str], seed: int, count: int | None = None) -> Iterator[Sentence]:
        """Yield `count` sentences in each language; None: some."""

    @abstractmethod
    def speak(self, sentence: Sentence) -> tuple[Wave, str]:
        """Say a sentence in a voice that training never heard; returns the waveform and the speaker's name."""


class Captions(Said):
    """Captions of pictures whose combination of attributes training never had, in turn in every mood."""

    def __init__(self, attributes: Attributes):
        self.attributes, self.moods = attributes, attributes.world.moods

    def sentences(self, languages: Sequence[str], seed: int, count: int | None = None) -> Iterator[Sentence]:
        """Yield captions of the same pictures in every language."""
        for code in languages:
            rng = np.random.default_rng(seed)
            for number in range(count or CAPTIONS):
                mood = self.moods[number % len(self.moods)]
                truth = self.attributes.unseen(rng, mood)
                text = self.attributes.describe(code, truth, np.random.default_rng([seed, number]))
                yield Sentence(text, code, mood, seed + number, {"kind": truth.kind, **truth.said})

    def speak(self, sentence: Sentence) -> tuple[Wave, str]:
        """Say a caption in its mood."""
        return self.attributes.speak(sentence.language, sentence.text, sentence.mood, sentence.seed)


class Names(Said):
    """Names of things, plainly spoken.

    Args:
        things: language -> names, the same things in every language.
    """

    def __init__(self, things: Mapping[str, Sequence[str]], cards: Mapping[str, LanguageCard]):
        self.things, self.cards = things, cards

    def sentences(self, languages: Sequence[str], seed: int, count: int | None = None) -> Iterator[Sentence]:
        """Yield names in those languages that have them, which take turns at the things."""
        named = [code for code in languages if code in self.things]
        each = count or max(1, NAMES // max(1, len(named)))
        for number in range(seed, seed + each * len(named)):
            code, thing = named[(number - seed) // each], number % len(self.things["en"])
            yield Sentence(self.things[code][thing], code, PLAIN, number, {"kind": self.things["en"][thing]})

    def speak(self, sentence: Sentence) -> tuple[Wave, str]:
        """Say a name by a test speaker of the language's engine."""
        return say(self.cards[sentence.language], sentence.text, sentence.mood, sentence.seed, True)


class Demo:
    """A release that draws, what there is to say to it, and, on Garden, the classifier that scores its drawings."""

    def __init__(self, folder: Path, trust_remote_code: bool = False):
        self.pipe: SpeechToImagePipeline = load_release(folder, trust_remote_code)
        recipe, cards = load_recipe(folder / "recipe.yaml"), {c: pack.card for c, pack in self.pipe.languages.items()}
        source, judge = open_source(recipe.corpus, cards, recipe.seed), classifier_of(folder)
        attributes, things, self.name = source.attributes(), source.things(), recipe.name
        self.classifier = load_network(AttributeClassifier, judge) if attributes and judge else None
        if not (self.classifier or things):
            raise WeightsError(
                f"{folder}: was not trained on Garden or emoji, so the demo has nothing to say; draw recordings with "
                "`sta draw`"
            )
        self.said = Captions(attributes) if attributes and self.classifier else Names(things, cards)

    def takes(self, language: str | None, mood: str | None) -> bool:
        """Return whether it knows a language and a mood, where they are named."""
        return (language is None or language in self.pipe.languages) and (mood is None or mood in self.said.moods)

    def sentences(self, languages: Sequence[str], seed: int, count: int | None = None) -> Iterator[Sentence]:
        """Return what there is to say in some languages, `count` times in each."""
        for code in languages:
            self.pipe.pack(code)
        return self.said.sentences(languages, seed, count)

    def say(self, text: str, language: str, mood: str | None, seed: int) -> list[Sentence]:
        """Return a text of the user's own in one mood, or in each that the release knows."""
        self.pipe.pack(language)
        if mood is not None and mood not in self.said.moods:
            known = ", ".join(self.said.moods)
            way = "" if self.classifier else f"; moods are what the release {GARDEN} knows"
            raise VoiceError(f"mood '{mood}' is not one of this release's: {known}{way}")
        if not text.strip():
            raise VoiceError("--say has no words in it; say a sentence, such as 'a bird with a red head'")
        return [Sentence(text, language, m, seed) for m in ([mood] if mood else self.said.moods)]

    def example(self, sentence: Sentence, samples: int) -> Example:
        """Say a sentence in a voice that training never heard, draw it several times and classify the drawings."""
        card: LanguageCard = self.pipe.pack(sentence.language).card
        wave, speaker = self.said.speak(sentence)
        if len(wave) > MAX_SECONDS * SAMPLE_RATE:
            raise VoiceError(
                f"the text takes {len(wave) / SAMPLE_RATE:.0f} s to say, and at most {MAX_SECONDS:g} s are drawn; give "
                "a shorter text"
            )
        pictures = self.pipe(
            wave, language=sentence.language, num_images_per_prompt=samples, output_type="pt",
            generator=[torch.Generator().manual_seed(sentence.seed + k) for k in range(samples)],
        ).images  # fmt: skip
        pictures = pictures.cpu() * 2 - 1
        return Example(
            caption=sentence.text, language=sentence.language, direction=card.direction, mood=sentence.mood,
            source=f"{UNHEARD} {speaker}", audio=wav_bytes(wave), truth=None, attributes=sentence.said,
            drawn=[Image.fromarray(p.numpy()) for p in to_pixels(pictures)],
            predicted=self.classifier.predict(pictures) if self.classifier else [], release=self.name,
        )  # fmt: skip


def score(examples: Sequence[Example]) -> tuple[int, int]:
    """Return how many of all attributes and moods were drawn right, of how many, where a classifier scored them."""
    marks = [
        seen.get(slot) == value
        for e in examples
        for seen in e.predicted
        for slot, value in [*e.attributes.items(), ("mood", e.mood)]
    ]
    return sum(marks), len(marks)


def write_demo(folder: Path, examples: Sequence[Example], title: str) -> Path:
    """Write `demo.png` and the page `demo.html`, which needs no network; returns the page."""
    right, marked = score(examples)
    meta = {"right": f"{right} of {marked} attributes and moods, by the attribute classifier"} if marked else {}
    write_grid(folder / "demo.png", examples)
    write_page(folder / "demo.html", Report(meta, []), examples, title)
    return folder / "demo.html"
