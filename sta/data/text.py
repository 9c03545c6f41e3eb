"""Text of any script: normaliser steps chosen by the language card, and SentencePiece pieces.

No step strips accents by decomposing to ASCII: that turns Arabic, Hindi or Amharic into blanks.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import sentencepiece

from sta.config.cards import SentencePieceCard
from sta.data.cache import write_atomically
from sta.errors import CorpusError, RecipeError, known_names

ARABIC_MARKS = re.compile("[\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]")
ALEFS = re.compile("[\u0622\u0623\u0625\u0671]")  # with madda, with hamza above or below, wasla
APOSTROPHES = re.compile("[\u2018\u2019\u02bc\uff07`\u00b4]")
NO_TEXT = b"a language without text has no pieces\n"  # in place of its SentencePiece model
JOINERS = "\u200c\u200d"  # they change how a word reads in Persian or Hindi, so they stay


def nfc(text: str) -> str:
    """Canonical composition: one code point per accented letter where there is one."""
    return unicodedata.normalize("NFC", text)


def lowercase(text: str) -> str:
    """Small letters, in scripts that have them."""
    return nfc(text.lower())


def strip_invisible(text: str) -> str:
    """Drop direction marks, soft hyphens and control characters (joiners stay, line ends become spaces)."""
    spaced = (" " if c.isspace() else c for c in text)
    return "".join(c for c in spaced if c in JOINERS or not unicodedata.category(c).startswith("C"))


def strip_punctuation(text: str) -> str:
    """Punctuation and symbols become spaces; an apostrophe between letters is part of its word."""
    text = APOSTROPHES.sub("'", text)
    characters = []
    for i, c in enumerate(text):
        within_word = c == "'" and text[i - 1 : i].isalpha() and text[i + 1 : i + 2].isalpha()
        characters.append(" " if unicodedata.category(c)[0] in "PS" and not within_word else c)
    return "".join(characters)


def collapse_spaces(text: str) -> str:
    """Leave one space between words, none at the ends."""
    return " ".join(text.split())


def strip_tatweel(text: str) -> str:
    """Drop the Arabic stretching stroke."""
    return text.replace("\u0640", "")


def strip_diacritics_arabic(text: str) -> str:
    """Drop Arabic vowel signs and Quranic marks; letters with hamza or madda stay as they are."""
    return ARABIC_MARKS.sub("", nfc(text))


def unify_alef(text: str) -> str:
    """Alef with hamza, madda or wasla becomes bare alef, as many people write it."""
    return ALEFS.sub("\u0627", text)


def digits_to_ascii(text: str) -> str:
    """Decimal digits of any script become 0 to 9."""
    return "".join(str(unicodedata.decimal(c)) if unicodedata.category(c) == "Nd" else c for c in text)


STEPS: dict[str, Callable[[str], str]] = {
    step.__name__: step
    for step in (
        nfc, lowercase, strip_invisible, strip_punctuation, collapse_spaces, strip_tatweel, strip_diacritics_arabic,
        unify_alef, digits_to_ascii,
    )
}  # fmt: skip


def normalise(text: str, steps: Sequence[str]) -> str:
    """Apply the named steps in order, again until nothing changes, so that normalising twice is normalising once."""
    for name in steps:
        if name not in STEPS:
            raise RecipeError(f"language card: unknown normaliser step '{name}'{known_names(name, STEPS)}")
    previous = None
    while text != previous:
        previous = text
        for name in steps:
            text = STEPS[name](text)
    return text


def train_sentencepiece(
    texts: Iterable[str], card: SentencePieceCard, path: Path, seed: int = 0, setting: str = "sentencepiece.vocab_size"
) -> Path:
    """Learn pieces from normalised texts and write the model to `path`, whole or not at all.

    Texts too few for the card's `vocab_size` give fewer pieces. The pieces have no marks for begin, end or padding;
    id 0 is the unknown piece. The same texts in the same order give the same file. `setting` is what an error calls the
    `vocab_size`, where it is too small for the characters of the texts.
    """
    texts = [t for t in texts if t]
    if not texts:
        raise CorpusError(f"{path}: SentencePiece has no text to learn from (every caption was empty)")
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=card.vocab_size, hard_vocab_limit=False,
            character_coverage=card.character_coverage, model_type=card.model_type, bos_id=-1, eos_id=-1,
            normalization_rule_name="identity",  # the language card has normalised already
            num_threads=1, minloglevel=4,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        characters = set("".join(texts))
        least = len(characters | {" "}) + 1  # a piece for each, for where words begin, and for what is unknown
        raise RecipeError(
            f"{setting}: SentencePiece cannot make {card.vocab_size} pieces from {len(texts)} texts with "
            f"{len(characters)} different characters; it needs at least {least}: raise {setting}, or lower the "
            f"sentencepiece.character_coverage of a language ({error})"
        ) from error
    write_atomically(path, model.getvalue())
    return path


class Pieces:
    """A language's text as piece numbers, 0 to `size` - 1; a language that has no text has the unknown piece alone."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor | None = None) -> None:
        self._processor = processor

    @classmethod
    def load(cls, path: str | Path) -> Pieces:
        """Read a model that `train_sentencepiece` wrote, or what `serialized` gives of a language without text."""
        try:
            model = Path(path).read_bytes()
            if not model:  # which SentencePiece would take for a model without pieces
                raise EOFError("it is empty")
            return cls(None if model == NO_TEXT else sentencepiece.SentencePieceProcessor(model_proto=model))
        except (OSError, EOFError, RuntimeError) as error:
            raise CorpusError(f"{path}: not a readable SentencePiece model ({error})") from error

    def serialized(self) -> bytes:
        """Return the model file's bytes, as `load` reads them."""
        return bytes(self._processor.serialized_model_proto()) if self._processor else NO_TEXT

    @property
    def size(self) -> int:
        """Count the pieces, the unknown one included."""
        return int(self._processor.get_piece_size()) if self._processor else 1

    def encode(self, text: str) -> list[int]:
        """Return the piece numbers of a normalised text."""
        return [int(i) for i in self._processor.encode(text, out_type=int)] if self._processor else []

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of piece numbers."""
        return str(self._processor.decode([int(i) for i in ids])) if self._processor else ""
