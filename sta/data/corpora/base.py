"""The interface of a corpus: what a recipe's section `corpus` names, as rows that any process can make.

A corpus is one file with two classes: its settings, a `CorpusSettings`, and the `CorpusSource` that has them as
`Settings`. `corpus.name` finds it by its module's name in this package, or as `module:Class` wherever it lies. To write
one, give `shards()`, whose rows name at least `id`, `image`, `language`, `image_id` and `split`; the rest has defaults.

Phrases, moods and labels are columns of the rows, null where a corpus has none. Whether a corpus knows the attributes
of its pictures is `CorpusSettings.knows_attributes`, and what it can do with them `CorpusSource.attributes`.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from sta.config.cards import LanguageCard
from sta.config.recipe import CorpusSettings
from sta.config.variants import find_variant
from sta.data.cache import write_atomically
from sta.data.row_checks import check_rows
from sta.data.rows import Corpus, Row, Sample, Truth, payload, write_shard
from sta.data.speech import Speech
from sta.data.unreadable import REPORT, Found, readable, settle
from sta.errors import CorpusError

Wave = NDArray[np.float32]


class CorpusShard(ABC):
    """A piece of a corpus that one process makes; it is sent to that process by pickle.

    Attributes:
        trusted: the files of its rows are known to be whole, and are not read before the rows are kept.
    """

    trusted: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Return how much work it is, in rows, about."""

    @abstractmethod
    def samples(self) -> Iterator[Found]:
        """Yield its rows, the same every time, and what of it is lost."""

    def write(self, number: int, folder: Path) -> int:
        """Make shard `number` of the corpus in `folder`, unless it is there; returns its length."""
        path = folder / "shards" / f"{number:05d}.arrow"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_shard(self._kept(number, folder), path)
        return len(self)

    def _kept(self, number: int, folder: Path) -> Iterator[Row]:
        """Yield the rows that can be read; what is known of their pictures is written at the end."""
        truths = []
        for sample in readable(self.samples(), folder / "unreadable" / f"{number:05d}.jsonl", self.trusted):
            if sample.truth is not None:
                truths.append(json.dumps({"id": sample.row["id"], **asdict(sample.truth)}, ensure_ascii=False) + "\n")
            yield sample.row
        if truths:
            write_atomically(folder / "attributes" / f"{number:05d}.jsonl", "".join(truths).encode())


@dataclass(frozen=True)
class SpokenShard(CorpusShard):
    """A shard whose written rows are spoken."""

    shard: CorpusShard
    speech: Speech
    trusted: bool = False

    def __len__(self) -> int:
        return len(self.shard)

    def samples(self) -> Iterator[Found]:
        """Yield the rows; those with a text and no recording have one."""
        for found in self.shard.samples():
            yield replace(found, row=self.speech.speak(found.row)) if isinstance(found, Sample) else found


class World(Protocol):
    """What can be true of a corpus's pictures."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of pictures."""

    @property
    def moods(self) -> tuple[str, ...]:
        """The moods that speech has and pictures show."""

    @property
    def slots(self) -> Mapping[str, tuple[str, ...]]:
        """Slot -> its values."""

    def slots_of(self, kind: str) -> tuple[str, ...]:
        """Return the slots that a kind has."""


@dataclass(frozen=True)
class Utterance:
    """What is known of a recording: its words, its speaker's name, its mood, and what is true of its picture."""

    text: str
    speaker: str
    mood: str
    truth: Truth


class Attributes(ABC):
    """What a corpus can do that knows the attributes of its pictures: be judged, and be spoken anew."""

    world: World

    def slots(self) -> dict[str, list[str]]:
        """Return what an attribute classifier answers, with the values: kind, every slot that varies, mood."""
        varying = {slot: list(values) for slot, values in self.world.slots.items() if len(values) > 1}
        return {"kind": list(self.world.kinds), **varying, "mood": list(self.world.moods)}

    @abstractmethod
    def draw(self, rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], dict[str, str]]:
        """Draw a fresh picture, uint8 [size, size, 3]; returns the values of the slots that apply to it, too."""

    @abstractmethod
    def unseen(self, rng: np.random.Generator, mood: str) -> Truth:
        """Draw a combination of attributes that no training row has."""

    @abstractmethod
    def describe(self, language: str, truth: Truth, rng: np.random.Generator, plain: bool = False) -> str:
        """Write a caption of what is said of a picture; in the language's plainest sentence, if that is asked for."""

    @abstractmethod
    def speak(self, language: str, text: str, mood: str, seed: int) -> tuple[Wave, str]:
        """Say a text in a voice that training never has; returns the waveform and the speaker's name."""

    @abstractmethod
    def respeak(self, language: str, condition: str, utterance: Utterance, rng: np.random.Generator) -> Wave:
        """Say a recording's text anew, as a condition of the evaluation has it; raises `VoiceError` if it cannot."""


@dataclass(frozen=True)
class Outline:
    """A corpus in numbers before it is prepared, for `sta plan`.

    Attributes:
        known_by: how this is known, in words.
        recordings: of training, in all languages. others: those of validation and test.
        pictures: of all splits.
        moods: how many training names. attributes: attribute -> its values, the unsaid one among them.
        sample: some rows.
        seconds: that making the sample took on one core; None where rows are only read.
    """

    known_by: str
    recordings: int
    others: int
    pictures: int
    moods: int
    attributes: dict[str, int]
    sample: list[Row]
    seconds: float | None = None


@dataclass(frozen=True)
class DataCard:
    """What a model card says of the corpus.

    Attributes:
        name: in words, such as `Garden`.
        dataset: its id on the Hub, or another short name.
        description: what it is, as a cell of a table.
        licences: each part's name -> its licence as the Hub writes it (`cc-by-4.0`); None where it is not known.
        limits: how far what was trained on it reaches, as the end of a sentence; may be empty.
    """

    name: str
    dataset: str
    description: str
    licences: dict[str, str | None]
    limits: str = ""


class CorpusSource(ABC):
    """A corpus as its settings describe it; picklable.

    Args:
        settings: a `Settings`, validated.
        cards: the languages of the recipe by code; empty where nothing has to be said.
        seed: of the recipe.

    Attributes:
        by_shards: training reads it in an order in which each rank has shards of its own.
        weights: of the parts that its rows come from, in proportion to how often training draws from each.
        max_unreadable: share of samples that cannot be read above which preparation stops.
        alone: it has to have all that a stage needs, which a part of a mixture or what is only measured need not.
        speech: what speaks its written rows; None: nothing does.
    """

    Settings: ClassVar[type[CorpusSettings]] = CorpusSettings
    settings: CorpusSettings
    by_shards: bool = False
    weights: tuple[float, ...] = (1.0,)
    max_unreadable: float = 0.0
    alone: bool = True

    def __init__(self, settings: CorpusSettings, cards: Mapping[str, LanguageCard], seed: int):
        self.settings, self.cards, self.seed = settings, cards, seed
        self.speech = Speech(settings.speech, cards, seed) if settings.speech else None

    def check(self) -> None:  # noqa: B027 - a corpus that names nothing has nothing to look for
        """Refuse settings that name what is not there, before a folder is made; raises a `StaError`."""

    def version(self) -> object:
        """Return what tells this state of the corpus from any other, without reading it whole; JSON-like.

        Raises:
            RecipeError: an engine that has to speak is missing.
        """
        own = self.settings.model_dump(mode="json", exclude={"speech", *self.settings.card_only})
        return {**own, "speech": self.speech.version()} if self.speech else own

    @abstractmethod
    def shards(self) -> Sequence[CorpusShard]:
        """Return its pieces, in the order of its rows; the same in every process."""

    def spoken_shards(self) -> Sequence[CorpusShard]:
        """Return its pieces with their written rows spoken, if the settings ask for that."""
        speech, shards = self.speech, self.shards()
        return [SpokenShard(shard, speech, shard.trusted) for shard in shards] if speech else shards

    def speeches(self) -> list[Speech]:
        """Return what speaks its written rows."""
        return [self.speech] if self.speech else []

    def finish(self, partial: Path) -> None:
        """Join what all shards left in a folder, and refuse a corpus that lost too much or lacks what a stage needs.

        Raises:
            CorpusError: one sentence.
        """
        if parts := sorted((partial / "attributes").glob("*.jsonl")):
            write_atomically(partial / "attributes.jsonl", b"".join(part.read_bytes() for part in parts))
        settle(partial, self.limits(partial), partial.with_name(REPORT))
        corpus = Corpus(partial)
        trained = list(self.cards) if self.alone else ()
        check_rows(f"corpus {self.settings.name}", corpus.column, corpus.has_audio, trained)

    def limits(self, partial: Path) -> list[tuple[int, float]]:
        """Return the number of shards of each part, and the share of its samples that may be lost."""
        return [(Corpus(partial).shards, self.max_unreadable)]

    def attributes(self) -> Attributes | None:
        """Return what it can do with its pictures' attributes; None where `Settings.knows_attributes` is false."""
        return None

    def things(self) -> dict[str, list[str]]:
        """Return language -> names of some things that its pictures show, the same in every language, for a demo."""
        return {}

    def outline(self, most: int) -> Outline:
        """Count the corpus by the sizes of its shards and its first rows, of which the outline has at most `most`."""
        shards = self.shards()
        found = chain.from_iterable(shard.samples() for shard in shards)
        rows = [item.row for item in islice((f for f in found if isinstance(f, Sample)), most)]
        if not rows:
            raise CorpusError(f"corpus {self.settings.name}: no row of it can be read")
        known_by = f"from {len(shards)} shards and the first {len(rows)} rows"
        return outline_of(rows, rows, sum(map(len, shards)) / len(rows), known_by, self.speech)

    def card(self) -> DataCard:
        """Return what a model card says of it."""
        name = self.settings.name.rpartition(":")[2]
        return DataCard(name, name.lower(), f"{name}, pictures of {self.settings.size} px", {f"corpus {name}": None})


def outline_of(
    rows: Sequence[Row], sample: Sequence[Row], times: float, known_by: str, speech: Speech | None = None
) -> Outline:
    """Count rows, of which the corpus holds `times` as many; those of the sample are spoken, if something speaks."""
    started, speaks = time.perf_counter(), speech.speaks if speech else lambda row: False
    sample = [speech.speak(row) for row in sample] if speech else sample
    seconds = time.perf_counter() - started if speech else None
    train = [row["split"] == "train" for row in rows]
    spoken = [payload(row.get("audio")) is not None or speaks(row) for row in rows]
    recordings = sum(t and s for t, s in zip(train, spoken, strict=True))
    return Outline(
        known_by, round(times * recordings), round(times * (sum(spoken) - recordings)),
        round(times * len({row["image_id"] for row in rows})),
        len({row.get("mood") for row, t in zip(rows, train, strict=True) if t} - {None}), {}, list(sample), seconds,
    )  # fmt: skip


def open_source(settings: CorpusSettings, cards: Mapping[str, LanguageCard], seed: int) -> CorpusSource:
    """Return the corpus that settings describe."""
    return find_variant("sta.data.corpora", settings.name, CorpusSource, "corpus.name")(settings, cards, seed)
