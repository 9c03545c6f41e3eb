"""What a language file and a teacher file hold, as strict typed models.

A card is data: one YAML file per language (`languages/*.yaml`) and per frozen teacher (`teachers/*.yaml`),
found by name or by path. The grammar inside a language card is given meaning by `sta.data.corpora.garden.grammar`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from sta.config import yamlfile
from sta.config.variants import find_variant, interface
from sta.errors import RecipeError

#: One placeholder of a template: `{slot}` or `{slot.form}`.
PLACEHOLDER = re.compile(r"\{(\w+)(?:\.(\w+))?\}")
#: One part of a template that drops out when something in it is not said.
OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
#: Ids of a text tower trained here that are no pieces: padding, start and end.
MARKS = 3
#: The form that a plain string in the lexicon stands for: it serves wherever a form is not listed.
EVERY_FORM = "*"
TEACHERS = "sta.models.teachers"  # where their kinds lie
#: How a language is named: ISO 639, and where it is one of several kinds, what BCP 47 adds (pt-br).
CODE = r"^[a-z]{2,3}(-[a-z0-9]{2,8})*$"


class Card(BaseModel):
    """Base of all cards: no unknown keys, no silent conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _forms(value: Any) -> Any:
    return {EVERY_FORM: value} if isinstance(value, str) else value


def _well_formed(template: str) -> str:
    for part in OPTIONAL.findall(template):
        if not PLACEHOLDER.search(part):
            raise ValueError(f"the optional part [{part}] names no slot, write one such as [ {{size}}]")
    rest = PLACEHOLDER.sub("", OPTIONAL.sub(r"\1", template))
    if set(rest) & set("[]{}"):
        raise ValueError("brackets must pair and not nest: {slot} or {slot.form}, and [optional part with a {slot}]")
    return template


Word = Annotated[str, Field(min_length=1)]
Words = Annotated[tuple[Word, ...], Strict(False)]  # YAML has lists, a frozen card has tuples
Engines = dict[Word, Annotated[Words, Field(min_length=1)]]  # synthesiser -> its accents or voices
Carrier = Annotated[str, Field(pattern=r"^[^{}]*\{name\}[^{}]*$")]
Template = Annotated[str, Field(min_length=1), AfterValidator(_well_formed)]
#: One template or several; of several, the first that says exactly what is to be said is used.
Templates = Annotated[tuple[Template, ...], Strict(False), BeforeValidator(_listed), Field(min_length=1)]
SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: The forms of a word by tag (`{m: ..., f: ..., dual: ...}`, tags are free), or one string for all forms.
Forms = Annotated[dict[Word, Word], BeforeValidator(_forms), Field(min_length=1)]


class SentencePieceCard(Card):
    """How a language's text is cut into pieces."""

    vocab_size: int = Field(gt=1)
    character_coverage: float = Field(default=1.0, ge=0.98, le=1)  # what SentencePiece accepts
    model_type: Literal["bpe", "unigram"] = "unigram"


class SpeechCard(Card):
    """Who speaks the language in a synthetic corpus. The voices are accent codes of the synthesiser.

    Further synthesisers are files of `sta/data/synthesis`, or `module:Class`, with their accents or voices.
    """

    synthesiser: Literal["espeak"] = "espeak"
    voices: Annotated[Words, Field(min_length=1)]
    test_voices: Words = ()
    other_engines: Engines = Field(default_factory=dict, description="further synthesisers, for training only")
    test_engines: Engines = Field(default_factory=dict, description="synthesisers that are never trained on")
    words_per_minute: int = Field(ge=80, le=450)  # what espeak accepts

    @model_validator(mode="after")
    def _voices_differ(self) -> SpeechCard:
        for name, voices in (("voices", self.voices), ("test_voices", self.test_voices)):
            if twice := sorted({voice for voice in voices if voices.count(voice) > 1}):
                raise ValueError(f"{', '.join(twice)} twice in {name}; name each voice once")
        return self

    @model_validator(mode="after")
    def _test_engines_unheard(self) -> SpeechCard:
        if both := sorted({self.synthesiser, *self.other_engines} & set(self.test_engines)):
            raise ValueError(f"{both[0]} trains and is in test_engines; an engine of the test must not be trained on")
        return self

    @model_validator(mode="after")
    def _test_voices_unheard(self) -> SpeechCard:
        if both := sorted(set(self.voices) & set(self.test_voices)):
            raise ValueError(f"{', '.join(both)} in both voices and test_voices; a test voice must not be trained on")
        return self


class Join(Card):
    """How details are strung together: "a, b and c" has between ", " and last " and "."""

    between: str
    last: str


class PatternCard(Card):
    """One way to say a whole scene.

    `sentence` is a template with a `{details}` place, filled with the joined `details`. Every slot of
    the kind stands either in the sentence or in one detail.
    """

    sentence: Templates
    details: Annotated[tuple[Templates, ...], Strict(False)] = ()


class KindGrammar(Card):
    """The ways to say one kind in a sentence; the first is a noun phrase ("a small bird with a red head")."""

    patterns: Annotated[tuple[PatternCard, ...], Strict(False), Field(min_length=1)]


class GardenGrammar(Card):
    """A language's words (`lexicon`: value -> forms) and sentence patterns by kind."""

    join: Join
    lexicon: dict[str, Forms]
    kinds: dict[str, KindGrammar]


class LanguageCard(Card):
    """Everything the package knows about one language; adding a language is writing one of these."""

    code: str = Field(pattern=CODE, description="ISO 639, or BCP 47 in small letters")
    name: Word
    native_name: Word
    script: str = Field(pattern=r"^[A-Z][a-z]{3}$", description="ISO 15924")
    direction: Literal["ltr", "rtl"]
    normaliser: Words
    sentencepiece: SentencePieceCard
    speech: SpeechCard
    vocaliser: Literal["tashkeel"] | None = Field(None, description="writes vowels into what is spoken")
    carriers: Annotated[tuple[Carrier, ...], Strict(False)] = Field((), description="sentences about a {name}")
    test_sentence: Word
    garden: GardenGrammar | None = None


class TeacherCard(Card):
    """One frozen image-text teacher; `kind` names a class of `sta.models.teachers`, or `module:Class` of your own.

    `text_languages` are those whose captions it reads.
    """

    name: Word
    kind: Word = "open-clip"
    embedding_width: int = Field(gt=0)
    image_size: int = Field(gt=0)
    text_languages: Annotated[Words, Field(min_length=1)]
    licence: Word
    source: Word

    @property
    def licences(self) -> dict[str, str | None]:
        """Return each published part that a release learns from -> its licence; None where it is not known."""
        return {f"teacher {self.name}": self.licence}

    @property
    def pieces(self) -> int | None:
        """How many pieces of the corpus's captions it is given at most; None: it has its own."""
        return None

    @property
    def pixels(self) -> int | None:
        """The side of the pictures that its stage trains on; None: of none."""
        return None

    @property
    def frozen_towers(self) -> tuple[str, ...]:
        """The towers, `image` or `text`, that do not train in its stage; a class of such is as `TrainedClipTeacher`."""
        return ()


class OpenClipCard(TeacherCard):
    """A published model of open_clip.

    `architecture` is its name there, or `local-dir:FOLDER`. `pretrained` is a tag of open_clip, a path, or null.
    `sha256` is that of the file at `source`, null where none is published; a file that `pretrained` is the path of
    must have it.
    """

    architecture: Word
    pretrained: str | None = None
    sha256: SHA256 | None = None


class HeadCard(Card):
    """What is trained upon a frozen tower: its features standardised, one hidden layer, the embedding."""

    hidden: int = Field(gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TrainedClipCard(TeacherCard):
    """A CLIP that the teacher stage trains, of an open_clip model configuration; it reads the recipe's languages.

    `timm_model_name` in `config.vision_cfg` and `hf_model_name` in `config.text_cfg` make towers of published weights,
    by path or by name on the Hub. Those in `frozen` do not train: what they make of the corpus is computed once, and
    a `head` is trained upon each, in the place of open_clip's own; with `image_stages`, upon so many last stages of
    the image tower. `tower_sha256` is that of each one's model.safetensors, `tower_licences` are theirs, for the model
    card, `text_prefix` stands before every text.
    Pictures are seen at `image_size`, and scaled to that of `config.vision_cfg`.
    """

    config: dict[str, Any]
    frozen: Annotated[tuple[Literal["image", "text"], ...], Strict(False)] = ()
    head: HeadCard | None = None
    image_stages: int = Field(default=0, ge=0)
    text_prefix: str = ""
    tower_sha256: dict[Literal["image", "text"], SHA256] = Field(default_factory=dict)
    tower_licences: dict[Literal["image", "text"], Word] = Field(default_factory=dict)

    @property
    def published(self) -> dict[str, str]:
        """Return image and text -> the published network that is its tower."""
        vision, text = (self.config.get(key, {}) for key in ("vision_cfg", "text_cfg"))
        named = {"image": vision.get("timm_model_name"), "text": text.get("hf_model_name")}
        return {tower: name for tower, name in named.items() if name}

    @model_validator(mode="after")
    def _holds(self) -> TrainedClipCard:
        if "vocab_size" not in self.config.get("text_cfg", {}) and "text" not in self.published:
            raise ValueError("config needs text_cfg with a vocab_size, so that its pieces can be trained")
        if unpublished := sorted({*self.frozen, *self.tower_sha256} - set(self.published)):
            raise ValueError(
                f"the {unpublished[0]} tower is no published network; name one in config.vision_cfg.timm_model_name or "
                "config.text_cfg.hf_model_name"
            )
        if self.image_stages and not (self.head and "image" in self.frozen):
            raise ValueError("image_stages are for a head upon a frozen image tower; add head, and image to frozen")
        if self.config.get("embed_dim", self.embedding_width) != self.embedding_width:
            raise ValueError(
                f"embedding_width {self.embedding_width} is not config.embed_dim {self.config['embed_dim']}"
            )
        return self

    @property
    def licences(self) -> dict[str, str | None]:
        """Return each published tower -> its licence; None where the card does not say."""
        licences = {str(tower): licence for tower, licence in self.tower_licences.items()}
        return {f"teacher's {tower} tower {name}": licences.get(tower) for tower, name in self.published.items()}

    @property
    def pieces(self) -> int | None:
        """The most pieces that its text tower has ids for; None of a published one, which has its own."""
        if "text" in self.published:
            return None
        return int(self.config["text_cfg"]["vocab_size"]) - MARKS

    @property
    def frozen_towers(self) -> tuple[str, ...]:
        """The towers that do not train."""
        return self.frozen

    @property
    def pixels(self) -> int | None:
        """The side of its pictures; None where a frozen tower sees the original ones, once."""
        return None if "image" in self.frozen else self.image_size


def load_language(name_or_path: str | Path) -> LanguageCard:
    """Read a language card, by code of a packaged one (`ar`) or by path, where its code may be any.

    Raises:
        RecipeError: it does not exist, does not hold, or is another language's than its code says.
    """
    path = yamlfile.find(name_or_path, "languages")
    card = yamlfile.load(path, LanguageCard)
    if path != Path(name_or_path) and path.stem != card.code:  # a copy whose head was not changed would pass for both
        raise RecipeError(
            f"{path}: key 'code' is '{card.code}': a packaged language's file is named by its code; write code: "
            f"{path.stem}, or name the file {card.code}.yaml"
        )
    return card


def released_language(text: str) -> LanguageCard:
    """Return the language card that a release holds as JSON, of this version or of an older one.

    Raises:
        ValueError: it does not hold.
    """
    card = json.loads(text)
    for kind in ((card.get("garden") or {}).get("kinds") or {}).values():
        kind.pop("phrases", None)  # version 0.1 had them, and never said them
    return LanguageCard.model_validate(card)


def load_teacher(name_or_path: str | Path) -> TeacherCard:
    """Read a teacher card, by name of a packaged one (`vit-l-14`) or by path.

    Raises:
        RecipeError: it does not exist or does not hold.
    """
    path = yamlfile.find(name_or_path, "teachers")
    card = yamlfile.read(path)
    if "trained_here" in card:
        kind = "trained-clip" if card["trained_here"] else "open-clip"
        raise RecipeError(f"{path}: key 'trained_here' is gone since version 0.2; write kind: {kind} in its place")
    try:
        teacher = find_variant(TEACHERS, str(card.get("kind", "open-clip")), interface(TEACHERS, "Teacher"), "kind")
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    settings: type[TeacherCard] = teacher.Settings
    return yamlfile.validate(settings, card, str(path))
