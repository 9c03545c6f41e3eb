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
from sta.config.recipe import GardenCorpus, Recipe, load_recipe
from sta.data.audio import wav_bytes
from sta.data.corpora.garden.corpus import speak, world_of
from sta.data.corpora.garden.grammar import Grammar
from sta.data.corpora.garden.world import World
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
    """The release that draws, the world it knows and the reader that marks its drawings.

    Args:
        folder: a release trained on Garden. trust_remote_code: as of `from_pretrained`.

    Raises:
        WeightsError: the release is broken, or was not trained on Garden.
    """

    def __init__(self, folder: Path, trust_remote_code: bool = False):
        self.pipe: SpeechToImagePipeline = load_release(folder, trust_remote_code)
        self.corpus = _garden(folder, load_recipe(folder / "recipe.yaml"))
        self.world: World = world_of(self.corpus.world)
        self.classifier = load_network(AttributeClassifier, classifier_of(folder) or folder)

    def sentences(self, languages: Sequence[str], seed: int, count: int = CAPTIONS) -> Iterator[Sentence]:
        """Captions of scenes whose combination of attributes was kept out of training, in turn in every mood."""
        for code in languages:
            rng = np.random.default_rng(seed)  # the same scenes in every language
            grammar = Grammar(self.pipe.pack(code).card, self.world)
            for number in range(count):
                mood = self.world.moods[number % len(self.world.moods)]
                scene = self.world.sample(rng, mood)
                while not self.world.held_out(scene, self.corpus.held_out):
                    scene = self.world.sample(rng, mood)
                said = {slot: scene.attributes[slot] for slot in self.world.spoken_slots(scene.kind)}
                text = grammar.describe(scene.kind, said, np.random.default_rng([seed, number]))
                yield Sentence(text, code, mood, seed + number, {"kind": scene.kind, **said})

    def say(self, text: str, language: str, mood: str | None, seed: int) -> list[Sentence]:
        """A text of the user's own in one mood, or in each that the release knows.

        Raises:
            WeightsError: the release does not know the language.
            VoiceError: it does not know the mood, or there is no text.
        """
        self.pipe.pack(language)
        if mood is not None and mood not in self.world.moods:
            raise VoiceError(f"mood '{mood}' is not one of this release's: {', '.join(self.world.moods)}")
        if not text.strip():
            raise VoiceError("--say has no words in it; say a sentence, such as 'a bird with a red head'")
        return [Sentence(text, language, m, seed) for m in ([mood] if mood else self.world.moods)]

    def example(self, sentence: Sentence, samples: int) -> Example:
        """Say a sentence in a voice that training never heard, draw it several times and read the drawings."""
        card: LanguageCard = self.pipe.pack(sentence.language).card
        wave, speaker = speak(card, sentence.text, sentence.mood, sentence.seed, True, self.corpus.tempo)
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
            heard=f"{UNHEARD} {speaker}", audio=wav_bytes(wave), truth=None, said=sentence.said,
            drawn=[Image.fromarray(p.numpy()) for p in to_pixels(pictures)], read=self.classifier.predict(pictures),
        )  # fmt: skip


def _garden(folder: Path, recipe: Recipe) -> GardenCorpus:
    if not isinstance(recipe.corpus, GardenCorpus) or classifier_of(folder) is None:
        raise WeightsError(
            f"{folder}: was not trained on Garden, so the demo has nothing to say; draw recordings with `sta draw`"
        )
    return recipe.corpus


def score(examples: Sequence[Example]) -> tuple[int, int]:
    """How many of all attributes and moods were drawn right, of how many."""
    marks = [
        seen.get(slot) == value
        for e in examples
        for seen in e.read
        for slot, value in [*e.said.items(), ("mood", e.mood)]
    ]
    return sum(marks), len(marks)


def write_demo(folder: Path, examples: Sequence[Example], title: str) -> Path:
    """Write `demo.png` and the page `demo.html`, which needs no network; returns the page.

    Raises:
        StaError: the folder cannot be written.
    """
    right, marked = score(examples)
    meta = {"right": f"{right} of {marked} attributes and moods, by the attribute classifier"}
    write_grid(folder / "demo.png", examples)
    write_page(folder / "demo.html", Report(meta, []), examples, title)
    return folder / "demo.html"
