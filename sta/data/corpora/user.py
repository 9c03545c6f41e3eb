"""What corpora that users bring share: what a row may say, how a split is drawn, and what their model card says."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sta.config.cards import LanguageCard
from sta.config.recipe import CorpusSettings, Share
from sta.data.corpora.base import CorpusSource, DataCard
from sta.errors import CorpusError

SPLIT_NAMES = ("train", "validation", "test")


class UserSettings(CorpusSettings):
    """What corpora that users bring have in common."""

    validation: Share = Field(0.05, description="share set aside where no split is named")
    test: Share = Field(0.05, description="share set aside where no split is named")
    max_unreadable: Share = Field(
        0.02, description="share of samples that cannot be read above which preparation stops"
    )
    dataset: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="id on the Hub, or another name, for the model card; null: the name of its folder"
    )
    licence: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="its licence as the Hub writes it, such as cc-by-4.0, for the model card"
    )

    @property
    def card_only(self) -> frozenset[str]:
        """Return the settings that only the model card reads."""
        return frozenset({"dataset", "licence"})


class UserSource(CorpusSource):
    """A corpus of recordings and pictures that a user has at a `place`, the path that the settings name."""

    settings: UserSettings
    place: Path

    def __init__(self, settings: UserSettings, cards: Mapping[str, LanguageCard], seed: int):
        super().__init__(settings, cards, seed)
        self.max_unreadable = settings.max_unreadable

    def card(self) -> DataCard:
        """Return what a model card says of it; its name is the settings', or that of its folder."""
        name = self.settings.dataset or self.place.stem.strip("*") or self.place.parent.name
        description = f"{name}, recordings of its maker and pictures of {self.settings.size} px"
        return DataCard(name, name, description, {f"corpus {name}": self.settings.licence})


def check_row(where: str, language: str | None, split: str | None, languages: Sequence[str]) -> None:
    """Refuse a language that the recipe lacks, and a split that nobody knows."""
    if language is None:
        raise CorpusError(f"{where}: has no language; give one of the recipe's ({', '.join(languages)})")
    if language not in languages:
        raise CorpusError(f"{where}: language '{language}' is not in the recipe's languages ({', '.join(languages)})")
    if split not in (None, *SPLIT_NAMES):
        raise CorpusError(f"{where}: split '{split}' is not one of {', '.join(SPLIT_NAMES)}")


def split_of(image_id: str, settings: UserSettings) -> str:
    """Return the split that is drawn for a picture, by the hash of its name: its recordings stay together."""
    place = zlib.crc32(image_id.encode()) / 2**32
    if place < settings.test:
        return "test"
    return "validation" if place < settings.test + settings.validation else "train"


def text_or_none(text: str | None) -> str | None:
    """Return a row's text; None of one without words."""
    return text if text and text.strip() else None
