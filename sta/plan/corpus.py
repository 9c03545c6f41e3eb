"""What a plan has to know of a corpus: how many recordings, how long, how many bytes each.

Garden is asked by making some of it, in this process; a folder by its manifest; a corpus at hand by the options.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from sta.config.cards import LanguageCard, load_language
from sta.config.limits import MAX_SECONDS, SAMPLE_RATE
from sta.config.recipe import FolderCorpus, GardenCorpus, ParquetCorpus, Recipe
from sta.data.audio import read_audio
from sta.data.corpora.folder import read_manifest
from sta.data.corpora.garden.corpus import Garden, world_of
from sta.data.corpora.parquet import find_shards, rows_of
from sta.data.rows import Row
from sta.data.text import Pieces, normalise, train_sentencepiece
from sta.data.unreadable import Unreadable
from sta.errors import StaError
from sta.models.backbones import backbone_class

SAMPLE = 60  # scenes of Garden that are made to measure it
HEARD = 200  # recordings of a folder whose length is read
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
        rate: recordings made and heard per second on one core of this machine; None where nothing is made.
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
        return self.recordings + self.others

    def heard(self, phrases: float) -> float:
        """Mean seconds of speech where a share `phrases` is of short phrases."""
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
    """The recipe with `count` languages: its own first, then as many unnamed ones as are missing."""
    named = list(recipe.languages)
    if count is None or count == len(named):
        return recipe
    return recipe.model_copy(
        update={"languages": (named + [f"x{n}" for n in range(len(named) + 1, count + 1)])[:count]}
    )


def facts_of(recipe: Recipe, at_hand: AtHand) -> Facts:
    """What is known of the recipe's corpus, with what the options say in place of it.

    Args:
        recipe: of `with_languages`.

    Raises:
        StaError: the corpus cannot be read or made here, and the options do not say what is missing.
    """
    corpus = recipe.corpus
    cards = {code: load_language(code) for code in recipe.languages if not _unnamed(code)}
    if isinstance(corpus, GardenCorpus):
        facts = _of_garden(recipe, corpus, cards)
    elif at_hand.captions is not None and at_hand.seconds is not None:
        facts = _unseen(cards)
    elif isinstance(corpus, ParquetCorpus):
        facts = _of_parquet(corpus, cards)
    else:
        facts = _of_folder(corpus, cards)
    return _overridden(recipe, facts, at_hand)


def _unnamed(code: str) -> bool:
    return code[1:].isdecimal()


def _overridden(recipe: Recipe, facts: Facts, at_hand: AtHand) -> Facts:
    """`facts` as the options want them: other languages get the mean of the named ones' pieces."""
    if at_hand == AtHand():
        return facts
    cards = {code: load_language(code) for code in facts.pieces}
    known = {code: card.sentencepiece.vocab_size for code, card in cards.items()} if at_hand.captions else facts.pieces
    mean = round(float(np.mean(list(known.values()))))
    share = len(recipe.languages) / len(known)
    each = at_hand.captions or facts.recordings / len(known)
    seconds = at_hand.seconds or facts.seconds
    pictures = at_hand.pictures or (round(each / _captions_a_picture(recipe)) if at_hand.captions else facts.pictures)
    return replace(
        facts, source=f"as the options say, else {facts.source}",
        pieces={code: known.get(code, mean) for code in recipe.languages},
        recordings=round(each * len(recipe.languages)), others=round(facts.others * share), pictures=pictures,
        seconds=seconds, raw=at_hand.seconds or facts.raw, full=at_hand.seconds or facts.full,
        phrase=0.0 if at_hand.seconds else facts.phrase,
        longest=at_hand.longest or max(facts.longest if at_hand.seconds is None else 0, min(2 * seconds, MAX_SECONDS)),
        pieces_a_second=facts.pieces_a_second if at_hand.captions is None else PIECES_A_SECOND,
    )  # fmt: skip


def _captions_a_picture(recipe: Recipe) -> int:
    return 1 + recipe.corpus.phrases if isinstance(recipe.corpus, GardenCorpus) else 1


# ---- Garden ---------------------------------------------------------------------------------------------------


def _of_garden(recipe: Recipe, corpus: GardenCorpus, cards: dict[str, LanguageCard]) -> Facts:
    garden, count = Garden(corpus, tuple(cards), recipe.seed), len(cards)
    world = world_of(corpus.world)
    spoken = {slot for kind in world.kinds for slot in world.spoken_slots(kind)}
    sample = _heard(garden, recipe, cards)
    held_out = corpus.validation + 4 * corpus.test + 2 * corpus.swaps
    return Facts(
        source=f"from {sample['rows']} recordings made here", pieces=sample["pieces"],
        recordings=corpus.scenes * (1 + corpus.phrases) * count, others=held_out * count,
        pictures=corpus.scenes + held_out, seconds=sample["seconds"], longest=sample["longest"], raw=sample["raw"],
        full=sample["full"], phrase=sample["phrase"],
        pieces_a_second=sample["pieces_a_second"], moods=len(world.moods),
        attributes={"kind": len(world.kinds) + 1, **{slot: len(world.slots[slot]) + 1 for slot in sorted(spoken)}},
        picture_bytes=sample["picture_bytes"], holds_audio=True, rate=sample["rate"],
    )  # fmt: skip


def _heard(garden: Garden, recipe: Recipe, cards: dict[str, LanguageCard]) -> dict[str, Any]:
    """Some scenes of training, made and heard as the prepare stage does, and what that took."""
    plan = garden.plans()[0]
    warm = garden.rows(plan, range(1))  # the synthesisers start
    started = time.perf_counter()
    rows = [row for row, _ in garden.rows(plan, range(min(SAMPLE, plan.scenes)))] or [row for row, _ in warm]
    waves = [read_audio(row["audio"]["bytes"]) for row in rows]
    backbone = backbone_class(recipe.encoder.backbone)
    speech = [backbone.cached_features(wave) for wave in waves]
    rate = len(rows) / (time.perf_counter() - started)
    seconds = np.array([len(s) for s in speech]) / backbone.features_per_second
    texts = [normalise(row["text"], cards[row["language"]].normaliser) for row in rows]
    codes = [row["language"] for row in rows]
    short = np.array(["-p" in row["id"] for row in rows])
    pieces, said = _pieces(texts, codes, cards, recipe.seed)
    return {
        "rows": len(rows), "rate": rate, "seconds": float(seconds.mean()), "longest": float(seconds.max()),
        "full": float(seconds[~short].mean()), "phrase": float(seconds[short].mean()) if short.any() else 0.0,
        "raw": float(np.mean([len(w) for w in waves])) / SAMPLE_RATE, "pieces": pieces,
        "pieces_a_second": said / float(seconds.sum()),
        "picture_bytes": float(np.mean([len(row["image"]["bytes"]) for row in rows])),
    }  # fmt: skip


def _pieces(
    texts: Sequence[str], codes: Sequence[str], cards: dict[str, LanguageCard], seed: int
) -> tuple[dict[str, int], int]:
    """(language -> pieces of a model of some captions, pieces of those captions in all)."""
    sizes, said = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for code, card in cards.items():
            own = [text for text, c in zip(texts, codes, strict=True) if c == code]
            model = Pieces.load(train_sentencepiece(own, card.sentencepiece, Path(folder) / f"{code}.model", seed=seed))
            sizes[code] = model.size
            said += sum(len(model.encode(text)) for text in own)
    return sizes, said


# ---- folders --------------------------------------------------------------------------------------------------


def _of_folder(corpus: FolderCorpus, cards: dict[str, LanguageCard]) -> Facts:
    rows = [row for row, _ in read_manifest(corpus, list(cards))]
    some = rows[:: max(1, len(rows) // HEARD)]
    return _of_sample(cards, some, rows, 1.0, f"from {corpus.root}/metadata.jsonl and {len(some)} of its recordings")


def _of_parquet(corpus: ParquetCorpus, cards: dict[str, LanguageCard]) -> Facts:
    """By the sizes of all shards and the first rows of the first."""
    shards = find_shards(corpus, list(cards))
    rows = sum(rows_of(shard) for shard in shards)
    found = islice((one for one in shards[0] if not isinstance(one, Unreadable)), HEARD)
    some = [row for row, _ in found]
    if not some:
        raise StaError(f"{shards[0].path}: no row of it can be read; give --captions and --seconds to plan without it")
    source = f"from {len(shards)} shards and the first {len(some)} recordings"
    return _of_sample(cards, some, some, rows / len(some), source)


def _of_sample(
    cards: dict[str, LanguageCard], heard: Sequence[Row], rows: Sequence[Row], times: float, source: str
) -> Facts:
    """Lengths by the recordings `heard`, numbers by the `rows`, of which the corpus holds `times` as many."""
    train = [row for row in rows if row["split"] == "train"]
    seconds = np.array([_seconds(row["audio"]) for row in heard])
    return replace(
        _unseen(cards), source=source, recordings=round(times * len(train)),
        others=round(times * (len(rows) - len(train))),
        pictures=round(times * len({row["image_id"] for row in rows})), seconds=float(seconds.mean()),
        longest=float(seconds.max()), raw=float(seconds.mean()), full=float(seconds.mean()),
        moods=len({row["mood"] for row in train} - {None}),
    )  # fmt: skip


def _seconds(audio: Mapping[str, Any]) -> float:
    try:
        return float(soundfile.info(audio["path"] or io.BytesIO(audio["bytes"])).duration)
    except (OSError, TypeError, soundfile.SoundFileError) as error:
        raise StaError(
            f"{audio['path'] or 'a recording in a shard'}: cannot be read ({error}); give --captions and --seconds to "
            "plan without it"
        ) from None


def _unseen(cards: dict[str, LanguageCard]) -> Facts:
    """A folder of which only the cards are known."""
    return Facts(
        source="the language cards", pieces={code: card.sentencepiece.vocab_size for code, card in cards.items()},
        recordings=0, others=0, pictures=0, seconds=0.0, longest=0.0, raw=0.0, full=0.0, phrase=0.0,
        pieces_a_second=PIECES_A_SECOND, moods=0, attributes={}, picture_bytes=0.0, holds_audio=False, rate=None,
    )  # fmt: skip
