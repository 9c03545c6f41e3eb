"""The distill stage: a speech encoder and its bottleneck learn to see what the frozen teacher sees."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sta.config.cards import load_teacher
from sta.config.recipe import DistillStage, Recipe
from sta.distributed import ranks, sharding
from sta.distributed.sharding import IGNORE_INDEX, BatchShard
from sta.distributed.team import Team
from sta.errors import RecipeError, StaError, TrainingError
from sta.models.augment import augment
from sta.models.backbones import backbone_class, backbone_of, build_backbone, check_backbone
from sta.models.backbones.pretrained import LayerSum, PretrainedBackbone
from sta.models.bottleneck import SpeechBottleneck
from sta.models.encoder import SpeechEncoder, pieces_to_frames
from sta.training import examples
from sta.training.batch import Batch
from sta.training.concepts import Concepts, centroids_of
from sta.training.losses.base import (
    DistillCorpus,
    DistillLoss,
    DistillOutputs,
    DistillSizes,
    Targets,
    build_losses,
    find_loss,
    targets_of,
)
from sta.training.sampler import ShuffledSampler, build_sampler
from sta.training.speech_features import caption_pieces, group_rows
from sta.training.speech_inputs import cache_backbone, open_inputs
from sta.training.task import CorpusFacts, Task, compile_layers, compiles
from sta.training.teacher_features import cache_teacher, check_teacher_reads, teacher_features, teacher_reads
from sta.training.workspace import Workspace

STARTED_FROM = 64  # recordings, at most, that a backbone is shown before the first step


@dataclass(frozen=True)
class WrittenBatch(Batch):
    """Captions that the text branch reads, of other rows than the recordings of the batch.

    Attributes:
        pieces: int64 [B', R], the stretches of a perfect recognition. lengths: int64 [B'].
        language: int64 [B'], numbers of `SpeechEncoder.languages`.
        targets: loss -> what it wants to know of them.
        total: how many there are over all ranks.
    """

    pieces: Tensor
    lengths: Tensor
    language: Tensor
    targets: dict[str, Targets]
    total: int


@dataclass(frozen=True)
class DistillBatch(Batch):
    """Recordings, and what the losses want to know of them.

    Attributes:
        features: uint8 [B, S, 80] log-mel, int16 [B, T, 1] samples or float16 [B, S, L*C] frames of a frozen backbone;
            zero beyond each length.
        lengths: int64 [B], on the host, as lengths decide shapes.
        language: int64 [B], numbers of `SpeechEncoder.languages`.
        targets: loss -> what it wants to know: tensors [B, ...], or of the step, such as [M, E]; of the losses that
            apply to recordings in this step.
        written: captions for the text branch; None where it reads none.
    """

    host_fields: ClassVar = ("lengths",)

    features: Tensor
    lengths: Tensor
    language: Tensor
    targets: dict[str, Targets]
    written: WrittenBatch | None


class Distillation(nn.Module):
    """Encoder and bottleneck, and the losses that train them."""

    def __init__(
        self, encoder: SpeechEncoder, bottleneck: SpeechBottleneck, losses: Mapping[str, DistillLoss],
        stage: DistillStage,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.bottleneck, self.stage = encoder, bottleneck, stage
        self.names, self.losses = list(losses), nn.ModuleList(losses.values())

    def losses_of(self, branch: str) -> dict[str, DistillLoss]:
        """Return the losses by name whose own outputs are of recordings (`speech`) or of captions (`text`)."""
        pairs = zip(self.names, self.losses, strict=True)
        return {name: loss for name, loss in pairs if isinstance(loss, DistillLoss) and loss.branch == branch}

    def forward(self, batch: DistillBatch) -> dict[str, Tensor]:
        """Return the losses by name."""
        losses = {name: loss for name, loss in self.losses_of("speech").items() if name in batch.targets}
        reads_only = batch.written is not None and all(loss.of_readings for loss in losses.values())
        spoken, written = self._read(batch) if reads_only else self._encode(batch)
        found = {name: loss(spoken, batch.targets[name]) for name, loss in losses.items()}
        if written is not None and batch.written is not None:
            with sharding.with_batch_size(batch.written.total):
                text = self.losses_of("text").items()
                found |= {name: loss(written, batch.written.targets) for name, loss in text}
        return {name: loss for name, loss in found.items() if loss is not None}

    def _augmented(self, batch: DistillBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs, augmented, and their lengths, on their device and on the host."""
        inputs = self.encoder.inputs(batch.features)
        acoustics = self.encoder.acoustics
        deviation = acoustics.deviation.flatten() if isinstance(acoustics, LayerSum) else None
        inputs, lengths = augment(inputs, batch.lengths, self.stage, acoustics.feature_kind, deviation)
        return inputs, lengths.to(inputs.device, non_blocking=True), lengths

    def _read(self, batch: DistillBatch) -> tuple[DistillOutputs, DistillOutputs]:
        """Let the CTC head read the recordings, and encode the captions."""
        inputs, on_device, lengths = self._augmented(batch)
        read, written = self.encoder.read(inputs, on_device, batch.language), batch.written
        assert written is not None
        with sharding.with_batch_size(written.total):
            out = self.encoder.encode_text(written.pieces, written.lengths, written.language)
            speech = self.bottleneck(out.frames, out.mask, written.language)
        spoken = DistillOutputs(speech[:0], read, None, self.encoder.acoustics.output_lengths(lengths))
        return spoken, DistillOutputs(speech, out)

    def _encode(self, batch: DistillBatch) -> tuple[DistillOutputs, DistillOutputs | None]:
        """Encode the recordings, augmented, and the captions, in one pass where they share it."""
        inputs, on_device, lengths = self._augmented(batch)
        keep = None
        if self.encoder.config.ctc_head:  # without a CTC head nothing would be left
            hidden = self.stage.acoustic_dropout if self.encoder.config.acoustics_above_ctc else 1.0
            keep = sharding.uniform(len(inputs), device=inputs.device) >= hidden
        stretches, count = self.encoder.stretches(inputs, on_device, batch.language, keep), len(inputs)
        if batch.written is not None:
            written = batch.written
            stretches = stretches.joined(self.encoder.text_stretches(written.pieces, written.lengths, written.language))
        with sharding.with_more_items(0 if batch.written is None else batch.written.total):
            out = self.encoder.in_context(stretches)
            speech = self.bottleneck(out.frames, out.mask, stretches.language)
        spoken = DistillOutputs(speech[:count], out[:count], keep, self.encoder.acoustics.output_lengths(lengths))
        return spoken, None if batch.written is None else DistillOutputs(speech[count:], out[count:])


def build_module(recipe: Recipe, sizes: DistillSizes, backbone: dict[str, Any] | None = None) -> Distillation:
    """Return the untrained network of one group's stage.

    Args:
        backbone: of `describe_backbone`; None is log-mel.
    """
    settings, between, stage = recipe.encoder, recipe.bottleneck, recipe.stages.distill
    torch.manual_seed(recipe.seed)
    encoder = SpeechEncoder(
        dict(sizes.pieces), settings.width, settings.convolutions, settings.layers, settings.heads, settings.dropout,
        backbone, bool(stage.losses.get("ctc")), settings.language_embedding, settings.drop_blanks,
        settings.frame_convolutions, settings.acoustics_above_ctc,
        [code for code in recipe.phonemes if code in sizes.pieces],
    )  # fmt: skip
    bottleneck = SpeechBottleneck(
        settings.width, sizes.embedding_width, between.tokens, between.width, between.layers,
        detectors=between.detectors,
    )  # fmt: skip
    return Distillation(encoder, bottleneck, build_losses(sizes, stage), stage)


def sizes_of(recipe: Recipe, facts: CorpusFacts, group: str) -> DistillSizes:
    """Return the sizes of a group's networks by what is known of the corpus."""
    pieces = {code: facts.pieces[code] for code in recipe.groups[group]}
    width, between = load_teacher(recipe.teacher).embedding_width, recipe.bottleneck
    return DistillSizes(pieces, width, between.tokens, between.width, facts.moods, facts.attributes)


def group_of(name: str) -> str:
    """Return the group of languages of a distill stage."""
    return name.partition("-")[2]


def written_captions(stage: DistillStage) -> int:
    """Return how many captions of a step, over all ranks, the text branch reads."""
    return round(stage.text_ratio * stage.batch) if stage.losses.get("text_branch") and stage.losses.get("ctc") else 0


class DistillTask(Task):
    """Distillation of one group of languages (one encoder) against cached teacher features."""

    Settings = DistillStage

    def __init__(self, workspace: Workspace, group: str, corpus: GroupCorpus, device: torch.device):
        self.name = f"distill-{group}"
        self.workspace, self.stage = workspace, workspace.recipe.stages.distill
        self.weights = self.stage.losses
        self.corpus = corpus
        self.rows = self.corpus.rows
        module = self.module = self._build(workspace)
        self.losses = module.losses_of("speech")
        self.encoder = self.corpus.encoder = module.encoder
        self.frozen = module.encoder.acoustics.frozen_part
        self.inputs = open_inputs(workspace, module.encoder, device)
        self._start_from_recordings()
        kept = self._short_enough()
        short = self.corpus.short
        self.phrases = self._order(short & kept)
        self.phrase_steps = int(self.stage.phrase_warmup * self.stage.steps) if len(self.phrases.items) else 0
        self.mixed = self._order(self._with_phrases(~short & kept, short & kept))
        self.written = self._written_order()
        self.ctc_steps = int(self.stage.ctc_warmup * self.stage.steps) if len(self.written.items) else 0
        self.phase_change_step = max(self.phrase_steps, self.ctc_steps)

    def _build(self, workspace: Workspace) -> Distillation:
        settings = workspace.recipe.encoder
        module = build_module(workspace.recipe, self.corpus.sizes, backbone_of(settings))
        if settings.backbone:
            module.encoder.acoustics.load_published(settings.backbone)
        return module

    def _start_from_recordings(self) -> None:
        """Show the backbone some recordings, the same ones on every rank."""
        acoustics, some = self.encoder.acoustics, self.rows[:: -(-len(self.rows) // STARTED_FROM)]
        features, lengths = self.inputs.padded(self.inputs.first_of(some))
        acoustics.start_from(acoustics.inputs(torch.from_numpy(features)), torch.from_numpy(lengths))

    # ---- before there is one ------------------------------------------------------------------------------------

    @classmethod
    def stages(cls, recipe: Recipe, section: str) -> list[str]:
        """Return a stage for each group of languages that shares an encoder."""
        return [f"{section}-{group}" for group in recipe.groups]

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse what cannot be trained: unknown losses, layers of no model, a bottleneck without input."""
        check_backbone(recipe.encoder)
        if recipe.stages.distill.ctc_warmup and not written_captions(recipe.stages.distill):
            raise RecipeError(
                "stages.distill.ctc_warmup: while recordings train the CTC head alone, captions train the rest; set "
                "losses.ctc, losses.text_branch and text_ratio above 0, or ctc_warmup to 0"
            )
        usual = {"acoustics_above_ctc": True, "drop_blanks": False}
        for name, value in usual.items():
            if getattr(recipe.encoder, name) != value and not recipe.stages.distill.losses.get("ctc"):
                raise RecipeError(
                    f"encoder.{name}: {str(not value).lower()} takes a CTC head, and there is none; set it to "
                    f"{str(value).lower()}, or stages.distill.losses.ctc above 0"
                )
        for name, weight in recipe.stages.distill.losses.items():
            if weight:
                find_loss(name)
        if recipe.stages.distill.losses.get("text"):
            check_teacher_reads(recipe, "distill")

    @classmethod
    def fill_caches(cls, workspace: Workspace, name: str, device: torch.device, team: Team) -> None:
        """Compute the teacher's features, and the frames of a frozen backbone."""
        cache_teacher(workspace, device, team)
        settings = workspace.recipe.encoder
        if settings.cache_frames:
            backbone = build_backbone(backbone_of(settings), settings.width)
            assert isinstance(backbone, PretrainedBackbone)
            backbone.load_published(str(settings.backbone))
            cache_backbone(workspace, backbone, device, team)

    @classmethod
    def build(cls, workspace: Workspace, name: str, device: torch.device, shard: BatchShard) -> DistillTask:
        group = group_of(name)
        return cls(workspace, group, GroupCorpus(workspace, group, *teacher_features(workspace, device)), device)

    @classmethod
    def build_network(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> Distillation:
        """Build the encoder, bottleneck and losses of the group."""
        module = build_module(recipe, sizes_of(recipe, facts, group_of(name)), backbone_of(recipe.encoder))
        if recipe.encoder.cache_frames:
            module.encoder.acoustics = module.encoder.acoustics.reader()
        return module

    @classmethod
    def example_batch(cls, recipe: Recipe, facts: CorpusFacts, name: str, size: int, seconds: float) -> DistillBatch:
        """Return noise for recordings, and captions of the mean length."""
        stage, rng = recipe.stages.distill.model_copy(update={"batch": size}), np.random.default_rng(0)
        corpus = ExampleCorpus(sizes_of(recipe, facts, group_of(name)), facts, stage, seconds)
        losses = build_losses(corpus.sizes, stage)
        spoken = {name: loss for name, loss in losses.items() if loss.branch == "speech"}
        features, lengths = examples.speech(recipe, facts, size, seconds, rng)
        written, count = None, written_captions(stage)
        if count:
            of_captions = {name: loss for name, loss in losses.items() if loss.on_captions}
            language, seeds = torch.zeros(count, dtype=torch.long), list(range(count))
            written = _written_batch(corpus, of_captions, np.arange(count), language, seeds, 0, count)
        return DistillBatch(
            features, lengths, torch.zeros(size, dtype=torch.long), targets_of(spoken, corpus, np.arange(size), 0),
            written,
        )  # fmt: skip

    @classmethod
    def mean_seconds(cls, recipe: Recipe, facts: CorpusFacts) -> float:
        stage = recipe.stages.distill
        return facts.mean_seconds(stage.phrase_warmup + (1 - stage.phrase_warmup) * stage.phrase_ratio)

    @classmethod
    def items_of_corpus(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> float:
        """Return the recordings of the group's languages."""
        return facts.recordings * len(recipe.groups[group_of(name)]) / len(recipe.languages)

    @classmethod
    def check_shares(cls, recipe: Recipe, shares: int) -> None:
        """Refuse so few written captions that a share would have none."""
        stage, written = recipe.stages.distill, written_captions(recipe.stages.distill)
        if 0 < written < shares:
            raise StaError(
                f"stages.distill: text_ratio {stage.text_ratio:g} of batch {stage.batch} is {written} written captions "
                f"a step, too few for {shares} shares of it; raise either, or set stages.distill.text_ratio to 0"
            )

    # ---- while it trains ------------------------------------------------------------------------------------------

    def _short_enough(self) -> np.ndarray:
        """Return which recordings are trained on, bool [rows]: longer ones are left out, not cut, as captions are not.

        Raises:
            TrainingError: no caption is left.
        """
        longest, rate = (
            self.stage.max_seconds,
            backbone_class(self.workspace.recipe.encoder.backbone).features_per_second,
        )
        kept = self.workspace.features.lengths[self.rows] <= longest * rate
        count = f"{len(kept) - int(kept.sum())} of {len(kept)} recordings hold more than {longest:g} s of speech"
        if not (kept & ~self.corpus.short).any():
            raise TrainingError(
                f"stage {self.name}: {count} (stages.distill.max_seconds), and no whole caption is left; raise it"
            )
        if not kept.all() and ranks.is_main():
            print(f"sta: stage {self.name}: {count} (stages.distill.max_seconds) and are left out", file=sys.stderr)
        return kept

    def _order(self, kept: np.ndarray) -> ShuffledSampler:
        rows = self.rows[kept]
        lengths, seed = self.workspace.features.lengths[rows], self.workspace.recipe.seed
        return build_sampler(self.workspace, rows, rows, seed, self.stage.batch, lengths)

    def _with_phrases(self, full: np.ndarray, short: np.ndarray) -> np.ndarray:
        """Return the full captions, and as many of the phrases as make `phrase_ratio` of the whole."""
        share = self.stage.phrase_ratio
        wanted = int(full.sum() * share / (1 - share)) if share < 1 else len(short)
        chosen = np.random.default_rng(self.workspace.recipe.seed).permutation(np.flatnonzero(short))[:wanted]
        return np.union1d(np.flatnonzero(full), chosen)

    def _written_order(self) -> ShuffledSampler:
        """Return the order of the captions for the text branch, those of a step of like length."""
        rows = self.rows[self.corpus.has_text(self.rows)]
        lengths = np.array([len(text) for text in self.corpus.column("text", rows)])
        return ShuffledSampler(rows, self.workspace.recipe.seed + 1, lengths, max(1, written_captions(self.stage)))

    def _rows_of(self, step: int) -> np.ndarray:
        """Return the step's global batch: short phrases only at first, then all."""
        order, turn = (self.phrases, step) if step < self.phrase_steps else (self.mixed, step - self.phrase_steps)
        return order.take(turn * self.stage.batch, self.stage.batch)

    def items(self, step: int) -> list[str]:
        """Return the ids of the step's recordings."""
        return self.workspace.corpus.names(self._rows_of(step))

    def batch(self, step: int, shard: BatchShard) -> DistillBatch:
        """Return this shard's recordings and captions of the step."""
        everyone = self._rows_of(step)
        rows, items = shard.of(everyone), self.inputs.some_of(everyone, [self.workspace.recipe.seed, step])
        features, lengths = self.inputs.padded(shard.of(items), items)
        return DistillBatch(
            torch.from_numpy(features), torch.from_numpy(lengths),
            self.encoder.language_indices(self.corpus.column("language", rows)),
            targets_of(self._losses_at(step), self.corpus, rows, step), self._written(step, shard),
        )  # fmt: skip

    def _losses_at(self, step: int) -> dict[str, DistillLoss]:
        """Return the losses of recordings in a step: at first, if the recipe says so, that of the CTC head alone."""
        return {name: loss for name, loss in self.losses.items() if loss.of_readings or step >= self.ctc_steps}

    def _written(self, step: int, shard: BatchShard) -> WrittenBatch | None:
        """Return what the text branch reads: this rank's captions of a step."""
        count = written_captions(self.stage) if len(self.written.items) else 0
        if not count:
            return None
        self.check_shares(self.workspace.recipe, shard.count)
        rows, numbers = shard.of(self.written.take(step * count, count)), shard.of(np.arange(count))
        losses = {name: loss for name, loss in self.losses.items() if loss.on_captions}
        seeds = [step * count + int(number) for number in numbers]
        language = self.encoder.language_indices(self.corpus.column("language", rows))
        return _written_batch(self.corpus, losses, rows, language, seeds, step, count)

    def compile(self, module: nn.Module, device: torch.device) -> None:
        """Compile the layers of encoder and bottleneck, where the stage asks for it."""
        assert isinstance(module, Distillation)
        if compiles(self.stage.compile, device):
            compile_layers(module.encoder, module.bottleneck)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write encoder and bottleneck."""
        assert isinstance(module, Distillation)
        module.encoder.save(folder / "encoder", folder, self.frozen)
        module.bottleneck.save_pretrained(folder / "bottleneck")


def _written_batch(
    corpus: DistillCorpus, losses: Mapping[str, DistillLoss], rows: np.ndarray, language: Tensor, seeds: list[int],
    step: int, total: int,
) -> WrittenBatch:  # fmt: skip
    pieces, lengths = pieces_to_frames(corpus.captions(rows), seeds)
    return WrittenBatch(pieces, lengths, language, targets_of(losses, corpus, rows, step), total)


# ---- the corpus as losses see it --------------------------------------------------------------------------------


class GroupCorpus:
    """A group's training rows; see `DistillCorpus`.

    Args:
        image, text: the teacher's features of all pictures [pictures, E] and captions [rows, E].

    Attributes:
        rows: int64 [rows of the group], sorted. short: bool, of each of them whether it is a short phrase.
        encoder: whose CTC head the captions' pieces are of.
    """

    encoder: SpeechEncoder

    def __init__(self, workspace: Workspace, group: str, image: np.ndarray, text: np.ndarray):
        recipe, corpus = workspace.recipe, workspace.corpus
        self.workspace, self.negative_count = workspace, recipe.stages.distill.negatives
        self._captions = dict[int, list[int]]()  # as pieces, which takes longer than a step to find
        self.rows, (self.image_of, _) = group_rows(workspace, group), corpus.image_index
        self.short = corpus.column("phrase").equal(True)[self.rows]
        self.image, self.text = image, text
        self.known, self.read = corpus.has_text, teacher_reads(workspace)
        named = workspace.attributes if corpus.truths else None
        self.named = named.values if named else np.zeros((len(corpus), 0), np.int64)
        pieces = {code: workspace.pieces[code].size for code in recipe.groups[group]}
        between, sizes = recipe.bottleneck, named.sizes if named else {}
        self.sizes = DistillSizes(
            pieces, self.image.shape[1], between.tokens, between.width, len(workspace.moods), sizes
        )

    @cached_property
    def concepts(self) -> Concepts:
        return centroids_of(self.workspace.corpus, self.image, self.text, self.read)

    def image_features(self, rows: np.ndarray) -> np.ndarray:
        return self.image[self.image_of[rows]]

    def text_features(self, rows: np.ndarray) -> np.ndarray:
        return self.text[rows]

    def negatives(self, step: int) -> np.ndarray:
        """Return the rows of negatives: the teacher is frozen, so any of its features may serve."""
        rng = np.random.default_rng([self.workspace.recipe.seed, step])
        return rng.choice(self.rows, min(self.negative_count, len(self.rows)), replace=False)

    def captions(self, rows: np.ndarray) -> list[list[int]]:
        new = np.array([row for row in rows if int(row) not in self._captions], np.int64)
        self._captions |= dict(zip(new.tolist(), caption_pieces(self.workspace, self.encoder, new), strict=True))
        return [self._captions[int(row)] for row in rows]

    def has_text(self, rows: np.ndarray) -> np.ndarray:
        return self.known[rows]

    def teacher_reads(self, rows: np.ndarray) -> np.ndarray:
        return self.read[rows]

    def is_phrase(self, rows: np.ndarray) -> np.ndarray:
        return self.short[np.searchsorted(self.rows, rows)]

    def moods(self, rows: np.ndarray) -> np.ndarray:
        known = {mood: number for number, mood in enumerate(self.workspace.moods)}
        return np.array([known.get(mood, IGNORE_INDEX) for mood in self.column("mood", rows)], np.int64)

    def attributes(self, rows: np.ndarray) -> np.ndarray:
        return self.named[rows]

    def column(self, name: str, rows: np.ndarray) -> list[Any]:
        column = self.workspace.corpus.column(name)
        return [column[row] for row in rows]


class ExampleCorpus:
    """Noise in the place of a corpus; see `DistillCorpus`."""

    def __init__(self, sizes: DistillSizes, facts: CorpusFacts, stage: DistillStage, seconds: float):
        self.sizes, self.facts, self.stage, self.seconds = sizes, facts, stage, seconds
        self.rng = np.random.default_rng(0)

    @cached_property
    def concepts(self) -> Concepts:
        labels = min(self.stage.negatives, self.facts.pictures)
        centroids = examples.unit_vectors(labels, self.sizes.embedding_width, self.rng).numpy()
        return Concepts(centroids, np.arange(self.facts.recordings) % labels)

    def image_features(self, rows: np.ndarray) -> np.ndarray:
        return examples.unit_vectors(len(rows), self.sizes.embedding_width, self.rng).numpy()

    text_features = image_features

    def negatives(self, step: int) -> np.ndarray:
        return np.arange(min(self.stage.negatives, self.facts.recordings))

    def captions(self, rows: np.ndarray) -> list[list[int]]:
        return examples.captions(self.facts, self.sizes.vocabulary - 1, len(rows), self.seconds, self.rng)

    def has_text(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), bool)

    teacher_reads = has_text

    def is_phrase(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros(len(rows), bool)

    def moods(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros(len(rows), np.int64)

    def attributes(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros((len(rows), len(self.sizes.attributes)), np.int64)

    def column(self, name: str, rows: np.ndarray) -> list[Any]:
        return [""] * len(rows)
