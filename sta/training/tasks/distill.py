"""The distill stage: a speech encoder and its bottleneck learn to see what the frozen teacher sees."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.config.recipe import DistillStage, Recipe
from sta.distributed import ranks, sharding
from sta.distributed.sharding import BatchShard
from sta.errors import TrainingError
from sta.models.augment import augment_mel, noise_mel
from sta.models.backbones import describe_backbone
from sta.models.bottleneck import SpeechBottleneck, SpeechCondition
from sta.models.captioner import Captioner
from sta.models.encoder import SpeechEncoder, pieces_to_frames
from sta.models.layers import similarity_distillation
from sta.models.token_classifier import UNKNOWN, TokenClassifier
from sta.training.features import LENGTH_MULTIPLE, caption_pieces, group_rows, teacher_features
from sta.training.loop import Task
from sta.training.sampler import ShuffledSampler, build_sampler
from sta.training.workspace import Workspace


class _Distillation(nn.Module):
    def __init__(
        self, encoder: SpeechEncoder, bottleneck: SpeechBottleneck, moods: int, attributes: Mapping[str, int],
        stage: DistillStage,
    ):  # fmt: skip
        super().__init__()
        self.encoder, self.bottleneck, self.stage = encoder, bottleneck, stage
        tokens, width = bottleneck.config.tokens, bottleneck.config.width
        weighs = stage.losses.get
        self.mood = TokenClassifier({"mood": moods}, tokens, width) if weighs("mood") and moods else None
        self.attributes = TokenClassifier(attributes, tokens, width) if weighs("attributes") else None
        self.captioner = Captioner(encoder.ctc.out_features, width) if weighs("caption") else None

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs, lengths = self.encoder.inputs(batch["features"]), batch["lengths"]
        if self.encoder.acoustics.augments:
            inputs, lengths = augment_mel(inputs, lengths, self.stage.augment, self.stage.accent)
            inputs = noise_mel(inputs, lengths, self.stage.noise)
        keep = sharding.uniform(len(inputs), device=inputs.device) >= self.stage.acoustic_dropout
        heard = self.encoder(inputs, lengths, batch["language"], keep)
        speech = self.bottleneck(heard.frames, heard.mask, batch["language"])
        losses = {"ctc": _ctc(heard.ctc_logits, heard.ctc_lengths, batch), "kl": speech.kl.mean()}
        losses |= self._against_teacher(speech, batch) | self._said(speech, batch)
        if self.mood is not None:
            losses["mood"] = self.mood.loss(speech.tokens, batch["mood"].masked_fill(~keep, UNKNOWN)[:, None])
        if self.stage.losses.get("text_branch") and "read_frames" in batch:
            with sharding.with_batch_size(written_captions(self.stage)):
                losses["text_branch"] = self._read(batch)
        return losses

    def _read(self, batch: dict[str, Tensor]) -> Tensor:
        """The losses of the captions that the text branch reads, weighted."""
        read = {k.removeprefix("read_"): v for k, v in batch.items() if k.startswith("read_")}
        written = self.encoder.encode_text(read["frames"], read["lengths"], read["language"])
        tokens, read = self.bottleneck(written.frames, written.mask, read["language"]), batch | read
        branch = self._against_teacher(tokens, read) | self._said(tokens, read)
        weighted = [weight * branch[name] for name, weight in self.stage.losses.items() if name in branch]
        return torch.stack(weighted).sum()

    def _said(self, speech: SpeechCondition, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whether the tokens hold what the caption says: its words, and the attributes it names."""
        losses = {}
        if self.captioner is not None:
            losses["caption"] = self.captioner(speech.tokens, batch["pieces"], batch["counts"])
        if self.attributes is not None:
            losses["attributes"] = self.attributes.loss(speech.tokens, batch["attributes"])
        return losses

    def _against_teacher(self, speech: SpeechCondition, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tau, full = self.stage.temperature, batch["full"].float()
        text = similarity_distillation(speech.embedding, batch["text"], batch["text_bank"], tau)
        image = similarity_distillation(speech.embedding, batch["image"], batch["image_bank"], tau)
        return {"text": sharding.mean(text), "image": sharding.global_mean((image * full).sum(), full.sum())}


def written_captions(stage: DistillStage) -> int:
    """How many captions of a step, over all ranks, the text branch reads."""
    return round(stage.text_ratio * stage.batch)


def _ctc(logits: Tensor, lengths: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), batch["pieces"], lengths, batch["counts"], zero_infinity=True
    )


def build_module(
    recipe: Recipe, pieces: Mapping[str, int], embedding_width: int, moods: int, attributes: Mapping[str, int],
    backbone: dict[str, Any] | None = None,
) -> _Distillation:  # fmt: skip
    """The untrained network of one group's stage.

    Args:
        pieces: language -> its SentencePiece pieces, of the group.
        embedding_width: E.
        moods: how many the corpus names.
        attributes: attribute -> number of its values; read only where its loss has a weight.
        backbone: of `describe_backbone`.
    """
    settings, between = recipe.encoder, recipe.bottleneck
    torch.manual_seed(recipe.seed)
    encoder = SpeechEncoder(
        dict(pieces), settings.width, settings.convolutions, settings.layers, settings.heads, settings.dropout, backbone
    )
    bottleneck = SpeechBottleneck(settings.width, embedding_width, between.tokens, between.width, between.layers)
    return _Distillation(encoder, bottleneck, moods, attributes, recipe.stages.distill)


class DistillTask(Task):
    """Distillation of one group of languages (one encoder) against cached teacher features."""

    def __init__(self, workspace: Workspace, group: str, device: torch.device):
        self.name = f"distill-{group}"
        self.workspace, self.stage = workspace, workspace.recipe.stages.distill
        self.weights = {k: v for k, v in self.stage.losses.items()}
        self.image, self.text = teacher_features(workspace, device)
        self.rows = group_rows(workspace, group)
        self.image_of, _ = workspace.corpus.image_index
        self.language, self.mood = workspace.corpus.column("language"), workspace.corpus.column("mood")
        self.named = workspace.attributes if self.stage.losses.get("attributes") else None
        self.module = self._build(workspace, group)
        lengths = workspace.features.lengths[self.rows]
        self.short = workspace.corpus.column("phrase").equal(True)[self.rows]
        heard = self._heard(lengths)
        full, short = ~self.short & heard, self.short & heard
        self.phrases = self._order(short)
        self.phase_change_step = int(self.stage.phrase_warmup * self.stage.steps) if len(self.phrases.items) else 0
        self.mixed = self._order(self._with_phrases(full, short))
        self.written = ShuffledSampler(self.rows[workspace.corpus.has_text[self.rows]], workspace.recipe.seed + 1)

    def _build(self, workspace: Workspace, group: str) -> _Distillation:
        recipe = workspace.recipe
        settings = recipe.encoder
        description = describe_backbone(settings.backbone, settings.freeze_backbone)
        module = build_module(
            recipe, {code: workspace.pieces[code].size for code in recipe.groups[group]}, self.image.shape[1],
            len(workspace.moods), self.named.sizes if self.named else {}, description,
        )  # fmt: skip
        self.encoder = module.encoder
        if settings.backbone:
            self.encoder.acoustics.load_published(settings.backbone)
        return module

    def _heard(self, lengths: np.ndarray) -> np.ndarray:
        """Which recordings are heard, bool [rows]: a longer one is not cut, as its caption would say more than it.

        Raises:
            TrainingError: no caption is left.
        """
        longest = self.stage.max_seconds
        heard = lengths <= longest * self.encoder.acoustics.features_per_second
        count = f"{len(heard) - int(heard.sum())} of {len(heard)} recordings hold more than {longest:g} s of speech"
        if not (heard & ~self.short).any():
            raise TrainingError(
                f"stage {self.name}: {count} (stages.distill.max_seconds), and no whole caption is left; raise it"
            )
        if not heard.all() and ranks.is_main():
            print(f"sta: stage {self.name}: {count} (stages.distill.max_seconds) and are left out", file=sys.stderr)
        return heard

    def _order(self, kept: np.ndarray) -> ShuffledSampler:
        rows = self.rows[kept]
        lengths, seed = self.workspace.features.lengths[rows], self.workspace.recipe.seed
        return build_sampler(self.workspace, rows, rows, seed, self.stage.batch, lengths)

    def _with_phrases(self, full: np.ndarray, short: np.ndarray) -> np.ndarray:
        """The full captions, and as many of the phrases as make `phrase_ratio` of the whole."""
        share = self.stage.phrase_ratio
        wanted = int(full.sum() * share / (1 - share)) if share < 1 else len(short)
        chosen = np.random.default_rng(self.workspace.recipe.seed).permutation(np.flatnonzero(short))[:wanted]
        return np.union1d(np.flatnonzero(full), chosen)

    def _rows_of(self, step: int) -> np.ndarray:
        """The step's global batch: short phrases only at first, then all."""
        order, turn = (
            (self.phrases, step) if step < self.phase_change_step else (self.mixed, step - self.phase_change_step)
        )
        return order.take(turn * self.stage.batch, self.stage.batch)

    def items(self, step: int) -> list[str]:
        return self.workspace.corpus.names(self._rows_of(step))

    def batch(self, step: int, shard: BatchShard) -> dict[str, Tensor]:
        everyone = self._rows_of(step)
        rows = shard.of(everyone)
        store = self.workspace.features
        features, lengths = store.padded(rows.tolist(), LENGTH_MULTIPLE, int(store.lengths[everyone].max()))
        moods, written = self.workspace.moods, written_captions(self.stage)
        batch = {
            "features": torch.from_numpy(features),
            "lengths": torch.from_numpy(lengths),
            "language": self.encoder.language_indices([self.language[r] for r in rows]),
            "mood": torch.tensor([moods.index(self.mood[r]) if self.mood[r] in moods else UNKNOWN for r in rows]),
            **self._captions(rows),
            **self._bank(step),
        }
        if 0 < written < shard.count:
            raise TrainingError(
                f"stage {self.name}: {written} written captions a step are too few to share among {shard.count}; raise "
                "stages.distill.batch or stages.distill.text_ratio, or set the latter to 0"
            )
        if written:
            batch |= self._written(step, shard, written)
        return batch

    def _written(self, step: int, shard: BatchShard, count: int) -> dict[str, Tensor]:
        """What the text branch reads: this rank's of `count` captions."""
        read, numbers = shard.of(self.written.take(step * count, count)), shard.of(np.arange(count))
        pieces = caption_pieces(self.workspace, self.encoder, read)
        frames, lengths = pieces_to_frames(pieces, [step * count + int(number) for number in numbers])
        language = self.encoder.language_indices([self.language[r] for r in read])
        captions = self._captions(read) | {"frames": frames, "lengths": lengths, "language": language}
        return {f"read_{name}": value for name, value in captions.items()}

    def _captions(self, rows: np.ndarray) -> dict[str, Tensor]:
        """What the teacher makes of the rows' captions and pictures, the captions' pieces, and what they name."""
        pieces = caption_pieces(self.workspace, self.encoder, rows)
        named = {"attributes": torch.from_numpy(self.named.values[rows])} if self.named else {}
        return {
            **named,
            "full": torch.from_numpy(~self.short[np.searchsorted(self.rows, rows)]),
            "text": torch.from_numpy(self.text[rows]),
            "image": torch.from_numpy(self.image[self.image_of[rows]]),
            "pieces": torch.tensor([p for c in pieces for p in c], dtype=torch.long),
            "counts": torch.tensor([len(c) for c in pieces]),
        }

    def _bank(self, step: int) -> dict[str, Tensor]:
        """Negatives, the same on every rank: the teacher is frozen, so any of its features may serve."""
        rng = np.random.default_rng([self.workspace.recipe.seed, step])
        rows = rng.choice(self.rows, min(self.stage.negatives, len(self.rows)), replace=False)
        return {
            "text_bank": torch.from_numpy(self.text[rows]),
            "image_bank": torch.from_numpy(self.image[self.image_of[rows]]),
        }

    def export(self, module: nn.Module, folder: Path) -> None:
        assert isinstance(module, _Distillation)
        module.encoder.save_pretrained(folder / "encoder")
        module.bottleneck.save_pretrained(folder / "bottleneck")
