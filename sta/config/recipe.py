"""Recipes: one YAML file per experiment, strict and typed, with `extends:` and `key=value` overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from sta.config import yamlfile
from sta.config.cards import CODE, LanguageCard, SentencePieceCard, load_language
from sta.config.limits import MAX_GUIDANCE
from sta.config.variants import find_variant, interface, modules_of, read_settings
from sta.config.yamlfile import AbsolutePath, CardName
from sta.errors import RecipeError, known_names

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Compile = Literal["never", "gpu", "always"]  # where torch.compile is used

DECODERS, DRAWN_BY = "sta.models.decoders", "vq-diffusion"  # where decoders lie, and the one that draws by default
CACHE = "cache"  # the folder beside the runs' own that they share


class Strict(BaseModel):
    """Base of every section: unknown keys, wrong types and later changes are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)


def _in_order(between: tuple[float, float]) -> tuple[float, float]:
    if between[0] > between[1]:
        raise ValueError("the first of the two must not be above the second")
    return between


Between = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_in_order)]


class SpeechSettings(Strict):
    """How rows that have a text and no recording are spoken, by the engines of their language's card."""

    engines: dict[str, Above0] = {"espeak": 1.0}  # synthesisers to train on -> share of the rows of a language
    recordings: AbsolutePath | None = None  # folder with metadata.jsonl (text, language, audio, speaker), taken first
    vocalise: bool = True  # have the vowels written first where a language card names a vocaliser
    speeds: Between = (0.7, 1.15)  # factors on the card's words per minute
    levels: Between = (-12.0, 3.0)  # decibels against speech as it is in Garden
    rooms: Share = 0.3  # share of training rows that a simulated room is around
    noise: Share = 0.2  # share of training rows with noise, 5 to 25 dB below the speech


class CorpusSettings(Strict):
    """What the settings of every corpus have; its own are in its file, `sta/data/corpora/<name>.py`."""

    name: str
    size: Annotated[int, Field(ge=16, le=512, multiple_of=8)] = 64  # picture side, pixels
    speech: SpeechSettings | None = None  # speaks rows without a recording; null: they stay silent

    @property
    def knows_attributes(self) -> bool:
        """Return whether rows say what their pictures show and their captions name, as `Attributes` has it."""
        return False

    @property
    def card_only(self) -> frozenset[str]:
        """Return the settings that only the model card reads: a change of them makes no other corpus."""
        return frozenset()


def read_corpus(given: Any, key: str) -> Any:
    """Validate the settings of a corpus by what it names; `key` is their place in the recipe."""
    return read_settings("sta.data.corpora", interface("sta.data.corpora", "CorpusSource"), given, key, "name")


class EncoderSettings(Strict):
    """The speech encoder; `backbone` chooses what turns recordings into frames (see sta.models.backbones)."""

    sharing: Literal["pooled", "each"] = "pooled"  # one encoder for all languages, or one each
    backbone: str | None = None  # transformers model by name or path, or module:Class; null: log-mel
    freeze_backbone: bool = True
    backbone_licence: str | None = None  # the backbone's licence, such as mit, for the model card
    backbone_layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = (
        None  # the published model's layers that are summed, 0 its input; null: all
    )
    frame_pooling: Positive = 1  # neighbouring frames of the published model averaged to one
    cache_frames: bool = False  # compute a frozen published model's frames once, and train on those
    frame_copies: Positive = 1  # times that each recording is augmented, each otherwise, and cached
    width: Positive = 192
    convolutions: Positive = 5  # residual convolutions after the subsampling (log-mel)
    layers: Natural = 2  # transformer layers above the CTC head
    heads: Positive = 4
    dropout: Share = 0.0
    pieces: Positive | None = None  # SentencePiece pieces a language that the CTC head reads; null: as its card says
    phonemes: list[str] = []  # languages whose pieces are of the phonemes that espeak reads, not of letters
    frame_convolutions: Natural = 0  # residual convolutions between the backbone and the CTC head
    drop_blanks: bool = False  # leave out what the CTC head read as blank, so that pieces are neighbours
    acoustics_above_ctc: bool = True  # acoustic frames go on beside what the CTC head read; false: no prosody does
    language_embedding: bool = Field(
        False, description="add a vector of the language that is named, in a pooled encoder"
    )

    @model_validator(mode="after")
    def _caches_what_is_frozen(self) -> EncoderSettings:
        if self.cache_frames and not self.freeze_backbone:
            raise ValueError("cache_frames keeps frames that never change: set freeze_backbone to true, or it to false")
        if self.frame_copies > 1 and not self.cache_frames:
            raise ValueError("frame_copies counts frames that are cached: set cache_frames to true, or it to 1")
        return self


class BottleneckSettings(Strict):
    """The speech information bottleneck: K Gaussian tokens of width C."""

    tokens: Positive = 16  # K
    width: Positive = 64  # C
    layers: Positive = 2  # of the queries that read the frames
    detectors: Natural = 0  # units that read them by windows, pooled over time, in the place of queries; 0: queries


class TokenizerSettings(Strict):
    """The tokenizer of pictures: a VQ codebook, or an autoencoder without one."""

    codes: Annotated[int, Field(ge=0)] = 256  # V, codebook entries; 0: none, latents that only latent diffusion draws
    code_width: Positive = 8  # channels of a code or latent
    width: Positive = 64
    factor: Literal[2, 4, 8] = 4  # pixels per code along each side


class DecoderSettings(Strict):
    """The decoder: `kind` names one of `sta.models.decoders`, or `module:Class`, which has the other keys."""

    kind: str = DRAWN_BY


class Optimisation(Strict):
    """How one stage is trained. All sizes are global: over every process."""

    task: str | None = None  # module:Class of a task of your own in the place of the stage's
    steps: Positive
    batch: Positive
    lr: Above0 = 1e-3
    warmup: Natural = 50
    weight_decay: Weight = 0.01
    max_grad_norm: Above0 = 1.0  # largest gradient norm
    ema: Share = 0.0  # decay of the average of the weights; 0: none
    workers: Natural | None = None  # data-loading processes per rank; null: none, for a GPU up to 4 of the cores
    log_every: Positive = 25
    save_every: Positive = 200
    stall_timeout: Above0 = 1800.0  # seconds without a step after which a process takes the launch for stuck, and ends
    max_skipped_steps: Natural = 20  # steps passed over, as loss or gradient is not finite, before the stage stops

    @field_validator("losses", mode="before", check_fields=False)
    @classmethod
    def _others_keep_their_weight(cls, given: Any) -> Any:
        """Give each loss that a recipe leaves out its default weight; 0 turns it off."""
        return {**cls.model_fields["losses"].default, **given} if isinstance(given, dict) else given


#: Keys of version 0.1, from the last part that is no stage's name, -> today's.
RENAMED_KEYS = {
    "decoder.group": "decoder.patch_size", "sampling.hearings": "sampling.tta_samples",
    "sampling.order": "sampling.reveal", "corpus.rate": "corpus.tempo", "corpus.unreadable": "corpus.max_unreadable",
    "stages.reader": "stages.classifier", "losses.rate": "losses.kl", "losses.words": "losses.caption",
    "distill.written": "distill.text_ratio", "decoder.text_share": "decoder.text_ratio",
    "distill.phrases_first": "distill.phrase_warmup", "distill.phrases_later": "distill.phrase_ratio",
    "decoder.phrase_share": "decoder.phrase_ratio", "distill.acoustic_drop": "distill.acoustic_dropout",
    "decoder.condition_drop": "decoder.condition_dropout", "decoder.draft_first": "decoder.draft_warmup",
    "distill.longest": "distill.max_seconds", "decoder.disturbed": "decoder.augment_ratio",
    "*.patience": "*.stall_timeout", "*.skips": "*.max_skipped_steps", "*.clip": "*.max_grad_norm",
}  # fmt: skip
#: Settings of a stage that change nothing of what it learns.
RUNTIME_ONLY = ("workers", "log_every", "save_every", "stall_timeout", "max_skipped_steps")


class TeacherStage(Optimisation):
    """Training of a teacher that is trained here, such as one of kind `trained-clip`; ignored for a published one."""

    positives: Literal["pair", "label"] = "pair"  # a picture finds its caption, or its label's; then no phrases


class TokenizerStage(Optimisation):
    losses: dict[Literal["l1", "mse", "edge", "pyramid", "colour", "perceptual", "commit"], Weight] = {
        "l1": 1.0, "mse": 2.0, "edge": 0.0, "pyramid": 0.0, "colour": 0.0, "perceptual": 0.0, "commit": 0.25
    }  # fmt: skip
    perceptual_network: str | None = None  # timm name or folder, in whose features `perceptual` compares
    unquantised: Share = 0.0  # of the pictures: their latents skip the codebook, for latent diffusion to draw such

    @model_validator(mode="after")
    def _compares_in_a_network(self) -> TokenizerStage:
        if self.losses["perceptual"] and self.perceptual_network is None:
            raise ValueError("losses.perceptual compares in a network: name one as perceptual_network, or set it to 0")
        return self


def _is_loss(name: str) -> str:
    known = [module for module in modules_of("sta.training.losses") if module != "base"]
    if ":" in name or name in known:
        return name
    raise ValueError(f"no such loss{known_names(name, known, also=', or module:Class of your own')}")


LossName = Annotated[str, AfterValidator(_is_loss)]


class DistillStage(Optimisation):
    """Distillation of speech against the teacher."""

    losses: dict[LossName, Weight] = {  # files of sta/training/losses, or module:Class of your own; 0 turns one off
        "image": 0.2,
        "text": 0.5,  # of captions in the languages that the teacher reads
        "text_branch": 1.0,  # takes ctc
        "ctc": 2.0,  # 0: no CTC head, which transcripts are needed for
        "caption": 1.0,
        "concept": 0.0,  # which label, against the teacher's view of all labels; of rows that have one
        "attributes": 0.0,  # S2IGAN's distinctive loss, for every attribute that a caption names (Garden only)
        "mood": 1.0,
        "kl": 1e-4,
    }
    max_seconds: Above0 = 12.0  # of speech; a longer recording is left out here, and what it says is still read
    negatives: Positive = 1024  # frozen teacher embeddings as negatives; without any there is no loss
    temperature: Above0 = 0.03
    phrase_warmup: Share = 0.3  # share of the steps, at the start, with short phrases only
    phrase_ratio: Share = 0.2  # share of short phrases in a batch after that
    text_ratio: Weight = 1.0  # written captions that the text branch reads, per recording
    ctc_warmup: Share = 0.0  # share of the steps, at the start, in which recordings train what the CTC head needs alone
    acoustic_dropout: Share = 0.3  # chance that an utterance's acoustic frames are hidden above the CTC
    noise: Share = 0.0  # probability that noise or a telephone is added to an utterance
    augment: Weight = 1.0  # of vocal tract, tempo, noise, masks (log-mel), speed (samples), level (frames); 0: none
    accent: Share = 0.0  # how far the bands of a syllable are stretched, as vowels differ (log-mel)
    gain: Weight = 12.0  # decibels by which a recording's level is changed, at most, up or down
    compile: Compile = "never"  # the layers of encoder and bottleneck: pays on a GPU, as for the decoder


class DecoderStage(Optimisation):
    """Training of the decoder on speech tokens."""

    losses: dict[str, Weight] = {  # weights of these, and of the decoder's own losses
        "draft": 1.0,  # where the decoder has one
        "kl": 1e-4,
        "text": 0.1,
        "caption": 0.0,  # a captioner on the tokens, as in the distill stage
    }
    condition_dropout: Share = 0.1  # chance that the condition is hidden, for guidance
    style_dropout: Share = 0.1  # chance that the style is hidden, so that none need be asked for
    draft_warmup: Share = 0.0  # share of the steps, at the start, that train draft and bottleneck, not the denoiser
    text_ratio: Share = 0.15  # share of the batch conditioned through the text branch
    teacher_ratio: Share = 0.0  # share conditioned on the teacher's view, not on speech (decoder.condition embedding)
    teacher_noise: Weight = 0.5  # length of the noise on such a view, at most, which is a unit vector
    phrase_ratio: Share = 0.1  # share of short phrases among the recordings
    augment_ratio: Share = 0.0  # share of the recordings encoded with the distill stage's augmentation (log-mel)
    tune_bottleneck: bool = True  # let the denoising loss reach the bottleneck (encoder frozen)
    compile: Compile = "never"  # the decoder's layers: pays on a GPU, after up to a minute at each start


class ClassifierStage(Optimisation):
    """Training of the attribute classifier that judges pictures; Garden only."""


def _stage(section: str, base: type[Optimisation]) -> Any:
    """Validate a stage's section by the settings of the task that it names, which extend `base` for other stages."""

    def validate(given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        name = given.get("task") if isinstance(given, dict) else None
        if not isinstance(name, str):
            return handler(given)
        key, task = f"stages.{section}", import_module("sta.training.task").Task
        settings = find_variant("sta.training.tasks", name, task, f"{key}.task").Settings
        if not issubclass(settings, base):
            raise ValueError(f"the Settings of task '{name}' must extend {base.__name__} of {base.__module__}")
        return yamlfile.validate_section(settings, given, key)

    return WrapValidator(validate)


class Stages(Strict):
    """The stages that train, in their order; a section's `task` may be one of your own."""

    teacher: Annotated[SerializeAsAny[TeacherStage], _stage("teacher", Optimisation)]
    tokenizer: Annotated[SerializeAsAny[TokenizerStage], _stage("tokenizer", Optimisation)]
    distill: Annotated[SerializeAsAny[DistillStage], _stage("distill", DistillStage)]
    decoder: Annotated[SerializeAsAny[DecoderStage], _stage("decoder", Optimisation)]
    classifier: Annotated[SerializeAsAny[ClassifierStage], _stage("classifier", Optimisation)]


class Sampling(Strict):
    """Defaults of drawing, found on validation and written into the release."""

    steps: Positive = 12
    guidance: Annotated[float, Field(ge=1, le=MAX_GUIDANCE)] = 2.0
    tta_samples: Positive = 1  # times a recording is encoded, at speeds from 0.9 to 1.1; the tokens are the mean of all
    truncation: Annotated[float, Field(gt=0, le=1)] = 0.9  # probability mass kept; 1: no truncation
    reveal: Literal["posterior", "purity"] = "purity"  # which codes a step reveals


class ReleaseSettings(Strict):
    """How a release keeps what was trained."""

    weights: Literal["half", "int8"] = "half"  # int8: matrices of 32,768 numbers or more, with one scale per row


#: How a recording may be disturbed; the last four speak it anew, which takes Garden and is left out elsewhere.
Condition = Literal[
    "noise-20", "noise-10", "noise-0", "telephone", "pause", "slow", "fast", "two-sentences", "flite"
]  # fmt: skip


class EvaluationSettings(Strict):
    items: Positive = 200  # recordings drawn per language and split, at most
    pictures: Positive = 8  # examples on the page per language
    samples: Positive = 3  # drawings of each example
    conditions: list[Condition] = []  # disturbances under which one split is drawn again
    condition_split: str | None = None  # the split that is disturbed, such as voice; null: the last with recordings
    judge: str | None = None  # network of timm, by Hub name or path, that sees what a picture is of; not Garden
    recogniser: str | None = None  # a Whisper, by Hub name or path: its transcripts drawn beside; not Garden
    recordings: Positive = 500  # per language and split, of which `items` are drawn and all searched with; not Garden


class Recipe(Strict):
    """One experiment, from the corpus to the report."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    seed: Natural = 0
    languages: Annotated[list[str], Field(min_length=1)]  # codes of packaged language cards, or paths
    language_cards: dict[str, AbsolutePath] = {}  # code -> path, of the languages whose card was given by its path
    teacher: CardName = "garden-clip"  # teacher card, by name or path
    corpus: Annotated[SerializeAsAny[CorpusSettings], BeforeValidator(lambda given: read_corpus(given, "corpus"))]
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the machine has it
    encoder: EncoderSettings = EncoderSettings()
    bottleneck: BottleneckSettings = BottleneckSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    decoder: Annotated[SerializeAsAny[DecoderSettings], BeforeValidator(lambda given: _read_decoder(given))] = Field(
        default_factory=lambda: _read_decoder({})
    )
    stages: Stages
    sampling: Sampling = Sampling()
    release: ReleaseSettings = ReleaseSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("name")
    @classmethod
    def _is_no_folder_of_all_runs(cls, name: str) -> str:
        if name == CACHE:
            raise ValueError("the corpora of all runs lie in the folder of that name; choose another")
        return name

    @model_validator(mode="before")
    @classmethod
    def _by_code(cls, given: Any) -> Any:
        """Put its code in the place of each card that `languages` gives by path, and the path in `language_cards`."""
        if not isinstance(given, dict) or not isinstance(given.get("languages"), list):
            return given
        paths, codes = dict(given.get("language_cards") or {}), []
        for name in given["languages"]:
            codes.append(load_language(yamlfile.absolute(name)).code if yamlfile.is_path(name) else name)
            if codes[-1] is not name:
                paths[codes[-1]] = name
        return {**given, "languages": codes, "language_cards": {c: p for c, p in paths.items() if c in codes}}

    @field_validator("languages")
    @classmethod
    def _are_codes(cls, languages: list[str]) -> list[str]:
        for code in languages:
            if not re.fullmatch(CODE, code):
                raise ValueError(
                    f"'{code}' is neither the code of a language, such as en or pt-br, nor the path of a card, such as "
                    "./sw.yaml"
                )
            if languages.count(code) > 1:
                raise ValueError(f"'{code}' is there twice, by its code or by the path of a card of that code")
        return languages

    @field_validator("stages")
    @classmethod
    def _losses_of_the_decoder(cls, stages: Stages, info: ValidationInfo) -> Stages:
        """Give each loss that a recipe leaves out the decoder's weight, and refuse others."""
        if "decoder" not in info.data or not isinstance(stages.decoder, DecoderStage):
            return stages  # it does not hold itself, or another task has losses of its own
        kind = info.data["decoder"].kind
        own = _decoders().find_decoder(kind).loss_weights
        losses = {**own, **stages.decoder.losses}
        known = [*own, *DecoderStage.model_fields["losses"].default]
        if unknown := [name for name in losses if name not in known]:
            raise ValueError(
                f"decoder.losses.{unknown[0]} is no loss of decoder.kind {kind} (known: {', '.join(sorted(known))})"
            )
        return stages.model_copy(update={"decoder": stages.decoder.model_copy(update={"losses": losses})})

    @model_validator(mode="after")
    def _sizes_fit(self) -> Recipe:
        check_multiple("encoder.width", self.encoder.width, self.encoder.heads, "which encoder.heads is")
        check_multiple("encoder.width", self.encoder.width, 4, "the heads that the bottleneck reads with")
        check_multiple("tokenizer.width", self.tokenizer.width, 8, "the groups that its normalisation has")
        decoder = _decoders().find_decoder(self.decoder.kind)
        decoder.check(self)
        if decoder.target == "codes" and not self.tokenizer.codes:
            raise ValueError(
                f"decoder.kind {self.decoder.kind} draws codes: give tokenizer.codes a number, such as 1024, or draw "
                "by latent-diffusion"
            )
        if getattr(self.stages.decoder, "draft_warmup", 0) and not decoder.has_draft(self.decoder):
            raise ValueError(
                "stages.decoder.draft_warmup trains a draft first: give decoder.draft some layers, such as 3, or set "
                "it to 0 where the decoder has none"
            )
        if self.stages.distill.losses.get("attributes") and not self.corpus.knows_attributes:
            raise ValueError(
                f"stages.distill.losses.attributes: corpus '{self.corpus.name}' does not know what its captions name; "
                "set it to 0"
            )
        return self

    @property
    def groups(self) -> dict[str, list[str]]:
        """Encoder name -> languages it serves: one `pooled` group, or one group per language."""
        if self.encoder.sharing == "pooled":
            return {"pooled": list(self.languages)}
        return {code: [code] for code in self.languages}

    @property
    def phonemes(self) -> list[str]:
        """The recipe's languages whose pieces are of phonemes."""
        return [code for code in self.encoder.phonemes if code in self.languages]

    def card(self, code: str) -> LanguageCard:
        """Read the card of one of the languages."""
        return load_language(self.language_cards.get(code, code))

    def sentencepiece_of(self, card: LanguageCard) -> SentencePieceCard:
        """Return how the pieces of a language are trained: as its card says, or as many as the encoder is to have."""
        count = self.encoder.pieces
        return card.sentencepiece.model_copy(update={"vocab_size": count}) if count else card.sentencepiece

    def cards(self) -> dict[str, LanguageCard]:
        """Read the card of each language, by its code."""
        return {code: self.card(code) for code in self.languages}


def check_multiple(key: str, value: int, of: int, why: str) -> None:
    """Refuse, by a ValueError that says why, a width that is not a multiple of a number."""
    if value % of:
        raise ValueError(f"{key} {value} is not a multiple of {of}, {why}")


def _decoders() -> ModuleType:
    """Return what knows the decoders, which a recipe asks by name, as it does anything of a package above this one."""
    return import_module(f"{DECODERS}.base")


def _read_decoder(given: Any) -> Any:
    return read_settings(DECODERS, _decoders().Decoder, given, "decoder", "kind", DRAWN_BY)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, by path or packaged name, with what it extends and the overrides applied.

    Overrides are `key=value` with dots in the key, such as `stages.decoder.steps=500`; values are YAML. A path of a
    corpus or card is relative to the file that names it, or to the current directory in an override, and made absolute.

    Raises:
        RecipeError: names file, key, value and what would be accepted.
    """
    path = yamlfile.find(name_or_path, "recipes")
    data, source = _extended(path, ()), f"{path} with {', '.join(overrides)}" if overrides else str(path)
    for override in overrides:
        _apply(data, override)
    _refuse_renamed(data, source)
    return yamlfile.validate(Recipe, data, source)


class Measured(Strict):
    """What a run is measured on beside its own corpus: another one, and what differs of how it is done."""

    corpus: Annotated[SerializeAsAny[CorpusSettings], BeforeValidator(lambda given: read_corpus(given, "corpus"))]
    evaluation: EvaluationSettings = EvaluationSettings()
    encoded_as: dict[str, str] = {}  # languages that the run lacks -> its own that they are encoded as; only these


def load_measured(recipe: Recipe, name_or_path: str | Path, overrides: Sequence[str] = ()) -> Measured:
    """Read what a recipe's run is measured on, by path or packaged name.

    The pictures are as large as the recipe's; what the file does not say of `evaluation` is as the recipe has it, but
    for the split that is disturbed.

    Raises:
        RecipeError: names file, key, value and what would be accepted.
    """
    path = yamlfile.find(name_or_path, "corpora")
    data = yamlfile.located(yamlfile.read(path), path.parent)
    for override in overrides:
        _apply(data, override)
    kept = {
        "corpus": {"size": recipe.corpus.size},
        "evaluation": {**recipe.evaluation.model_dump(mode="json"), "condition_split": None},
    }
    given = {key: {**kept.get(key, {}), **value} if isinstance(value, dict) else value for key, value in data.items()}
    found = yamlfile.validate(Measured, {**kept, **given}, str(path))
    if found.corpus.size != recipe.corpus.size:
        raise RecipeError(f"{path}: corpus.size must be that of the run's pictures, {recipe.corpus.size}; leave it out")
    for code, own in found.encoded_as.items():
        if code in recipe.languages or own not in recipe.languages:
            known = ", ".join(recipe.languages)
            raise RecipeError(
                f"{path}: encoded_as: '{code}: {own}' must be a language that the run lacks: one of its own ({known})"
            )
    return found


def _refuse_renamed(data: Any, source: str, path: tuple[str, ...] = ()) -> None:
    """Refuse a key that an older version knew by another name."""
    for key, value in data.items() if isinstance(data, dict) else ():
        own = (*path, str(key))
        in_stage = f"*.{key}" if path[:1] == ("stages",) else ""
        if new := RENAMED_KEYS.get(".".join(own[-2:]), RENAMED_KEYS.get(in_stage)):
            here, today = ".".join(own), ".".join((*path, new.rpartition(".")[2]))
            raise RecipeError(f"{source}: key '{here}' is called '{today}' since version 0.2; write that")
        _refuse_renamed(value, source, own)


def makes_the_same(one: Recipe, other: Recipe) -> bool:
    """Return whether two recipes train the same, however stages load, log, save and wait, and a release is kept."""

    def of_results(recipe: Recipe) -> dict[str, Any]:
        stages = {section: set(RUNTIME_ONLY) for section in Stages.model_fields}
        return recipe.model_dump(
            exclude={
                "stages": stages,
                "corpus": set(recipe.corpus.card_only),
                "encoder": {"backbone_licence"},
                "release": True,
            }
        )

    return of_results(one) == of_results(other)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML with every default written out."""
    return yamlfile.dump(recipe.model_dump(mode="json"))


def _extended(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: key 'extends' comes back to this file ({' -> '.join(p.name for p in seen)})")
    data = yamlfile.located(yamlfile.read(path), path.parent)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise RecipeError(f"{path}: key 'extends' is {base!r}: must be the name or path of one recipe")
    beside = path.parent / f"{base}.yaml"
    try:
        parent = beside if beside.is_file() else yamlfile.find(base, "recipes")
    except RecipeError as error:
        raise RecipeError(f"{path}: key 'extends': {error}") from error
    return _merge(_extended(parent, (*seen, path.resolve())), data)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay `over` on `base`, mapping by mapping; another corpus, decoder or task of a stage replaces its section."""
    both = {k: v for k, v in over.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return {**base, **over, **{k: _merge(_kept(k, base[k], v), v) for k, v in both.items()}}


def _kept(key: str, base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return what a section keeps under another: nothing under another corpus or task, what another decoder has too."""
    named_by = {"corpus": "name"}.get(key, "task")
    if named_by in over and over[named_by] != base.get(named_by):
        return {}
    if key == "decoder" and over.get("kind") not in (None, base.get("kind", DRAWN_BY)):
        known = _decoders().find_decoder(str(over["kind"])).Settings.model_fields
        return {k: v for k, v in base.items() if k in known}
    return base


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override '{override}' is not key=value, such as stages.decoder.steps=500")
    value, target = yamlfile.parse(text, f"override '{override}'"), cast(Any, data)
    if key == "decoder.kind":
        key, value = "decoder", {"kind": value}
    *parents, last = key.split(".")
    for part, below in zip(parents, [*parents[1:], ""], strict=False):
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        is_item = isinstance(target, list) and below.isdecimal() and int(below) < len(target)  # such as corpus.parts.0
        if not (is_item or isinstance(target, dict)):
            raise RecipeError(f"override '{override}': key '{part}' holds {target!r}, which has no keys below it")
    if isinstance(value, dict) and isinstance(target.get(last), dict):
        value = _merge(_kept(last, target[last], value), value)
    target[last] = value
