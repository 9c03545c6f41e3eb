"""What `sta demo` does: says captions in every language of a release, draws them, and writes a page to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from sta.data.corpora.base import open_source
from sta.errors import VoiceError, WeightsError
from sta.inference.release import load_release
from sta.inference.weights import classifier_of
from sta.metrics.page import Example, write_grid, write_page
from sta.metrics.rows import Report
from sta.models.attribute_classifier import AttributeClassifier
from sta.models.loading import load_network
from sta.models.vq import to_pixels

if TYPE_CHECKING:
    from sta.inference.pipeline import SpeechToImagePipeline

CAPTIONS = 6
UNHEARD = "unheard voice"


@dataclass(frozen=True)
class Sentence:
    """One recording of the demo: what is said and how; `said` is empty for a text of the user's own."""

    text: str
    language: str
    mood: str
    seed: int
    said: dict[str, str] = field(default_factory=dict)


class Demo:
    """The release that draws, what its corpus knows of pictures, and the classifier that scores its drawings."""

    def __init__(self, folder: Path, trust_remote_code: bool = False):
        self.pipe: SpeechToImagePipeline = load_release(folder, trust_remote_code)
        recipe, cards = load_recipe(folder / "recipe.yaml"), {c: pack.card for c, pack in self.pipe.languages.items()}
        attributes = open_source(recipe.corpus, cards, recipe.seed).attributes()
        if attributes is None or (judge := classifier_of(folder)) is None:
            raise WeightsError(
                f"{folder}: was not trained on Garden, so the demo has nothing to say; draw recordings with `sta draw`"
            )
        self.attributes, self.moods = attributes, attributes.world.moods
        self.classifier = load_network(AttributeClassifier, judge)

    def sentences(self, languages: Sequence[str], seed: int, count: int = CAPTIONS) -> Iterator[Sentence]:
        """Yield captions of scenes whose combination of attributes training never had, in turn in every mood."""
        for code in languages:
            self.pipe.pack(code)
            rng = np.random.default_rng(seed)  # the same scenes in every language
            for number in range(count):
                mood = self.moods[number % len(self.moods)]
                truth = self.attributes.unseen(rng, mood)
                text = self.attributes.describe(code, truth, np.random.default_rng([seed, number]))
                yield Sentence(text, code, mood, seed + number, {"kind": truth.kind, **truth.said})

    def say(self, text: str, language: str, mood: str | None, seed: int) -> list[Sentence]:
        """Return a text of the user's own in one mood, or in each that the release knows."""
        self.pipe.pack(language)
        if mood is not None and mood not in self.moods:
            raise VoiceError(f"mood '{mood}' is not one of this release's: {', '.join(self.moods)}")
        if not text.strip():
            raise VoiceError("--say has no words in it; say a sentence, such as 'a bird with a red head'")
        return [Sentence(text, language, m, seed) for m in ([mood] if mood else self.moods)]

    def example(self, sentence: Sentence, samples: int) -> Example:
        """Say a sentence in a voice that training never heard, draw it several times and classify the drawings."""
        card: LanguageCard = self.pipe.pack(sentence.language).card
        wave, speaker = self.attributes.speak(sentence.language, sentence.text, sentence.mood, sentence.seed)
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
            predicted=self.classifier.predict(pictures),
        )  # fmt: skip


def score(examples: Sequence[Example]) -> tuple[int, int]:
    """Return how many of all attributes and moods were drawn right, of how many."""
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
    meta = {"right": f"{right} of {marked} attributes and moods, by the attribute classifier"}
    write_grid(folder / "demo.png", examples)
    write_page(folder / "demo.html", Report(meta, []), examples, title)
    return folder / "demo.html"
