"""What a plan has to know of a corpus: how many recordings, how long, how many bytes each.

The corpus counts itself and gives some of its rows, which are measured here; a corpus at hand is what the options say.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
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

SAMPLE = 240  # rows that are measured
PIECES_A_SECOND = 4.5  # where no text is at hand; Garden has 6.7 in English and 2.8 in Arabic
WAV_HEADER = 44
ROW = 260  # bytes of a row's other columns; Garden has 250 to 280 with its text
NUMBERED = 100  # bytes of a row that a training process holds: numbers, lengths, two epochs' orders; measured on Garden


@dataclass(frozen=True)
class AtHand:
    """A corpus described on the command line, in place of the recipe's; None: as in the recipe."""

    captions: int | None = None
    languages: int | None = None
    seconds: float | None = None
    longest: float | None = None
    pictures: int | None = None


@dataclass(frozen=True)
class Facts:
    """A corpus as a plan sees it.

    Attributes:
        source: how this is known, in words.
        pieces: language -> pieces of its SentencePiece model.
        recordings: of training, all languages. others: of validation and test.
        pictures: of all splits.
        seconds, longest: of the speech in a recording, without the silence around it. raw: with it.
        full, phrase: as seconds, of full captions and of short phrases alone; phrase is 0 where there are none.
        pieces_a_second: of a caption, for a second of its speech.
        moods: how many are named. attributes: attribute -> its values, the unsaid one among them.
        picture_bytes: of the file that each row holds; 0 where rows hold paths. holds_audio: whether they hold sound.
        rate: recordings made and encoded per second on one core of this machine; None where nothing is made.
    """

    source: str
    pieces: dict[str, int]
    recordings: int
    others: int
    pictures: int
    seconds: float
    longest: float
    raw: float
    full: float
    phrase: float
    pieces_a_second: float
    moods: int
    attributes: dict[str, int]
    picture_bytes: float
    holds_audio: bool
    rate: float | None

    @property
    def rows(self) -> int:
        """Recordings of all splits."""
        return self.recordings + self.others

    def mean_seconds(self, phrases: float) -> float:
        """Return the mean seconds of speech where a share `phrases` is of short phrases."""
        return self.full + phrases * (self.phrase - self.full) if self.phrase else self.full

    @property
    def speech(self) -> float:
        """Seconds of speech in all; validation and test hold full captions only."""
        return self.recordings * self.seconds + self.others * self.full

    @property
    def audio_bytes(self) -> float:
        """Of all recordings as 16-bit WAV."""
        return self.speech * self.raw / self.seconds * SAMPLE_RATE * 2 + self.rows * WAV_HEADER


def with_languages(recipe: Recipe, count: int | None) -> Recipe:
    """Return the recipe with `count` languages: its own first, then as many unnamed ones as are missing."""
    named = list(recipe.languages)
    if count is None or count == len(named):
        return recipe
    return recipe.model_copy(
        update={"languages": (named + [f"x{n}" for n in range(len(named) + 1, count + 1)])[:count]}
    )


def facts_of(recipe: Recipe, at_hand: AtHand) -> Facts:
    """Return what is known of the recipe's corpus, with what the options say in place of it.

    Args:
        recipe: of `with_languages`.

    Raises:
        StaError: the corpus cannot be read or made here, and the options do not say what is missing.
    """
    cards = {code: recipe.card(code) for code in recipe.languages if not _unnamed(code)}
    try:
        facts = _measured(recipe, open_source(recipe.corpus, cards, recipe.seed).outline(SAMPLE), cards)
    except CorpusError:
        if at_hand.captions is None or at_hand.seconds is None:
            raise
        facts = _unseen(cards)
    return _overridden(recipe, facts, at_hand, cards)


def _unnamed(code: str) -> bool:
    return code[1:].isdecimal()


def _overridden(recipe: Recipe, facts: Facts, at_hand: AtHand, cards: dict[str, LanguageCard]) -> Facts:
    """`facts` as the options want them: other languages get the mean of the named ones' pieces."""
    if at_hand == AtHand():
        return facts
    known = {code: card.sentencepiece.vocab_size for code, card in cards.items()} if at_hand.captions else facts.pieces
    mean = round(float(np.mean(list(known.values()))))
    share = len(recipe.languages) / len(known)
    each = at_hand.captions or facts.recordings / len(known)
    seconds = at_hand.seconds or facts.seconds
    shown = facts.rows / len(known) / facts.pictures if facts.pictures else 1  # captions a picture
    pictures = at_hand.pictures or (round(each / shown) if at_hand.captions else facts.pictures)
    return replace(
        facts, source=f"as the options say, else {facts.source}",
        pieces={code: known.get(code, mean) for code in recipe.languages},
        recordings=round(each * len(recipe.languages)), others=round(facts.others * share), pictures=pictures,
        seconds=seconds, raw=at_hand.seconds or facts.raw, full=at_hand.seconds or facts.full,
        phrase=0.0 if at_hand.seconds else facts.phrase,
        longest=at_hand.longest or max(facts.longest if at_hand.seconds is None else 0, min(2 * seconds, MAX_SECONDS)),
        pieces_a_second=facts.pieces_a_second if at_hand.captions is None else PIECES_A_SECOND,
    )  # fmt: skip


def _measured(recipe: Recipe, outline: Outline, cards: dict[str, LanguageCard]) -> Facts:
    """Measure the recordings of an outline as the prepare stage reads them."""
    rows = [row for row in outline.sample if payload(row.get("audio")) is not None]
    if not rows:
        raise CorpusError(f"corpus {recipe.corpus.name}: no row that was looked at has a recording")
    backbone = backbone_class(recipe.encoder.backbone)
    started = time.perf_counter()
    try:
        waves = [read_audio(payload(row["audio"]) or b"") for row in rows]
    except AudioError as error:
        raise CorpusError(f"{error} (give --captions and --seconds to plan without it)") from error
    speech = [backbone.cached_features(wave) for wave in waves]
    took = time.perf_counter() - started
    seconds = np.array([len(s) for s in speech]) / backbone.features_per_second
    short = np.array([bool(row.get("phrase")) for row in rows])
    facts = _unseen(cards)
    if outline.seconds is not None:  # what is made here says all that there is to say, what is read may say much more
        pieces, total = _pieces(rows, cards, recipe.seed)
        facts = replace(
            facts, pieces=pieces, pieces_a_second=total / float(seconds.sum()),
            rate=len(rows) / (outline.seconds + took),
        )  # fmt: skip
    held = [row["image"]["bytes"] for row in outline.sample]
    return replace(
        facts, source=outline.known_by, recordings=outline.recordings, others=outline.others, pictures=outline.pictures,
        seconds=float(seconds.mean()), longest=float(seconds.max()),
        raw=float(np.mean([len(wave) for wave in waves])) / SAMPLE_RATE, full=float(seconds[~short].mean()),
        phrase=float(seconds[short].mean()) if short.any() else 0.0, moods=outline.moods, attributes=outline.attributes,
        picture_bytes=float(np.mean([len(data or b"") for data in held])),
        holds_audio=any(row["audio"]["bytes"] is not None for row in rows),
    )  # fmt: skip


def _pieces(rows: Sequence[Row], cards: dict[str, LanguageCard], seed: int) -> tuple[dict[str, int], int]:
    """Return (language -> pieces of a model of some rows' captions, pieces of those captions in all)."""
    sizes, total = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for code, card in cards.items():
            own = [normalise(row["text"], card.normaliser) for row in rows if row["language"] == code]
            model = Pieces.load(train_sentencepiece(own, card.sentencepiece, Path(folder) / f"{code}.model", seed=seed))
            sizes[code] = model.size
            total += sum(len(model.encode(text)) for text in own)
    return sizes, total


def _unseen(cards: dict[str, LanguageCard]) -> Facts:
    """Return what is known of a corpus of which only the cards are."""
    return Facts(
        source="the language cards", pieces={code: card.sentencepiece.vocab_size for code, card in cards.items()},
        recordings=0, others=0, pictures=0, seconds=0.0, longest=0.0, raw=0.0, full=0.0, phrase=0.0,
        pieces_a_second=PIECES_A_SECOND, moods=0, attributes={}, picture_bytes=0.0, holds_audio=False, rate=None,
    )  # fmt: skip
