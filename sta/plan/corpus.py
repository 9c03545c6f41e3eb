"""What a plan has to know of a corpus: how many recordings, how long, how many bytes each.

The corpus counts itself and gives some of its rows, which are measured here; a corpus at hand is what the options say.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sta.config.cards import LanguageCard
from sta.config.limits import MAX_SECONDS, SAMPLE_RATE
from sta.config.recipe import Recipe
from sta.data.audio import read_audio
from sta.data.corpora.base import Outline, open_source
from sta.data.rows import Row, payload
from sta.data.text import Pieces, normalise, train_sentencepiece
from sta.errors import AudioError, CorpusError
from sta.models.backbones import backbone_class
from sta.training.task import CorpusFacts

SAMPLE = 240  # rows that are measured


@dataclass(frozen=True)
class AtHand:
    """A corpus described on the command line, in place of the recipe's; None: as in the recipe."""

    captions: int | None = None
    seconds: float | None = None
    longest: float | None = None
    pictures: int | None = None


def with_languages(recipe: Recipe, count: int | None) -> Recipe:
    """Return the recipe with `count` languages: its own first, then as many unnamed ones as are missing."""
    named = list(recipe.languages)
    if count is None or count == len(named):
        return recipe
    unnamed = [f"x{number}" for number in range(len(named) + 1, count + 1)]
    return recipe.model_copy(update={"languages": (named + unnamed)[:count]})


def facts_of(recipe: Recipe, at_hand: AtHand) -> CorpusFacts:
    """Return what is known of the corpus of a recipe of `with_languages`, with what the options say in place of it."""
    known = {code: recipe.card(code) for code in recipe.languages if not code[1:].isdecimal()}
    cards = {c: card.model_copy(update={"sentencepiece": recipe.sentencepiece_of(card)}) for c, card in known.items()}
    by_cards = {code: card.sentencepiece.vocab_size for code, card in cards.items()}
    facts = CorpusFacts(source="the language cards", pieces=by_cards)
    try:
        facts = _measured(facts, recipe, open_source(recipe.corpus, cards, recipe.seed).outline(SAMPLE), cards)
    except CorpusError:
        if at_hand.captions is None or at_hand.seconds is None:
            raise
    if at_hand == AtHand() and len(recipe.languages) == len(cards):
        return facts
    return _overridden(facts, recipe.languages, at_hand, by_cards if at_hand.captions else facts.pieces)


def _overridden(
    facts: CorpusFacts, languages: Sequence[str], at_hand: AtHand, pieces: Mapping[str, int]
) -> CorpusFacts:
    """Return `facts` as the options want them: other languages get the mean of the named ones' pieces."""
    mean, named = round(float(np.mean(list(pieces.values())))), len(pieces)
    each, seconds = at_hand.captions or facts.recordings / named, at_hand.seconds or facts.seconds
    shown = facts.rows / named / facts.pictures if facts.pictures else 1  # captions a picture
    if at_hand.seconds:
        facts = replace(facts, raw=seconds, full=seconds, phrase=0.0, longest=0.0)
    if at_hand.captions:
        facts = replace(facts, pieces_a_second=CorpusFacts.pieces_a_second, pictures=round(each / shown))
    return replace(
        facts, source=f"as the options say, else {facts.source}", seconds=seconds,
        pieces={code: pieces.get(code, mean) for code in languages}, recordings=round(each * len(languages)),
        others=round(facts.others * len(languages) / named), pictures=at_hand.pictures or facts.pictures,
        longest=at_hand.longest or max(facts.longest, min(2 * seconds, MAX_SECONDS)),
    )  # fmt: skip


def _measured(facts: CorpusFacts, recipe: Recipe, outline: Outline, cards: Mapping[str, LanguageCard]) -> CorpusFacts:
    """Measure the recordings of an outline as the prepare stage reads them."""
    rows = [row for row in outline.sample if payload(row.get("audio")) is not None]
    if not rows:
        raise CorpusError(f"corpus {recipe.corpus.name}: no row that was looked at has a recording")
    backbone, started = backbone_class(recipe.encoder.backbone), time.perf_counter()
    try:
        waves = [read_audio(payload(row["audio"]) or b"") for row in rows]
    except AudioError as error:
        raise CorpusError(f"{error} (give --captions and --seconds to plan without it)") from error
    seconds = np.array([len(backbone.cached_features(wave)) for wave in waves]) / backbone.features_per_second
    took = time.perf_counter() - started
    short = np.array([bool(row.get("phrase")) for row in rows])
    if outline.seconds is not None:  # what is made here says all that there is to say, what is read may say much more
        pieces, total = _pieces(rows, cards, recipe.seed)
        per_second, rate = total / float(seconds.sum()), len(rows) / (outline.seconds + took)
        facts = replace(facts, pieces=pieces, pieces_a_second=per_second, rate=rate)
    return replace(
        facts, source=outline.known_by, recordings=outline.recordings, others=outline.others, pictures=outline.pictures,
        seconds=float(seconds.mean()), longest=float(seconds.max()),
        raw=float(np.mean([len(wave) for wave in waves])) / SAMPLE_RATE, full=float(seconds[~short].mean()),
        phrase=float(seconds[short].mean()) if short.any() else 0.0, moods=outline.moods, attributes=outline.attributes,
        picture_bytes=float(np.mean([len(row["image"]["bytes"] or b"") for row in outline.sample])),
        holds_audio=any(row["audio"]["bytes"] is not None for row in rows),
    )  # fmt: skip


def _pieces(rows: Sequence[Row], cards: Mapping[str, LanguageCard], seed: int) -> tuple[dict[str, int], int]:
    """Return (language -> pieces of a model of some rows' captions, pieces of those captions in all)."""
    sizes, total = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for code, card in cards.items():
            own = [normalise(row["text"], card.normaliser) for row in rows if row["language"] == code]
            model = Pieces.load(train_sentencepiece(own, card.sentencepiece, Path(folder) / f"{code}.model", seed=seed))
            sizes[code] = model.size
            total += sum(len(model.encode(text)) for text in own)
    return sizes, total
