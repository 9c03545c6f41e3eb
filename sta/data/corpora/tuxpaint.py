"""Tux Paint's stamps as a corpus: pictures, captions in many languages, and people who say them.

The folder is read as the package leaves it: `X.png` or `X.svg`; `X.txt`, whose first line is English and whose others
are `fr.utf8=…`; `X_desc.ogg` in English and `X_desc_fr.ogg` in others. A row is a stamp in a language, with a recording
where a person said its caption. What is trained on is settled by the English caption, so that two pictures of one thing
stay together. By default nothing is: recordings are the split `people`, captions that nobody recorded `phrase`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Annotated, ClassVar

import soundfile
from pydantic import Field

from sta.config.cards import LanguageCard
from sta.config.recipe import CorpusSettings, Share
from sta.config.yamlfile import AbsolutePath
from sta.data.corpora.base import CorpusShard, CorpusSource, DataCard
from sta.data.corpora.emoji import chance, read_concepts
from sta.data.corpora.icons import Packages, draw_svg, on_white, renderer, slug
from sta.data.rows import Sample, file_column
from sta.data.unreadable import Found, Unreadable
from sta.errors import CorpusError

STAMPS_PER_SHARD = 50
#: Languages whose recordings are never trained on: people in languages that no training heard.
NEVER_TRAINED = ("be", "da", "el")
MAX_PACE = 2.5  # times the median: beyond it, on both sides, the caption was changed after it was recorded
CAPTION = re.compile(r"^([A-Za-z_@]+)\.utf8=(.*)$")
RECORDING = re.compile(r"^(.+)_desc(?:_([A-Za-z]+(?:_[A-Z]+)?))?\.(?:ogg|wav)$")
ARTICLE = re.compile(r"^(?:an?|the|some) ")


class TuxpaintSettings(CorpusSettings):
    """Tux Paint's stamps: pictures, captions, and recordings of people (GPL-2.0)."""

    root: AbsolutePath = Field("/usr/share/tuxpaint/stamps", description="the folder of stamps")
    train: bool = Field(
        False, description="train on the captions that are not held out, whose licence is that of weights that do"
    )
    held_out: Share = Field(0.5, description="share of the English captions that training leaves to the tests")
    validation: Share = Field(0.05, description="share of the others that validate, where any are trained on")
    leave_out: list[str] = Field(["symbols"], description="folders below `root` whose stamps are no things")
    concepts: AbsolutePath | None = Field(
        None, description="root of the corpus `emoji`: a caption that is an emoji's English name has its label"
    )
    picture_size: Annotated[int, Field(ge=16, le=1024)] = Field(
        256, description="side of the rows' pictures, pixels; smaller ones stay as they are"
    )
    max_unreadable: Share = Field(0.02, description="share of rows that cannot be read above which preparation stops")

    @property
    def card_only(self) -> frozenset[str]:
        """Return the folders: the same files make the same corpus wherever they lie."""
        return frozenset({"root", "concepts"})


@dataclass(frozen=True)
class Said:
    """A caption in one language, and the recording of it if there is one."""

    language: str
    text: str
    audio: str | None
    split: str


@dataclass(frozen=True)
class Stamp:
    """A picture with its captions; `id` is its path below the root, without a suffix."""

    id: str
    picture: Path
    label: str
    said: tuple[Said, ...]


class TuxpaintSource(CorpusSource):
    """The stamps of a folder, in the languages of the cards."""

    Settings: ClassVar[type[CorpusSettings]] = TuxpaintSettings
    settings: TuxpaintSettings

    def __init__(self, settings: TuxpaintSettings, cards: Mapping[str, LanguageCard], seed: int):
        super().__init__(settings, cards, seed)
        self.root, self.max_unreadable = Path(settings.root), settings.max_unreadable

    def check(self) -> None:
        """Refuse a folder without stamps, and emoji that are named and not there."""
        renderer()
        if not any(self.root.rglob("*.txt")):
            raise CorpusError(
                f"{self.root}: holds no stamps; run apt-get install tuxpaint-stamps-default, or give corpus.root the "
                "folder of stamps of a Tux Paint"
            )
        _ = self.labels

    def version(self) -> object:
        """Return the settings, the emoji's names, and size and time of change of every file."""
        states = [(str(p.relative_to(self.root)), p.stat()) for p in sorted(self.root.rglob("*.*")) if p.is_file()]
        files = repr([(name, state.st_size, state.st_mtime_ns) for name, state in states])
        return [super().version(), sorted(self.labels.items()), sha256(files.encode()).hexdigest(), renderer()]

    @cached_property
    def labels(self) -> dict[str, str]:
        """English name -> the concept's id, of the emoji that the settings name."""
        root = self.settings.concepts
        return {} if root is None else {slug(c.name): c.id for c in read_concepts(Packages(root))}

    def shards(self) -> list[TuxpaintShard]:
        """Return some stamps each; the first one tells what of the folder is no row."""
        stamps, aside = self._found
        return [
            TuxpaintShard(self.settings.picture_size, tuple(stamps[at : at + STAMPS_PER_SHARD]), () if at else aside)
            for at in range(0, len(stamps), STAMPS_PER_SHARD)
        ]

    @cached_property
    def _found(self) -> tuple[list[Stamp], tuple[Unreadable, ...]]:
        """The stamps in the languages of the cards, and what cannot be used."""
        captions, aside, pictures = dict[str, dict[str, str]](), list[Unreadable](), dict[str, Path]()
        for path in sorted(self.root.rglob("*.txt")):
            name = path.relative_to(self.root).with_suffix("").as_posix()
            found = [p for p in (path.with_suffix(".svg"), path.with_suffix(".png")) if p.is_file()]
            if self._is_left_out(name):
                continue
            captions[name] = read_captions(path)
            if not found:
                aside.append(_aside(name, f"{path} has no picture beside it", rows=1))
            elif not captions[name].get("en"):
                aside.append(_aside(name, f"{path} has no English caption in its first line", rows=1))
            else:
                pictures[name] = found[0]
        recordings = self._recordings(captions, aside)
        stamps = [self._stamp(name, picture, captions[name], recordings) for name, picture in pictures.items()]
        return stamps, tuple(aside)

    def _is_left_out(self, name: str) -> bool:
        return name.startswith(tuple(f"{folder}/" for folder in self.settings.leave_out))

    def _recordings(
        self, captions: Mapping[str, Mapping[str, str]], aside: list[Unreadable]
    ) -> dict[tuple[str, str], str]:
        """Return (stamp, language) -> its recording; those without a caption or of another pace go to `aside`."""
        found, paces = dict[tuple[str, str], str](), dict[str, dict[tuple[str, str], float]]()
        for path in sorted(self.root.rglob("*_desc*")):
            name = path.relative_to(self.root).as_posix()
            match = RECORDING.match(name)
            stamp, language = (match[1], _code(match[2] or "en")) if match else ("", "")
            if self._is_left_out(name) or (match and language not in self.cards):
                continue
            letters = sum(map(str.isalpha, captions.get(stamp, {}).get(language, "")))
            if not letters:
                aside.append(_aside(name, f"{path} has no caption in its language"))
                continue
            try:
                seconds = soundfile.info(str(path)).duration
            except (OSError, RuntimeError) as error:
                aside.append(_aside(name, f"{path} is no sound ({error})"))
                continue
            found[stamp, language] = str(path)
            paces.setdefault(language, {})[stamp, language] = seconds / letters
        for pace in paces.values():
            usual = median(pace.values())
            for key, value in pace.items():
                if not usual / MAX_PACE <= value <= usual * MAX_PACE:
                    dropped = found.pop(key)
                    reason = f"{dropped} takes {value / usual:.2f} times the usual time of its caption's letters"
                    aside.append(_aside(Path(dropped).relative_to(self.root).as_posix(), reason))
        return found

    def _stamp(
        self, name: str, picture: Path, captions: Mapping[str, str], recordings: Mapping[tuple[str, str], str]
    ) -> Stamp:
        thing = slug(captions["en"])
        said = [
            self._said(thing, language, captions[language], recordings.get((name, language)))
            for language in self.cards if captions.get(language)
        ]  # fmt: skip
        label = self.labels.get(slug(ARTICLE.sub("", captions["en"].casefold())), thing)
        return Stamp(name, picture, label, tuple(said))

    def _said(self, thing: str, language: str, text: str, audio: str | None) -> Said:
        """Return a caption in its split."""
        place, s = chance(thing, "caption"), self.settings
        if not s.train or place < s.held_out:
            return Said(language, text, audio, "phrase" if audio is None else "people")
        split = "validation" if place < s.held_out + (1 - s.held_out) * s.validation else "train"
        return Said(language, text, None if language in NEVER_TRAINED else audio, split)

    def card(self) -> DataCard:
        """Return what a model card says of it; its licence is one of the weights only if they learnt from it."""
        by = "Tux Paint stamps by Bill Kendrick and contributors, https://tuxpaint.org"
        if self.settings.train:
            licences: dict[str, str | None] = {f"pictures, captions and recordings ({by})": "gpl-2.0"}
            return DataCard("Tux Paint", "tuxpaint", "Tux Paint's stamps, captions and recordings of people", licences,
                            "the things of Tux Paint's stamps")  # fmt: skip
        return DataCard("Tux Paint", "tuxpaint", f"for tests only, recordings of people ({by}: gpl-2.0)", {})


def read_captions(path: Path) -> dict[str, str]:
    """Return language -> caption of a stamp's text file."""
    first, *others = path.read_text(encoding="utf-8-sig", errors="replace").splitlines() or [""]
    found = {"en": first.strip()}
    for match in filter(None, map(CAPTION.match, others)):
        found.setdefault(_code(match[1]), match[2].strip())
    return found


def _code(locale: str) -> str:
    return locale.replace("_", "-").lower()


def _aside(name: str, reason: str, rows: int = 0) -> Unreadable:
    """Return an entry about a file that makes no row; `rows` are lost with it."""
    return Unreadable(name, "stamps", reason, None, rows)


@dataclass(frozen=True)
class TuxpaintShard(CorpusShard):
    """Some stamps, and what of the folder is none."""

    side: int
    stamps: tuple[Stamp, ...]
    aside: Sequence[Unreadable]

    def __len__(self) -> int:
        return sum(len(stamp.said) for stamp in self.stamps)

    def samples(self) -> Iterator[Found]:
        """Yield the rows; each picture is drawn once."""
        yield from self.aside
        for stamp in self.stamps:
            picture = self._draw(stamp.picture)
            for said in stamp.said:
                name = f"{stamp.id}-{said.language}"
                if isinstance(picture, str):
                    yield Unreadable(name, stamp.id, picture, None)
                    continue
                row = {
                    "id": name, "image": file_column(picture), "audio": file_column(said.audio), "text": said.text,
                    "language": said.language, "label": stamp.label, "image_id": stamp.id, "split": said.split,
                }  # fmt: skip
                yield Sample(row, stamp.id)

    def _draw(self, path: Path) -> bytes | str:
        """Return a picture, or why it cannot be drawn."""
        try:
            return on_white(path if path.suffix == ".png" else io.BytesIO(draw_svg(path, self.side)), self.side)
        except (OSError, ValueError) as error:
            return f"{path}: cannot be drawn ({error})"
