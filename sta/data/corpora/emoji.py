"""Emoji as a corpus: what Unicode names in a hundred languages, drawn by several teams of designers.

Pictures, names and keywords lie in npm packages, read as npm leaves them. Rows have a text and no recording. Whether a
concept, a picture or a text is trained on follows from a hash of its name alone, the same in every recipe:

- a share of the concepts (`held_out`) is never trained on: split `concept`;
- a share of the others (`tested`) keeps the picture of one training style back, which the rows of `validation`,
  `voice`, `engine` and `phrase` show;
- the texts of `phrase` are never trained on: sentences of the file `sentences`, or where there is none a keyword that
  one emoji alone has, or a name in one carrier;
- the pictures in `test_styles` are those of the split `style`, each once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from sta.config.cards import LanguageCard
from sta.config.recipe import CorpusSettings, Positive, Share
from sta.config.yamlfile import AbsolutePath
from sta.data.checksums import file_hash
from sta.data.corpora.base import CorpusShard, CorpusSource, DataCard, Outline, outline_of
from sta.data.corpora.icons import (
    GROUPS,
    NAMES,
    SEQUENCES,
    Concept,
    Packages,
    Style,
    code_points,
    open_style,
    package_of,
    renderer,
)
from sta.data.rows import Row, Sample, file_column
from sta.data.unreadable import Found, Unreadable
from sta.errors import CorpusError, RecipeError

OBJECTS = ["animals-nature", "food-drink", "travel-places", "activities", "objects"]
NO_GROUPS = ("component", "flags")
CLOCKS = range(0x1F550, 0x1F568)
#: What in an English name makes no other thing of it: a dog's face is a dog.
SAME = re.compile(r" (with )?face$| without snow$")
KEYWORDS_HELD_OUT = 0.2  # share of those that one emoji alone has
SENTENCES_HELD_OUT = 0.1
FIRST_VERSION, MIN_DRAWN = 1, 0.5  # share of the first emoji; a set that has fewer was not unpacked to its end
CONCEPTS_PER_SHARD = 20
Count = Annotated[int, Field(ge=0)]


class EmojiSettings(CorpusSettings):
    """Emoji by several teams of designers, with the names and keywords that Unicode publishes."""

    root: AbsolutePath = Field(description="folder given to `npm install --prefix`, or its node_modules")
    styles: Annotated[list[str], Field(min_length=1)] = Field(
        ["noto", "noto-v1", "fluent-emoji-flat", "twemoji", "emojione"],
        description="sets whose pictures are trained on: names of packages of @iconify-json, and fluent-emoji-3d",
    )
    test_styles: list[str] = Field(
        ["fluent-emoji-3d", "openmoji", "emojione-v1"], description="sets whose pictures only the split `style` shows"
    )
    groups: Annotated[list[str], Field(min_length=1)] = Field(OBJECTS, description="groups of emojibase")
    concepts: Positive | None = Field(
        None, description="at most so many concepts, those with short English names that most styles draw; null: all"
    )
    held_out: Share = Field(0.1, description="share of the concepts that are never trained on")
    tested: Share = Field(0.25, description="share of the trained concepts that keep one picture back for the tests")
    recordings: Count = Field(6, description="training rows per concept and language: its name, alone or in a carrier")
    keywords: Count | None = Field(
        2, description="training rows per concept and language with one of its keywords; null: all of them"
    )
    combinations: Count = Field(0, description="training rows per concept and language: its name and one keyword")
    pairs: Count = Field(0, description="training rows per concept and language: its name and another emoji's")
    spans: Count = Field(0, description="training rows per training sentence: one to four of its words, in a row")
    others: Count = Field(
        0, description="training rows per language and emoji of other groups: its name, then its keywords, unlabelled"
    )
    sentences: AbsolutePath | None = Field(
        None, description="table of sentences, tab-separated: `concept`, its code points, and a column per language"
    )
    validation: Count = Field(50, description="validation rows per language")
    test: Count = Field(200, description="rows per language and test split; 0: no tests")
    picture_size: Annotated[int, Field(ge=16, le=1024)] = Field(256, description="side of the rows' pictures, pixels")

    @property
    def card_only(self) -> frozenset[str]:
        """Return the paths: packages of the same versions make the same corpus wherever they lie."""
        return frozenset({"root", "sentences"})


def read_concepts(packages: Packages, groups: Sequence[str] = OBJECTS) -> list[Concept]:
    """Return the concepts of some groups in the order of Unicode.

    Clock faces, sequences of people, names without a letter and what is the face of another concept are left out.

    Raises:
        RecipeError: there is no such group.
    """
    messages = packages.read(GROUPS, "en/messages.json")["groups"]
    known = {group["key"]: group["order"] for group in messages if group["key"] not in NO_GROUPS}
    if unknown := [group for group in groups if group not in known]:
        raise RecipeError(f"corpus.groups: '{unknown[0]}' is no group of emoji (known: {', '.join(known)})")
    wanted, people, english = {known[group] for group in groups}, known.get("people-body"), read_words(packages, "en")
    found = []
    for emoji in sorted(packages.read(GROUPS, "en/data.json"), key=lambda emoji: emoji.get("order", 0)):
        concept, group = code_points(emoji["hexcode"]), emoji.get("group")
        name = english[concept].name if concept in english else ""
        clock = "-" not in concept and int(concept, 16) in CLOCKS
        sequence = group == people and "-200D-" in concept
        if group in wanted and any(map(str.isalpha, name)) and not clock and not sequence:
            found.append(Concept(concept, name, float(emoji["version"])))
    names = {concept.name for concept in found}
    return [c for c in found if (plain := SAME.sub("", c.name)) == c.name or plain not in names]


@dataclass(frozen=True)
class Words:
    """What CLDR says of an emoji in one language."""

    name: str
    keywords: tuple[str, ...]


def read_words(packages: Packages, language: str) -> dict[str, Words]:
    """Return concept -> its name and keywords in a language; `pt-br` may lie in `pt`.

    Raises:
        CorpusError: CLDR has no such language.
    """
    return _read_words(packages.prefix, language)


@lru_cache(maxsize=64)
def _read_words(prefix: Path, language: str) -> dict[str, Words]:
    packages, found = Packages(prefix), dict[str, Words]()
    for package, what in ((SEQUENCES, "annotationsDerived"), (NAMES, "annotations")):
        packages.require([package])
        places = {path.name.lower(): path.name for path in (packages.folder / package / what).glob("*")}
        code = next((code for code in (language, language.partition("-")[0]) if code in places), None)
        if code is None:
            raise CorpusError(
                f"{packages.folder / package}: has no names in language '{language}'; take it from the recipe's "
                "languages, or name others as the languages of this part of a mixture"
            )
        entries = packages.read(package, f"{what}/{places[code]}/annotations.json")[what]["annotations"]
        for emoji, entry in entries.items():
            keywords = tuple(word for word in entry.get("default", ()) if any(map(str.isalpha, word)))
            concept = code_points("-".join(f"{ord(character):04X}" for character in emoji))
            found[concept] = Words(entry.get("tts", [""])[0], keywords)
    return found


@lru_cache(maxsize=4)
def read_sentences(path: str) -> dict[str, dict[str, list[str]]]:
    """Return language -> concept -> sentences about it, those of one line at the same place.

    Raises:
        CorpusError: the file cannot be read, has no column `concept`, or a line has not as many columns as the first.
    """
    try:
        lines = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read ({error}); corpus.sentences names a UTF-8 table") from error
    first, *languages = lines[0] if lines else [""]
    if first != "concept":
        raise CorpusError(f"{path}: the first column of its first line is '{first}'; it must be 'concept'")
    found: dict[str, dict[str, list[str]]] = {language: {} for language in languages}
    for number, (concept, *said) in enumerate(lines[1:], 2):
        if len(said) != len(languages):
            raise CorpusError(
                f"{path}, line {number}: has {len(said) + 1} columns, the first line {len(languages) + 1}"
            )
        for language, sentence in zip(languages, said, strict=True):
            found[language].setdefault(code_points(concept), []).append(sentence)
    return found


def chance(*names: str) -> float:
    """Return a number in [0, 1) that follows from some names."""
    return int.from_bytes(sha256("/".join(names).encode()).digest()[:4]) / 2**32


class Phrases:
    """What is said of concepts in one language; keywords that are another emoji's name are not."""

    def __init__(self, packages: Packages, card: LanguageCard, sentences: str | None = None):
        self.code, self.words = card.code, read_words(packages, card.code)
        self.said = read_sentences(sentences).get(card.code, {}) if sentences else {}
        self.carriers = card.carriers
        self.names = {words.name.casefold() for words in self.words.values()}
        self.emoji_of = Counter(k for words in self.words.values() for k in {k.casefold() for k in words.keywords})

    def name(self, concept: Concept) -> str:
        """Return its name; an empty one where it has none."""
        return self.words[concept.id].name if concept.id in self.words else ""

    def carried(self, concept: Concept, number: int) -> str:
        """Return its name in one of the carriers that are trained on; alone where there are none."""
        held, first = self._held_carrier(concept), int(1e6 * chance(concept.id, self.code, "first"))
        carriers = [carrier for carrier in self.carriers if carrier != held]
        return _fill(carriers[(first + number) % len(carriers)], self.name(concept)) if carriers else self.name(concept)

    def keywords(self, concept: Concept) -> list[str]:
        """Return its keywords that are trained on, in an order of chance."""
        return self._keywords(concept, held_out=False)

    def is_shared(self, keyword: str) -> bool:
        """Return whether several emoji have a keyword, so that it tells none of them."""
        return self.emoji_of[keyword.casefold()] > 1

    def sentences(self, concept: Concept, held_out: bool) -> list[str]:
        """Return its sentences that are trained on, or never; the same ones in all languages."""
        said = enumerate(self.said.get(concept.id, []))
        return [s for number, s in said if (chance(concept.id, f"{number}") < SENTENCES_HELD_OUT) == held_out]

    def spans(self, concept: Concept, count: int) -> list[str]:
        """Return `count` spans of one to four words of each of its training sentences; names are left out."""
        found = []
        for sentence in self.sentences(concept, held_out=False):
            words = sentence.split()
            for number in range(count):
                length = 1 + int(4 * chance(concept.id, self.code, sentence, f"length {number}"))
                places = max(1, len(words) - length + 1)
                first = int(places * chance(concept.id, self.code, sentence, f"first {number}"))
                found.append(" ".join(words[first : first + length]))
        return [span for span in found if span.casefold() not in self.names]

    def unheard(self, concept: Concept) -> list[str]:
        """Return its texts that are never trained on: sentences, or else its name in one carrier, and keywords."""
        if self.said:
            return self.sentences(concept, held_out=True)
        carrier = self._held_carrier(concept)
        return [*([_fill(carrier, self.name(concept))] if carrier else []), *self._keywords(concept, held_out=True)]

    def _held_carrier(self, concept: Concept) -> str | None:
        place = int(chance(concept.id, self.code, "carrier") * len(self.carriers))
        return self.carriers[place] if len(self.carriers) > 1 else None

    def _keywords(self, concept: Concept, held_out: bool) -> list[str]:
        found = [k for k in self.words[concept.id].keywords if k.casefold() not in self.names]
        found = [k for k in found if self._is_held_out(k.casefold()) == held_out]
        return sorted(found, key=lambda k: chance(concept.id, self.code, k))

    def _is_held_out(self, keyword: str) -> bool:
        return self.emoji_of[keyword] == 1 and chance(self.code, keyword) < KEYWORDS_HELD_OUT


def _fill(carrier: str, name: str) -> str:
    return carrier.replace("{name}", name)


@dataclass(frozen=True)
class Planned:
    """A row before its picture is drawn."""

    id: str
    concept: Concept
    style: str
    text: str
    language: str
    split: str
    apart: bool = False  # it tells more or less than the concept

    def row(self, picture: bytes | None = None) -> Row:
        """Return it as a row, with its picture if that is given; one that is `apart` is a phrase without a label."""
        return {
            "id": self.id, "image": file_column(picture), "text": self.text, "language": self.language,
            "label": None if self.apart else self.concept.id, "image_id": f"{self.style}/{self.concept.id}",
            "split": self.split, "style": self.style, "phrase": self.apart,
        }  # fmt: skip


class EmojiSource(CorpusSource):
    """Emoji in the languages of the cards."""

    Settings: ClassVar[type[CorpusSettings]] = EmojiSettings
    settings: EmojiSettings

    def __init__(self, settings: EmojiSettings, cards: Mapping[str, LanguageCard], seed: int):
        super().__init__(settings, cards, seed)
        self.packages = Packages(settings.root)

    @property
    def needed(self) -> list[str]:
        """The packages that it reads."""
        return [NAMES, SEQUENCES, GROUPS, *map(package_of, (*self.settings.styles, *self.settings.test_styles))]

    def check(self) -> None:
        """Refuse packages that are missing or not complete, and a style that is both trained on and held out."""
        s = self.settings
        if both := set(s.styles) & set(s.test_styles):
            raise RecipeError(f"corpus.test_styles: '{min(both)}' is in corpus.styles too; name each style once")
        renderer()
        self.packages.require(self.needed)
        first = [c for c in read_concepts(self.packages, s.groups) if c.version <= FIRST_VERSION]
        for style in (*s.styles, *s.test_styles):
            drawn = sum(self._style(style).place(concept) is not None for concept in first)
            if drawn < MIN_DRAWN * len(first):
                raise self.packages.incomplete(package_of(style), f"it has {drawn} of {len(first)} common pictures")
        for code in self.cards:
            read_words(self.packages, code)
        if s.sentences:
            read_sentences(s.sentences)

    def version(self) -> object:
        """Return the settings, the versions of the packages and of what draws, and the hash of the sentences."""
        self.packages.require(self.needed)
        versions = {package: self.packages.read(package, "package.json")["version"] for package in self.needed}
        said = self.settings.sentences
        return [super().version(), versions, renderer(), said and file_hash(said)]

    def _style(self, name: str) -> Style:
        return open_style(self.packages.prefix, name)

    def _pictures(self, concept: Concept, styles: Sequence[str]) -> list[str]:
        return [style for style in styles if self._style(style).place(concept) is not None]

    @cached_property
    def concepts(self) -> list[Concept]:
        """The concepts that some training style draws, in an order of chance."""
        styles, most = self.settings.styles, self.settings.concepts
        found = [c for c in read_concepts(self.packages, self.settings.groups) if self._pictures(c, styles)]
        found.sort(key=lambda c: chance(c.id, "order"))
        if most is not None:
            found.sort(key=lambda c: (-len(self._pictures(c, styles)), c.name.count(" ")))
        return sorted(found[:most], key=lambda c: chance(c.id, "order"))

    @cached_property
    def trained(self) -> dict[Concept, list[str]]:
        """The concepts that are trained on -> the styles of their pictures that are."""
        kept = self.tested
        return {
            c: [style for style in self._pictures(c, self.settings.styles) if style != kept.get(c)]
            for c in self.concepts if not self._is_held_out(c)
        }  # fmt: skip

    @cached_property
    def others(self) -> dict[Concept, str]:
        """The emoji that are no concepts here and only lend their words -> the style of their picture."""
        known, count = set(self.concepts), self.settings.others
        found = [c for c in self._all if c not in known and not self._is_held_out(c)] if count else []
        drawn = {concept: self._pictures(concept, self.settings.styles) for concept in found}
        return {concept: styles[0] for concept, styles in drawn.items() if styles}

    @cached_property
    def tested(self) -> dict[Concept, str]:
        """The trained concepts that keep a picture back -> its style, every one as often."""
        found = {c: self._pictures(c, self.settings.styles) for c in self.concepts if not self._is_held_out(c)}
        several = {c: p for c, p in found.items() if len(p) > 1 and chance(c.id, "tested") < self.settings.tested}
        return {c: pictures[number % len(pictures)] for number, (c, pictures) in enumerate(several.items())}

    def _is_held_out(self, concept: Concept) -> bool:
        return chance(concept.id, "concept") < self.settings.held_out

    @cached_property
    def plan(self) -> list[Planned]:
        """All rows, those of a concept together."""
        found: dict[str, list[Planned]] = {concept.id: [] for concept in (*self.concepts, *self.others)}
        for place, card in enumerate(self.cards.values()):
            phrases = Phrases(self.packages, card, self.settings.sentences)
            for planned in (*self._training(phrases, place), *self._tests(phrases, place)):
                found[planned.concept.id].append(planned)
        return [planned for rows in found.values() for planned in rows]

    def _training(self, phrases: Phrases, place: int) -> Iterator[Planned]:
        """Yield the training rows of a language, whose number among the languages is `place`."""
        s = self.settings
        for start, (concept, styles) in enumerate(self.trained.items()):
            if not (name := phrases.name(concept)):
                continue
            keywords = phrases.keywords(concept)
            texts = {
                "name": [name] * -(-s.recordings // 2),
                "carrier": [phrases.carried(concept, number) for number in range(s.recordings // 2)],
                "keyword": keywords[: s.keywords],
                "combination": [f"{name}, {keyword}" for keyword in keywords[: s.combinations]],
                "sentence": phrases.sentences(concept, held_out=False),
                "pair": [f"{name}, {other}" for other in self._others(concept, phrases)],
                "span": phrases.spans(concept, s.spans),
            }
            for kind, said in texts.items():
                for number, text in enumerate(said):
                    style = styles[(start + place + number) % len(styles)]
                    row_id = f"{concept.id}-{phrases.code}-{kind}-{number}"
                    apart = kind in ("pair", "span") or (kind == "keyword" and phrases.is_shared(text))
                    yield Planned(row_id, concept, style, text, phrases.code, "train", apart)
        for concept, style in self.others.items():
            if name := phrases.name(concept):
                for number, text in enumerate([name, *phrases.keywords(concept)][: s.others]):
                    row_id = f"{concept.id}-{phrases.code}-other-{number}"
                    yield Planned(row_id, concept, style, text, phrases.code, "train", apart=True)

    def _others(self, concept: Concept, phrases: Phrases) -> list[str]:
        """Return names of other emoji of any group that are not held out, `pairs` of them."""
        others = [phrases.name(other) for other in self._all if not self._is_held_out(other)]
        first = int(1e6 * chance(concept.id, phrases.code, "pair"))
        named = [name for name in others if name]
        return [named[(first + 7 * number) % len(named)] for number in range(self.settings.pairs)]

    @cached_property
    def _all(self) -> list[Concept]:
        groups = self.packages.read(GROUPS, "en/messages.json")["groups"]
        return read_concepts(self.packages, [group["key"] for group in groups if group["key"] not in NO_GROUPS])

    def _tests(self, phrases: Phrases, place: int) -> Iterator[Planned]:
        """Yield the validation and test rows of a language; the languages take turns at the concepts."""
        s, seen = self.settings, Counter[tuple[str, Concept]]()

        def planned(split: str, concept: Concept, style: str, text: str) -> Planned:
            number = seen[split, concept]
            seen[split, concept] += 1
            return Planned(f"{split}-{concept.id}-{phrases.code}-{number}", concept, style, text, phrases.code, split)

        def turns(pool: Sequence[Concept], count: int) -> Iterator[tuple[Concept, int]]:
            named = [concept for concept in pool if phrases.name(concept)]
            for turn in range(place * count, (place + 1) * count) if named else ():
                yield named[turn % len(named)], turn // len(named) + turn

        def said(concept: Concept, turn: int) -> str:
            return phrases.carried(concept, turn // 2) if turn % 2 else phrases.name(concept)

        tested, unseen = list(self.tested), [c for c in self.concepts if self._is_held_out(c)]
        for split, count in (("validation", s.validation), ("voice", s.test), ("engine", s.test)):
            for concept, turn in turns(tested, count):
                yield planned(split, concept, self.tested[concept], said(concept, turn))
        for concept, turn in turns([c for c in tested if phrases.unheard(c)], s.test):
            texts = phrases.unheard(concept)
            yield planned("phrase", concept, self.tested[concept], texts[turn % len(texts)])
        for concept, turn in turns(unseen, s.test):
            styles = self._pictures(concept, s.styles)
            yield planned("concept", concept, styles[turn % len(styles)], said(concept, turn))
        pairs = [(c, style) for c in self.trained for style in self._pictures(c, s.test_styles)] if s.test else []
        for concept, style in pairs[place :: len(self.cards)]:
            if name := phrases.name(concept):
                yield planned("style", concept, style, name)

    def shards(self) -> list[EmojiShard]:
        """Return the rows of some concepts each, so that every picture is drawn once."""
        some = {c.id: number // CONCEPTS_PER_SHARD for number, c in enumerate((*self.concepts, *self.others))}
        rows: list[list[Planned]] = [[] for _ in range(max(some.values(), default=-1) + 1)]
        for planned in self.plan:
            rows[some[planned.concept.id]].append(planned)
        return [EmojiShard(self.packages.prefix, self.settings.picture_size, tuple(part)) for part in rows]

    def things(self) -> dict[str, list[str]]:
        """Return some things of the smallest recipe too, written here, so that no package is needed."""
        written = read_sentences(str(Path(__file__).with_suffix(".tsv")))
        return {language: [name for names in said.values() for name in names] for language, said in written.items()}

    def outline(self, most: int) -> Outline:
        """Count all rows, and draw some of them."""
        some = self.plan[:: max(1, len(self.plan) // most)][:most]
        shard = EmojiShard(self.packages.prefix, self.settings.picture_size, tuple(some))
        sample = [found.row for found in shard.samples() if isinstance(found, Sample)]
        known_by = f"from {len(self.concepts)} emoji in {len(self.settings.styles)} styles"
        return outline_of([planned.row() for planned in self.plan], sample, 1.0, known_by, self.speech)

    def card(self) -> DataCard:
        """Return what a model card says of it, with each style's makers."""
        s = self.settings
        trained, others = ({name: self._style(name) for name in names} for names in (s.styles, s.test_styles))
        licences = {f"pictures {name} ({style.maker})": style.licence for name, style in trained.items()}
        tests = ", ".join(f"{name} ({style.maker}: {style.licence})" for name, style in others.items())
        return DataCard(
            "Emoji", "emoji",
            f"Emoji, {len(self.concepts)} things as {len(trained)} sets draw them, named as Unicode does"
            + (f"; only tests show {tests}" if tests else ""),
            {
                **licences, "names and keywords (Unicode CLDR, https://cldr.unicode.org)": "unicode-3.0",
                "groups of emoji (emojibase-data by Miles Johnson)": "mit",
            },
            "things that emoji show, called by their names and keywords",
        )  # fmt: skip


@dataclass(frozen=True)
class EmojiShard(CorpusShard):
    """The rows of some concepts."""

    prefix: Path
    side: int
    planned: tuple[Planned, ...]
    trusted: bool = True

    def __len__(self) -> int:
        return len(self.planned)

    def samples(self) -> Iterator[Found]:
        """Yield the rows; each picture is drawn once."""
        drawn = cache(self._draw)
        for planned in self.planned:
            picture, package = drawn(planned.style, planned.concept), package_of(planned.style)
            if isinstance(picture, str):
                yield Unreadable(planned.id, package, picture, None)
            else:
                yield Sample(planned.row(picture), package)

    def _draw(self, style: str, concept: Concept) -> bytes | str:
        """Return a picture, or why it cannot be drawn."""
        try:
            return open_style(self.prefix, style).draw(concept, self.side)
        except (OSError, ValueError) as error:
            return f"{style}/{concept.id}: cannot be drawn ({error})"
