"""A mixture of corpora: the rows of all, of which training draws each part as often as its weight says.

Ids of rows and pictures begin with the number of their part, such as `0/`. What no row of a part has, such as
attributes, is left out where it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, SerializeAsAny, model_validator

from sta.config.cards import LanguageCard
from sta.config.recipe import CorpusSettings, Strict, read_corpus
from sta.data.cache import write_atomically
from sta.data.corpora.base import Attributes, CorpusShard, CorpusSource, DataCard, Outline, open_source
from sta.data.rows import MIXTURE, Sample
from sta.data.speech import Speech
from sta.data.unreadable import Found, Unreadable
from sta.errors import RecipeError


class Part(Strict):
    """One corpus of a mixture."""

    weight: Annotated[float, Field(gt=0, description="how often training draws from it, against the other parts")] = 1.0
    languages: list[str] | None = Field(None, description="codes of those it is for; null: all of the recipe's")
    corpus: SerializeAsAny[CorpusSettings]

    def source(self, cards: Mapping[str, LanguageCard], seed: int) -> CorpusSource:
        """Return the corpus, as part of a whole in the languages of some cards."""
        own = {code: card for code, card in cards.items() if self.languages is None or code in self.languages}
        source = open_source(self.corpus, own, seed)
        source.alone = False
        return source


class MixtureSettings(CorpusSettings):
    """Several corpora as one; a part that gives no `size` or `speech` has that of the whole."""

    parts: Annotated[list[Part], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _read_parts(cls, given: Any) -> Any:
        """Validate the corpus of each part by what it names, in size and speech of the whole if it gives none."""
        if not isinstance(given, dict) or not isinstance(given.get("parts"), list):
            return given
        whole = {key: given[key] for key in ("size", "speech") if key in given}
        parts = [dict(part) if isinstance(part, dict) else part for part in given["parts"]]
        for number, part in enumerate(parts):
            if isinstance(part, dict) and isinstance(part.get("corpus"), dict):
                part["corpus"] = read_corpus({**whole, **part["corpus"]}, f"corpus.parts.{number}.corpus")
        return {**given, "parts": parts}

    @property
    def knows_attributes(self) -> bool:
        """Return whether the rows of some part do."""
        return any(part.corpus.knows_attributes for part in self.parts)


class MixtureSource(CorpusSource):
    """The rows of several corpora, one after another."""

    Settings: ClassVar[type[CorpusSettings]] = MixtureSettings
    settings: MixtureSettings

    def __init__(self, settings: MixtureSettings, cards: Mapping[str, LanguageCard], seed: int):
        super().__init__(settings, cards, seed)
        self.speech = None  # each part has its own
        self.sources = [part.source(cards, seed) for part in settings.parts]
        self.weights = tuple(part.weight for part in settings.parts)
        self.by_shards = any(source.by_shards for source in self.sources)

    def check(self) -> None:
        """Check every part, and refuse parts that know different attributes: one classifier has to answer for all."""
        for number, (part, source) in enumerate(zip(self.settings.parts, self.sources, strict=True)):
            if unknown := [code for code in part.languages or () if code not in self.cards]:
                raise RecipeError(f"corpus.parts.{number}.languages: '{unknown[0]}' is not in the recipe's languages")
            source.check()
        known = [attributes.slots() for source in self.sources if (attributes := source.attributes())]
        if any(slots != known[0] for slots in known):
            raise RecipeError("corpus.parts: two of them know different attributes; give both the same `world`")

    def version(self) -> object:
        """Return the versions of all parts; how often they are drawn from makes no other corpus."""
        parts = [[list(source.cards), source.version()] for source in self.sources]
        return [self.settings.name, self.settings.size, *parts]

    @cached_property
    def parts(self) -> list[list[PartShard]]:
        """The shards of each part."""
        return [
            [PartShard(f"{number}/", shard, shard.trusted) for shard in source.spoken_shards()]
            for number, source in enumerate(self.sources)
        ]

    def shards(self) -> Sequence[CorpusShard]:
        """Return the shards of all parts."""
        return [shard for part in self.parts for shard in part]

    def speeches(self) -> list[Speech]:
        """Return what speaks the written rows of any part."""
        return [speech for source in self.sources for speech in source.speeches()]

    def finish(self, partial: Path) -> None:
        """Write how many shards each part has, and finish as any corpus does."""
        write_atomically(partial / MIXTURE, json.dumps([len(part) for part in self.parts]).encode())
        super().finish(partial)

    def limits(self, partial: Path) -> list[tuple[int, float]]:
        """Return the shards of each part, and the share of samples that it may lose."""
        return [(len(part), s.max_unreadable) for part, s in zip(self.parts, self.sources, strict=True)]

    def attributes(self) -> Attributes | None:
        """Return what the first part that knows attributes can do with them."""
        return next((found for source in self.sources if (found := source.attributes())), None)

    def things(self) -> dict[str, list[str]]:
        """Return the things of the first part that names any."""
        return next((found for source in self.sources if (found := source.things())), {})

    def outline(self, most: int) -> Outline:
        """Add up the outlines of all parts."""
        outlines = [source.outline(-(-most // len(self.sources))) for source in self.sources]
        made = [outline.seconds for outline in outlines if outline.seconds is not None]
        return Outline(
            "; ".join(outline.known_by for outline in outlines), sum(o.recordings for o in outlines),
            sum(o.others for o in outlines), sum(o.pictures for o in outlines), max(o.moods for o in outlines),
            next((o.attributes for o in outlines if o.attributes), {}), [row for o in outlines for row in o.sample],
            sum(made) if made else None,
        )  # fmt: skip

    def card(self) -> DataCard:
        """Return what a model card says of all parts."""
        cards = [source.card() for source in self.sources]
        licences = [(part, licence) for card in cards for part, licence in card.licences.items()]
        names = [part for part, _ in licences]
        return DataCard(
            " and ".join(card.name for card in cards), "+".join(card.dataset.replace("/", "-") for card in cards),
            "; ".join(f"{card.description} (weight {w:g})" for card, w in zip(cards, self.weights, strict=True)),
            {f"{p} {n}" if names.count(p) > 1 else p: licence for n, (p, licence) in enumerate(licences, 1)},
            "; ".join(card.limits for card in cards if card.limits),
        )  # fmt: skip


@dataclass(frozen=True)
class PartShard(CorpusShard):
    """A shard of a part: its rows with ids of their own."""

    prefix: str
    shard: CorpusShard
    trusted: bool = False

    def __len__(self) -> int:
        return len(self.shard)

    def samples(self) -> Iterator[Found]:
        """Yield the part's rows, renamed."""
        return map(self._renamed, self.shard.samples())

    def _renamed(self, found: Found) -> Found:
        if isinstance(found, Unreadable):
            return replace(found, shard=self.prefix + found.shard)
        names = {name: self.prefix + found.row[name] for name in ("id", "image_id")}
        return Sample({**found.row, **names}, self.prefix + found.origin, found.truth)
