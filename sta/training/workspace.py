"""Where a run keeps things: `runs/<name>/<stage>/final`, and `runs/cache/<key>` for what several runs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sta.config.cards import LanguageCard, TeacherCard, load_teacher
from sta.config.recipe import CACHE, Recipe
from sta.data.audio import MARGIN
from sta.data.cache import key_of
from sta.data.checksums import file_hash
from sta.data.corpora.base import CorpusSource, open_source
from sta.data.phonemes import as_phonemes
from sta.data.rows import Corpus
from sta.data.store import Ragged
from sta.data.text import Pieces, normalise
from sta.distributed.sharding import IGNORE_INDEX
from sta.errors import CorpusError, StaError
from sta.models.backbones import backbone_class
from sta.models.teachers.base import Teacher, teacher_class
from sta.training.losses.base import reads_pieces

CORPUS_VERSION = 3  # raised when the same recipe would build another corpus

UNSAID = 0  # the value of an attribute that a caption does not name


@dataclass(frozen=True)
class NamedAttributes:
    """What the captions name.

    Attributes:
        sizes: attribute -> number of its values, `UNSAID` among them.
        values: int64 [rows, attributes], numbers of values; `IGNORE_INDEX` in rows of which nothing is known.
    """

    sizes: dict[str, int]
    values: np.ndarray


@dataclass
class Workspace:
    """A recipe and the folders of its run."""

    recipe: Recipe
    out: Path

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.out / self.recipe.name

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.folder / name

    def final(self, name: str) -> Path:
        """Return what stage `name` left, if it has run."""
        path = self.stage(name) / "final"
        if not path.exists():
            raise StaError(f"{path}: not there; run stage '{name}' first (sta run does all stages in order)")
        return path

    @cached_property
    def cards(self) -> dict[str, LanguageCard]:
        """The recipe's languages by code."""
        return self.recipe.cards()

    @cached_property
    def source(self) -> CorpusSource:
        """The corpus that the recipe names, before it is prepared."""
        return open_source(self.recipe.corpus, self.cards, self.recipe.seed)

    @cached_property
    def teacher_card(self) -> TeacherCard:
        """Return the card of the recipe's teacher."""
        return load_teacher(self.recipe.teacher)

    @cached_property
    def teacher_class(self) -> type[Teacher]:
        """Return the class that the card of the teacher names."""
        return teacher_class(self.teacher_card)

    @cached_property
    def cache(self) -> Path:
        """The folder of this corpus: everything it depends on is in its key."""
        parts = {
            "version": CORPUS_VERSION,
            "corpus": self.source.version(),
            "languages": {code: card.model_dump(mode="json") for code, card in self.cards.items()},
            "seed": self.recipe.seed,
        }
        return self.out / CACHE / f"{self.recipe.corpus.name.rpartition(':')[2].lower()}-{key_of(parts)}"

    @property
    def prepared(self) -> dict[str, Path]:
        """The folders that the prepare stage makes in the cache."""
        kind = backbone_class(self.recipe.encoder.backbone).feature_kind
        teacher, own, count = self.teacher_card, {}, self.recipe.encoder.pieces
        own_pieces = (f"-{count}" if count else "") + "".join(f"-{code}" for code in self.recipe.phonemes)
        if teacher.pixels is not None:
            own["teacher's pixels"] = self.cache / f"pixels-{teacher.pixels}"
        if teacher.pieces is not None:
            own["teacher's pieces"] = self.cache / f"pieces-teacher-{teacher.pieces}"
        return {
            "corpus": self.cache / "corpus",
            "pieces": self.cache / (f"pieces{own_pieces}" if reads_pieces(self.recipe) else "no-pieces"),
            "features": self.cache / f"features-{kind}-margin-{1000 * MARGIN:.0f}ms",
            "pixels": self.cache / f"pixels-{self.recipe.corpus.size}",
            **own,
        }

    def made(self, what: str) -> Path:
        """Return a folder of `prepared`, if it is there."""
        path = self.prepared[what]
        if not path.exists():
            raise CorpusError(f"{path}: not there; stage 'prepare' makes what is missing (sta run does all stages)")
        return path

    @cached_property
    def corpus(self) -> Corpus:
        """Return the corpus, which is made."""
        return Corpus(self.made("corpus"))

    @cached_property
    def pieces(self) -> dict[str, Pieces]:
        """Return language -> its SentencePiece model."""
        folder = self.made("pieces")
        return {code: Pieces.load(folder / f"{code}.model") for code in self.recipe.languages}

    @cached_property
    def texts(self) -> Captions:
        """The captions as the CTC head and the teacher see them: normalised by their language's steps."""
        return Captions(self.corpus, {code: card.normaliser for code, card in self.cards.items()})

    @cached_property
    def spellings(self) -> Spellings:
        """The captions as pieces are learnt of them: letters, or the phonemes of some languages."""
        return Spellings(self.texts, {code: self.cards[code] for code in self.recipe.phonemes})

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 [pictures, H, W, 3], memory-mapped, in the order of `corpus.image_index`."""
        return np.load(self.made("pixels") / "values.npy", mmap_mode="r")

    @cached_property
    def teacher_pixels(self) -> np.ndarray:
        """As `pixels`, at the resolution of a teacher that is trained here."""
        return np.load(self.made("teacher's pixels") / "values.npy", mmap_mode="r")

    @cached_property
    def features(self) -> Ragged:
        """Return the cached features of all rows."""
        return Ragged(self.made("features"))

    @cached_property
    def attributes(self) -> NamedAttributes:
        """Return what every row's caption names, its kind among it, of a corpus that knows."""
        if not self.corpus.truths:
            raise StaError(f"{self.cache}: this corpus does not know what its captions name")
        truths = [self.corpus.truths.get(i) for i in self.corpus.column("id")]
        named = [{} if t is None else {"kind": t.kind, **t.said} for t in truths]
        known = {slot: sorted({n[slot] for n in named if slot in n}) for slot in sorted({s for n in named for s in n})}
        numbers = {slot: {value: i for i, value in enumerate(values, UNSAID + 1)} for slot, values in known.items()}
        values = np.array(
            [[of.get(n.get(slot, ""), UNSAID if n else IGNORE_INDEX) for slot, of in numbers.items()] for n in named]
        )
        return NamedAttributes({slot: len(of) + 1 for slot, of in numbers.items()}, values)

    @cached_property
    def moods(self) -> list[str]:
        """The moods that the training rows name, sorted."""
        return self._named("mood")

    @cached_property
    def styles(self) -> list[str]:
        """The styles that the training rows name, sorted."""
        return self._named("style")

    def _named(self, column: str) -> list[str]:
        """Return the values of a column in the training rows, sorted."""
        named = self.corpus.column(column).counts(self.corpus.select("train"))
        return sorted(value for value in named if value is not None)


class Captions:
    """A corpus's captions, normalised when they are asked for; "" of a row without one."""

    def __init__(self, corpus: Corpus, steps: Mapping[str, Sequence[str]]):
        self.texts, self.languages, self.steps = corpus.column("text"), corpus.column("language"), steps

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int | np.integer) -> str:
        return normalise(self.texts[row] or "", self.steps[self.languages[row]])


class Spellings:
    """Captions as they are spelled for the CTC head: as they are, or, of some languages, as phonemes.

    Args:
        phonemes: the cards of these languages.
    """

    def __init__(self, captions: Captions, phonemes: Mapping[str, LanguageCard]):
        self.captions, self.phonemes, self._sounds = captions, phonemes, dict[str, dict[str, str]]()

    def __getitem__(self, row: int | np.integer) -> str:
        code, text = self.captions.languages[row], self.captions[row]
        return self._sounds_in(code)[text] if code in self.phonemes else text

    def _sounds_in(self, code: str) -> dict[str, str]:
        """Return caption -> its phonemes, of every caption in a language."""
        if code not in self._sounds:
            rows = np.flatnonzero(self.captions.languages.equal(code))
            texts = sorted({self.captions[row] for row in rows})
            self._sounds[code] = dict(zip(texts, as_phonemes(texts, self.phonemes[code]), strict=True))
        return self._sounds[code]


def fingerprint(folder: Path) -> str:
    """Return sixteen hex digits of the weights and configurations below a folder; they name caches and token spaces."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json", ".model"))
    return key_of([[str(p.relative_to(folder)), file_hash(p)] for p in files])
