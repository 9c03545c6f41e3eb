"""Says scenes of Garden in any language, from the templates and the lexicon of a language card.

A template is text with `{slot.form}` for the word of that slot's value in that form, `{slot}` for a word with
one form only, and `[...]` for a part that drops out when a slot in it is not said. Where several
templates are listed, the first that says exactly what is to be said is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from sta.config.cards import EVERY_FORM, OPTIONAL, PLACEHOLDER, LanguageCard, PatternCard
from sta.data.corpora.garden.world import KINDS, SLOTS, World
from sta.errors import RecipeError, known_names

DETAILS = "details"  # the place in a sentence for its joined details, treated as one more slot


@dataclass(frozen=True)
class Template:
    """A parsed template: `parts` are its stretches of text and whether each may drop out."""

    text: str
    parts: tuple[tuple[str, bool], ...]
    needed: frozenset[str]
    slots: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template as a card has it."""
        pieces = OPTIONAL.split(text)  # text outside brackets at even places, inside at odd ones
        parts = tuple((piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece)
        needed = frozenset(_slots("".join(pieces[0::2])))
        return cls(text, parts, needed, needed | frozenset(_slots("".join(pieces[1::2]))))

    def fits(self, said: Iterable[str]) -> bool:
        """Return whether it can say exactly these slots."""
        return self.needed <= set(said) <= self.slots

    def fill(self, said: Iterable[str], word: Callable[[str, str], str]) -> str:
        """Return the text with each placeholder replaced by `word(slot, form)`, without the parts not said."""
        kept = (t for t, optional in self.parts if not optional or set(_slots(t)) <= set(said))
        return PLACEHOLDER.sub(lambda m: word(m[1], m[2] or EVERY_FORM), "".join(kept))

    def places(self) -> list[tuple[str, str]]:
        """Return every slot and form that it asks for."""
        return [(m[1], m[2] or EVERY_FORM) for m in PLACEHOLDER.finditer(self.text)]


@dataclass(frozen=True)
class Choice:
    """Templates of which the first fitting one is used, and where they stand in the file."""

    key: str
    templates: tuple[Template, ...]

    @property
    def slots(self) -> frozenset[str]:
        """Return what any of the templates says."""
        return frozenset(chain.from_iterable(t.slots for t in self.templates))

    def pick(self, said: Iterable[str]) -> Template | None:
        """Return the first template that says exactly these slots."""
        return next((t for t in self.templates if t.fits(said)), None)

    def fill(self, said: Iterable[str], word: Callable[[str, str], str]) -> str:
        """These slots in words; `pick` must have one for them, as a checked grammar has."""
        template = self.pick(said)
        assert template is not None, f"{self.key} says nothing for {sorted(said)}"
        return template.fill(said, word)


@dataclass(frozen=True)
class Pattern:
    """One way to say a scene: a sentence and the details that are strung together in it."""

    sentence: Choice
    details: tuple[Choice, ...]

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Return the sentence and its details."""
        return (self.sentence, *self.details)


class Grammar:
    """Descriptions of Garden's scenes in one language.

    Args:
        card: the language; must have a `garden` grammar.
        world: what may have to be said.
        source: what an error calls the card's file, by default `language card '<code>'`.

    Raises:
        RecipeError: the card has no grammar or lacks something that the world needs.
    """

    def __init__(self, card: LanguageCard, world: World, source: str | None = None) -> None:
        self._source = source or f"language card '{card.code}'"
        if card.garden is None:
            raise self._wrong(f"key 'garden' is missing, so Garden cannot be spoken in {card.name}")
        self._garden = card.garden
        self._patterns: dict[str, list[Pattern]] = {}
        for kind, grammar in card.garden.kinds.items():
            key = f"garden.kinds.{kind}"
            self._patterns[kind] = [_pattern(f"{key}.patterns.{i}", p) for i, p in enumerate(grammar.patterns)]
        self.check(world)

    def patterns(self, kind: str) -> int:
        """Return how many sentence patterns there are for `kind`."""
        return len(self._patterns[kind])

    def describe(self, kind: str, said: Mapping[str, str], rng: np.random.Generator, pattern: int | None = None) -> str:
        """Return a sentence that says exactly the slot values in `said`, in a pattern and order drawn by `rng`.

        What is drawn depends on which slots are said, never on their values: generators in equal states
        give sentences that differ only in the words of the values that differ. `pattern` fixes the pattern.
        """
        self._sayable(kind, said)
        drawn = int(rng.integers(len(self._patterns[kind])))
        chosen = self._patterns[kind][drawn if pattern is None else pattern]
        order = [chosen.details[i] for i in rng.permutation(len(chosen.details))]

        def word(slot: str, form: str) -> str:
            return self._join(details) if slot == DETAILS else self._form(said[slot], form)

        details = [d.fill(d.slots & said.keys(), word) for d in order if d.slots & said.keys()]
        return chosen.sentence.fill((chosen.sentence.slots & said.keys()) | ({DETAILS} if details else set()), word)

    def forms(self, value: str) -> list[str]:
        """Return every word by which `value` can be said."""
        return sorted(set(self._garden.lexicon[value].values()))

    def check(self, world: World) -> None:
        """Verify that each scene of `world` can be said with any of its slots left out; a RecipeError names the key."""
        self._known(self._garden.lexicon, chain.from_iterable(values for _, values in SLOTS.values()), "garden.lexicon")
        self._known(self._garden.kinds, KINDS, "garden.kinds")
        for kind in world.kinds:
            if kind not in self._patterns:
                raise self._wrong(f"key 'garden.kinds.{kind}' is missing")
            for pattern in self._patterns[kind]:
                for choice in pattern.choices:
                    self._check_words(kind, choice, world)
                    self._check_subsets(kind, choice, world)
                self._check_slots(kind, pattern, world)

    def _sayable(self, kind: str, said: Mapping[str, str]) -> None:
        if kind not in self._patterns:
            raise ValueError(f"{self._source}: cannot say kind {kind!r}, only {', '.join(self._patterns)}")
        for slot, value in said.items():
            if slot not in _slots_of(kind):
                raise ValueError(f"a {kind} has no slot {slot!r}, only {', '.join(_slots_of(kind))}")
            if value not in SLOTS[slot][1] or value not in self._garden.lexicon:
                raise ValueError(f"{self._source}: cannot say {value!r} of slot {slot!r}")

    def _form(self, value: str, form: str) -> str:
        forms = self._garden.lexicon[value]
        return forms[form] if form in forms else forms[EVERY_FORM]

    def _join(self, details: list[str]) -> str:
        *first, last = details
        join = self._garden.join
        return f"{join.between.join(first)}{join.last}{last}" if first else last

    def _known(self, given: Iterable[str], known: Iterable[str], key: str) -> None:
        accepted = list(dict.fromkeys(known))
        for name in given:
            if name not in accepted:
                raise self._wrong(f"unknown key '{key}.{name}'{known_names(name, accepted, 'known here')}")

    def _check_slots(self, kind: str, pattern: Pattern, world: World) -> None:
        key = pattern.sentence.key.removesuffix(".sentence")
        for slot in world.slots_of(kind):
            places = [c.key for c in pattern.choices if slot in c.slots]
            if not places:
                raise self._wrong(f"key '{key}' never says slot '{slot}' of a {kind}; add {{{slot}}} to a template")
            if len(places) > 1:
                raise self._wrong(f"key '{key}' says slot '{slot}' twice, in {' and '.join(places)}")
        if pattern.details and DETAILS not in pattern.sentence.slots:
            raise self._wrong(f"key '{pattern.sentence.key}' has no place for its {{{DETAILS}}}")

    def _check_words(self, kind: str, choice: Choice, world: World) -> None:
        accepted = [*_slots_of(kind), *([DETAILS] if choice.key.endswith(".sentence") else [])]
        for template in choice.templates:
            for slot, form in template.places():
                if slot not in accepted:
                    where = f"key '{choice.key}' is '{template.text}'"
                    raise self._wrong(f"{where}: unknown slot '{slot}'{known_names(slot, accepted, 'known here')}")
                for value in world.slots.get(slot, ()):
                    self._check_form(value, slot, form, template)

    def _check_form(self, value: str, slot: str, form: str, template: Template) -> None:
        key, forms = f"garden.lexicon.{value}", self._garden.lexicon.get(value)
        if forms is None:
            raise self._wrong(f"key '{key}' is missing (a value of slot '{slot}')")
        if form not in forms and EVERY_FORM not in forms:
            lack = f"no form '{form}'" if form != EVERY_FORM else f"several forms, so that {{{slot}}} must name one"
            raise self._wrong(f"key '{key}' has {lack}, in template '{template.text}' (it has: {', '.join(forms)})")

    def _check_subsets(self, kind: str, choice: Choice, world: World) -> None:
        sentence = choice.key.endswith(".sentence")  # which is there even when nothing is said
        for said in _subsets(choice.slots & {DETAILS, *world.slots}):
            if (said or sentence) and choice.pick(said) is None:
                what = " and ".join(sorted(said)) or "nothing"
                raise self._wrong(
                    f"key '{choice.key}' has no template that says just {what} of a {kind}; "
                    "put slots in [ ] or list another template"
                )

    def _wrong(self, what: str) -> RecipeError:
        return RecipeError(f"{self._source}: {what}")


def _slots(text: str) -> list[str]:
    return [m[1] for m in PLACEHOLDER.finditer(text)]


def _slots_of(kind: str) -> list[str]:
    return [slot for slot, (kinds, _) in SLOTS.items() if kind in kinds]


def _choice(key: str, templates: tuple[str, ...]) -> Choice:
    return Choice(key, tuple(Template.parse(t) for t in templates))


def _pattern(key: str, card: PatternCard) -> Pattern:
    details = tuple(_choice(f"{key}.details.{i}", t) for i, t in enumerate(card.details))
    return Pattern(_choice(f"{key}.sentence", card.sentence), details)


def _subsets(slots: Iterable[str]) -> Iterator[frozenset[str]]:
    ordered = sorted(slots)
    return (frozenset(c) for n in range(len(ordered) + 1) for c in combinations(ordered, n))
