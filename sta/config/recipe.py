"""Recipes: one YAML file per experiment, strict and typed, with `extends:` and `key=value` overrides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

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
from sta.config.cards import CODE, LanguageCard, load_language
from sta.config.variants import find_variant, interface, modules_of, read_settings
from sta.config.yamlfile import AbsolutePath, CardName
from sta.errors import RecipeError

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Compile = Literal["never", "gpu", "always"]


DECODERS, DRAWN_BY = "sta.models.decoders", "vq-diffusion"  # where decoders lie, and the one that draws by default
CACHE = "cache"  # the folder beside the runs' own that they share


class Strict(BaseModel):
    """Base of every section: unknown keys, wrong types and later changes are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)


class CorpusSettings(Strict):
    """What the settings of every corpus have; its own are in its file, `sta/data/corpora/<name>.py`."""

    name: str
    size: Annotated[int, Field(ge=16, le=512, multiple_of=8)] = Field(64, description="picture side, pixels")

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

    sharing: Literal["pooled", "each"] = Field("pooled", description="one encoder for all languages, or one each")
    backbone: str | None = Field(None, description="transformers model by name or path, or module:Class; null: log-mel")
    freeze_backbone: bool = True
    backbone_licence: str | None = Field(None, description="the backbone's licence, such as mit, for the model card")
    width: Positive = 192
    convolutions: Positive = Field(5, description="residual convolutions after the subsampling (log-mel)")
    layers: Positive = Field(2, description="transformer layers above the CTC head")
    heads: Positive = 4
    dropout: Share = 0.0


class BottleneckSettings(Strict):
    """The speech information bottleneck: K Gaussian tokens of width C."""

    tokens: Positive = Field(16, description="K")
    width: Positive = Field(64, description="C")
    layers: Positive = 2


class TokenizerSettings(Strict):
    """The VQ tokenizer of pictures."""

    codes: Positive = Field(256, description="V, codebook entries")
    code_width: Positive = 8
    width: Positive = 64
    factor: Literal[2, 4, 8] = Field(4, description="pixels per code along each side")


class DecoderSettings(Strict):
    """The decoder: `kind` names one of `sta.models.decoders`, or `module:Class`, which has the other keys."""

    kind: str = DRAWN_BY


class Optimisation(Strict):
    """How one stage is trained. All sizes are global: over every process."""

    task: str | None = Field(None, description="module:Class of a task of your own in the place of the stage's")
    steps: Positive
    batch: Positive
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 50
    weight_decay: Weight = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="largest gradient norm")
    ema: Share = Field(0.0, description="decay of the average of the weights; 0: none")
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="data-loading processes per rank; by default none, and for a GPU up to 4 of the cores"
    )
    log_every: Positive = 25
    save_every: Positive = 200
    stall_timeout: Annotated[float, Field(gt=0)] = Field(
        1800.0, description="seconds without a step after which a process takes itself or another for stuck, and ends"
    )
    max_skipped_steps: Annotated[int, Field(ge=0)] = Field(
        20, description="steps passed over, as their loss or gradient is not finite, before the stage stops"
    )

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


class TokenizerStage(Optimisation):
    losses: dict[Literal["l1", "mse", "edge", "commit"], Weight] = {"l1": 1.0, "mse": 2.0, "edge": 0.0, "commit": 0.25}
    unquantised: Share = Field(
        0.0, description="share of pictures whose latents skip the codebook, for latent diffusion to draw such latents"
    )


def _is_loss(name: str) -> str:
    known = [module for module in modules_of("sta.training.losses") if module != "base"]
    if ":" in name or name in known:
        return name
    close = difflib.get_close_matches(name, known, 1)
    hint = f", did you mean '{close[0]}'?" if close else ""
    raise ValueError(f"no such loss{hint} (known: {', '.join(known)}, or module:Class of your own)")


LossName = Annotated[str, AfterValidator(_is_loss)]


class DistillStage(Optimisation):
    """Distillation of speech against the teacher."""

    losses: dict[LossName, Weight] = Field(
        {
            "image": 0.2,
            "text": 0.5,  # of captions in the languages that the teacher reads
            "text_branch": 1.0,  # takes ctc
            "ctc": 2.0,  # 0: no CTC head, which transcripts are needed for
            "caption": 1.0,
            "attributes": 0.0,  # S2IGAN's distinctive loss, for every attribute that a caption names (Garden only)
            "mood": 1.0,
            "kl": 1e-4,
        },
        description="files of sta/training/losses, or module:Class of your own -> weight; 0 turns one off",
    )
    max_seconds: Annotated[float, Field(gt=0)] = Field(
        12.0, description="seconds of speech above which a recording is left out here; what it says is still read"
    )
    negatives: Positive = Field(
        1024, description="frozen teacher embeddings as negatives; without any there is no loss"
    )
    temperature: Annotated[float, Field(gt=0)] = 0.03
    phrase_warmup: Share = Field(
        0.3, description="share of the steps, at the start, with short phrases only (Garden only)"
    )
    phrase_ratio: Share = Field(0.2, description="share of short phrases in a batch after that (Garden only)")
    text_ratio: Annotated[float, Field(ge=0)] = Field(
        1.0, description="written captions that the text branch reads, per recording"
    )
    acoustic_dropout: Share = Field(
        0.3, description="chance that an utterance's acoustic frames are hidden above the CTC"
    )
    noise: Share = Field(0.0, description="probability that noise or a telephone is added to an utterance (log-mel)")
    augment: Weight = Field(1.0, description="strength of vocal-tract, tempo, noise and mask augmentation; 0: none")
    accent: Share = Field(0.0, description="how far the bands of a syllable are stretched, as vowels differ (log-mel)")
    gain: Weight = Field(12.0, description="decibels by which a recording's level is changed, at most, up or down")
    compile: Compile = Field(
        "never", description="torch.compile the layers of encoder and bottleneck: pays on a GPU, as for the decoder"
    )


class DecoderStage(Optimisation):
    """Training of the decoder on speech tokens."""

    losses: dict[str, Weight] = Field(
        {
            "draft": 1.0,  # where the decoder has one
            "kl": 1e-4,
            "text": 0.1,
            "caption": 0.0,  # a captioner on the tokens, as in the distill stage
        },
        description="weights of these, and of the decoder's own losses",
    )
    condition_dropout: Share = Field(0.1, description="chance that the condition is hidden, for guidance")
    style_dropout: Share = Field(0.1, description="chance that the style is hidden, so that none need be asked for")
    draft_warmup: Share = Field(
        0.0, description="share of the steps, at the start, that train draft and bottleneck and leave the denoiser out"
    )
    text_ratio: Share = Field(0.15, description="share of the batch conditioned through the text branch")
    phrase_ratio: Share = Field(0.1, description="share of short phrases among the recordings (Garden only)")
    augment_ratio: Share = Field(
        0.0, description="share of the recordings encoded with the distill stage's augmentation and noise (log-mel)"
    )
    tune_bottleneck: bool = Field(True, description="let the denoising loss reach the bottleneck (encoder frozen)")
    compile: Compile = Field(
        "never", description="torch.compile the decoder's layers: pays on a GPU, after up to a minute at each start"
    )


class ClassifierStage(Optimisation):
    """Training of the attribute classifier that judges pictures; Garden only."""


def _stage(section: str, base: type[Optimisation]) -> Any:
    """Validate a stage's section by the settings of the task that it names; the built-in tasks' are in this module.

    Args:
        base: what the settings of another task must extend, since other stages read them.
    """

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
    guidance: Annotated[float, Field(ge=1, le=100)] = 2.0
    tta_samples: Positive = Field(
        1, description="times a recording is encoded, at speeds from 0.9 to 1.1; the tokens are the mean of all"
    )
    truncation: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="probability mass kept; 1: no truncation")
    reveal: Literal["posterior", "purity"] = Field("purity", description="which codes a step reveals")


#: How a recording may be disturbed; the last four speak it anew, which takes Garden and is left out elsewhere.
Condition = Literal[
    "noise-20", "noise-10", "noise-0", "telephone", "pause", "slow", "fast", "two-sentences", "flite"
]  # fmt: skip


class EvaluationSettings(Strict):
    items: Positive = Field(200, description="recordings drawn per language and split, at most")
    pictures: Positive = Field(8, description="examples on the page per language")
    samples: Positive = Field(3, description="drawings of each example")
    conditions: list[Condition] = Field(
        default_factory=list, description="disturbances under which one split is drawn again"
    )
    condition_split: str | None = Field(
        None, description="the split that is disturbed, such as voice; null: the last one with recordings"
    )
    judge: str | None = Field(
        None,
        description="network of timm, by its Hub name or path, that sees what a picture is of; not Garden",
    )
    recogniser: str | None = Field(
        None, description="a Whisper, by its Hub name or path: its transcripts drawn beside; not Garden"
    )
    recordings: Positive = Field(
        500,
        description="recordings per language and split of which `items` are drawn and all searched with; not Garden",
    )


class Recipe(Strict):
    """One experiment, from the corpus to the report."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0
    languages: Annotated[list[str], Field(min_length=1, description="codes of packaged language cards, or paths")]
    language_cards: dict[str, AbsolutePath] = Field(
        default_factory=dict, description="code -> path, of the languages whose card was given by its path"
    )
    teacher: CardName = Field("garden-clip", description="teacher card, by name or path")
    corpus: Annotated[SerializeAsAny[CorpusSettings], BeforeValidator(lambda given: read_corpus(given, "corpus"))]
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the machine has it")
    encoder: EncoderSettings = EncoderSettings()
    bottleneck: BottleneckSettings = BottleneckSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    decoder: Annotated[SerializeAsAny[DecoderSettings], BeforeValidator(lambda given: _read_decoder(given))] = Field(
        default_factory=lambda: _read_decoder({})
    )
    stages: Stages
    sampling: Sampling = Sampling()
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

    def card(self, code: str) -> LanguageCard:
        """Read the card of one of the languages."""
        return load_language(self.language_cards.get(code, code))

    def cards(self) -> dict[str, LanguageCard]:
        """Read the card of each language, by its code."""
        return {code: self.card(code) for code in self.languages}


def check_multiple(key: str, value: int, of: int, why: str) -> None:
    """Refuse a width that is not a multiple of a number.

    Raises:
        ValueError: it is not; says why it has to be.
    """
    if value % of:
        raise ValueError(f"{key} {value} is not a multiple of {of}, {why}")


def _decoders() -> ModuleType:
    """Return what knows the decoders, which a recipe asks by name, as it does anything of a package above this one."""
    return import_module(f"{DECODERS}.base")


def _read_decoder(given: Any) -> Any:
    return read_settings(DECODERS, _decoders().Decoder, given, "decoder", "kind", DRAWN_BY)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe with what it extends and the overrides applied.

    Args:
        name_or_path: a path, or the name of a packaged recipe.
        overrides: `key=value` with dots in the key, such as `stages.decoder.steps=500`; values are YAML.

    A path of a corpus or card is relative to the file that names it, or to the current directory in an override, and
    absolute in what is returned.

    Raises:
        RecipeError: names file, key, value and what would be accepted.
    """
    path = yamlfile.find(name_or_path, "recipes")
    data, source = _extended(path, ()), str(path)
    for override in overrides:
        _apply(data, override)
        source = f"{path} with {', '.join(overrides)}"
    _refuse_renamed(data, source)
    return yamlfile.validate(Recipe, data, source)


def _refuse_renamed(data: Any, source: str, path: tuple[str, ...] = ()) -> None:
    """Refuse a key that an older version knew by another name."""
    for key, value in data.items() if isinstance(data, dict) else ():
        own = (*path, str(key))
        new = RENAMED_KEYS.get(".".join(own[-2:])) or (
            RENAMED_KEYS.get(f"*.{key}") if path[:1] == ("stages",) else None
        )
        if new is not None:
            here, today = ".".join(own), ".".join((*path, new.rpartition(".")[2]))
            raise RecipeError(f"{source}: key '{here}' is called '{today}' since version 0.2; write that")
        _refuse_renamed(value, source, own)


def makes_the_same(one: Recipe, other: Recipe) -> bool:
    """Return whether two recipes make the same weights and results, however a stage loads, logs, saves and waits."""
    return _of_results(one) == _of_results(other)


def _of_results(recipe: Recipe) -> dict[str, Any]:
    said = recipe.model_dump()
    for stage in said["stages"].values():
        for name in RUNTIME_ONLY:
            del stage[name]
    for section, name in (*(("corpus", name) for name in recipe.corpus.card_only), ("encoder", "backbone_licence")):
        said[section].pop(name, None)
    return said


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
    nested = {
        k: _merge(_kept(k, base[k], v), v)
        for k, v in over.items()
        if isinstance(v, dict) and isinstance(base.get(k), dict)
    }
    return {**base, **over, **nested}


def _kept(key: str, base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return what a section keeps under another: nothing under another corpus or task, what another decoder has too."""
    named_by = {"corpus": "name"}.get(key, "task")
    if named_by in over and over[named_by] != base.get(named_by):
        return {}
    if key == "decoder" and over.get("kind") not in (None, base.get("kind", DRAWN_BY)):
        known = _decoders().find_decoder(str(over["kind"])).Settings.model_fields
        return {k: v for k, v in base.items() if k in known}
    if "task" in over and over["task"] != base.get("task"):
        return {}
    return base


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override '{override}' is not key=value, such as stages.decoder.steps=500")
    value, target = yamlfile.parse(text, f"override '{override}'"), data
    if key == "decoder.kind":
        key, value = "decoder", {"kind": value}
    *parents, last = key.split(".")
    for part in parents:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise RecipeError(f"override '{override}': key '{part}' holds {target!r}, which has no keys below it")
    if isinstance(value, dict) and isinstance(target.get(last), dict):
        value = _merge(_kept(last, target[last], value), value)
    target[last] = value
