"""The decoder stage: VQ-Diffusion or latent diffusion learns to draw from speech tokens.

Its gradient reaches the bottleneck.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sta.config.recipe import DecoderStage, Recipe
from sta.data.store import pad
from sta.distributed import sharding
from sta.distributed.sharding import BatchShard
from sta.errors import TrainingError
from sta.models.backbones import backbone_class
from sta.models.bottleneck import SpeechBottleneck, SpeechCondition
from sta.models.captioner import Captioner
from sta.models.decoders.base import Objective, PictureGrid, Target, TokenSpace, find_decoder
from sta.models.encoder import SpeechEncoder, pieces_to_frames
from sta.models.layers import similarity_distillation
from sta.training.features import (
    cached_frames,
    caption_pieces,
    group_rows,
    load_speech,
    pictures_as,
    teacher_features,
)
from sta.training.loop import Task
from sta.training.sampler import ShuffledSampler, build_sampler
from sta.training.workspace import Workspace

FRAME_MULTIPLE = 16
BANK = 512  # captions whose teacher features keep the embedding where the distill stage put it


def text_mask(size: int, share: float) -> np.ndarray:
    """bool [size], True for the first `share` of a batch's places: ranks take turns, so each gets as many of them."""
    return np.arange(size) < round(size * share)


def kinds_of_pictures(recipe: Recipe) -> tuple[Target, ...]:
    """Return what the stage reads of the pictures: what the decoder draws, and what a draft is measured against."""
    return find_decoder(recipe.decoder.kind).reads(recipe.decoder)


def kinds_of_frames(recipe: Recipe) -> tuple[bool, ...]:
    """Whether each kind of frames that the stage reads is disturbed: clean ones always come first."""
    disturbs = recipe.stages.decoder.augment_ratio > 0 and backbone_class(recipe.encoder.backbone).augments
    return (False, True) if disturbs else (False,)


class _Denoising(nn.Module):
    """One group's frames a batch; a caption of the batch may come in through the text branch instead.

    A batch without `x0` trains the draft and the bottleneck only.
    """

    def __init__(
        self, objective: Objective, encoders: dict[str, SpeechEncoder],
        bottlenecks: dict[str, SpeechBottleneck], stage: DecoderStage, temperature: float,
    ):  # fmt: skip
        super().__init__()
        self.objective, self.stage, self.temperature = objective, stage, temperature
        self.encoders, self.bottlenecks = nn.ModuleDict(encoders), nn.ModuleDict(bottlenecks)
        self.encoders.requires_grad_(False)
        self.bottlenecks.requires_grad_(stage.tune_bottleneck)
        self.captioners = nn.ModuleDict(
            {g: Captioner(encoders[g].ctc.out_features, b.config.width) for g, b in bottlenecks.items()}
            if stage.tune_bottleneck and stage.losses.get("caption")
            else {}
        )

    def train(self, mode: bool = True) -> _Denoising:
        super().train(mode)
        self.encoders.train(False)
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        group = list(self.encoders)[int(batch["group"])]
        tokens = self._condition(group, batch)
        losses: dict[str, Tensor] = {"kl": tokens.kl.mean()}
        decoder = self.objective.decoder
        drafted = decoder.draft(tokens.tokens)
        if "x0" in batch:
            drop = sharding.uniform(len(batch["x0"]), device=batch["x0"].device) < self.stage.condition_dropout
            losses |= self.objective(batch["x0"], tokens, drop, drafted)
        if drafted is not None:
            losses["draft"] = decoder.draft_loss(drafted, batch["latents"])
        if self.stage.losses.get("text") and self.stage.tune_bottleneck:
            losses["text"] = similarity_distillation(
                tokens.embedding, batch["text"], batch["text_bank"], self.temperature
            ).mean()
        if group in self.captioners:
            losses["caption"] = self.captioners[group](tokens.tokens, batch["pieces"], batch["counts"])
        return losses

    def _condition(self, group: str, batch: dict[str, Tensor]) -> SpeechCondition:
        """Tokens of the batch, in its order: of recordings in the places `heard`, of captions in the places `read`."""
        bottleneck, places = self.bottlenecks[group], torch.cat([batch["heard"], batch["read"]])
        assert isinstance(bottleneck, SpeechBottleneck)
        size = bottleneck.config
        noise = sharding.normal(len(places), size.tokens, size.width, device=places.device)
        frames = batch["frames"].to(self.objective.decoder.dtype)
        language = batch["language"]
        heard = bottleneck(frames, batch["frames_mask"], language[batch["heard"]], noise[batch["heard"]])
        if "text_pieces" not in batch:
            return heard
        encoder = self.encoders[group]
        assert isinstance(encoder, SpeechEncoder)
        count = len(batch["read"])  # none, where this rank's caption is only there to be as the other ranks
        noise, language = (x[batch["read"]] if count else x[:1] for x in (noise, language))
        with torch.no_grad():
            captions = encoder.encode_text(batch["text_pieces"], batch["text_lengths"], language)
        read = bottleneck(captions.frames, captions.mask, language, noise)
        back = places.argsort()
        return SpeechCondition(
            *(torch.cat([h, r[:count]])[back] for h, r in zip(_parts(heard), _parts(read), strict=True))
        )


def _parts(tokens: SpeechCondition) -> tuple[Tensor, Tensor, Tensor]:
    return tokens.tokens, tokens.embedding, tokens.kl


def build_module(
    recipe: Recipe, encoders: dict[str, SpeechEncoder], bottlenecks: dict[str, SpeechBottleneck]
) -> _Denoising:
    """The network of the stage on the distilled encoders and bottlenecks of every group; the decoder is untrained."""
    any_one = next(iter(bottlenecks.values())).config
    torch.manual_seed(recipe.seed)
    settings, stage = recipe.decoder, recipe.stages.decoder
    space = TokenSpace(any_one.tokens, any_one.width, any_one.embedding_width)
    decoder = find_decoder(settings.kind).build(settings, PictureGrid.of(recipe), space)
    objective = decoder.objective(settings, stage.losses)
    return _Denoising(objective, encoders, bottlenecks, stage, recipe.stages.distill.temperature)


class DecoderTask(Task):
    """Diffusion on the codes, or the latents, of each recording's picture."""

    name = "decoder"

    def __init__(self, workspace: Workspace, device: torch.device):
        self.workspace, self.stage = workspace, workspace.recipe.stages.decoder
        self.weights, self.groups = {k: v for k, v in self.stage.losses.items()}, list(workspace.recipe.groups)
        self.phase_change_step = int(self.stage.draft_warmup * self.stage.steps)
        self.pictures = pictures_as(workspace, kinds_of_pictures(workspace.recipe)[0], device)
        _, self.text = teacher_features(workspace, device)
        has_draft = find_decoder(workspace.recipe.decoder.kind).has_draft(workspace.recipe.decoder)
        self.latents = pictures_as(workspace, "latents", device) if has_draft else None
        kinds = kinds_of_frames(workspace.recipe)
        self.frames = {g: [cached_frames(workspace, g, device, disturbed) for disturbed in kinds] for g in self.groups}
        self.rows = {g: group_rows(workspace, g) for g in self.groups}
        self.image_of, _ = workspace.corpus.image_index
        self.language = workspace.corpus.column("language")
        speech = {g: load_speech(workspace, g) for g in self.groups}
        self.encoders = {g: encoder for g, (encoder, _) in speech.items()}
        bottlenecks = {g: bottleneck for g, (_, bottleneck) in speech.items()}
        self.module = build_module(workspace.recipe, self.encoders, bottlenecks)
        self.short, self.full = {}, {}
        phrase = workspace.corpus.column("phrase").equal(True)
        for group, rows in self.rows.items():
            short = phrase[rows]
            shorts = self._shorts(bool(short.any()))
            self.short[group] = self._order(group, short, 0, max(1, shorts), self.stage.batch - shorts)
            self.full[group] = self._order(group, ~short, 1, max(1, self.stage.batch - shorts), 0)

    def _shorts(self, any_short: bool) -> int:
        """How many short phrases a batch has, in its last places."""
        return int(self.stage.phrase_ratio * self.stage.batch) if any_short else 0

    def _order(self, group: str, kept: np.ndarray, seed: int, batch: int, offset: int) -> ShuffledSampler:
        """The order of some of a group's recordings, of which a batch takes `batch` from the place `offset` on."""
        places, seed = np.flatnonzero(kept), self.workspace.recipe.seed + seed
        return build_sampler(self.workspace, places, self.rows[group][places], seed, batch, offset=offset)

    def _places_of(self, step: int) -> tuple[int, np.ndarray]:
        """The number of the step's group, and which of the group's rows are in the whole batch."""
        number, turn, size = step % len(self.groups), step // len(self.groups), self.stage.batch
        short, full = self.short[self.groups[number]], self.full[self.groups[number]]
        shorts = self._shorts(len(short.items) > 0)
        return number, np.concatenate(
            [full.take(turn * (size - shorts), size - shorts), short.take(turn * shorts, shorts)]
        )

    def items(self, step: int) -> list[str]:
        number, places = self._places_of(step)
        return self.workspace.corpus.names(self.rows[self.groups[number]][places])

    def batch(self, step: int, shard: BatchShard) -> dict[str, Tensor]:
        number, places = self._places_of(step)
        group, size = self.groups[number], self.stage.batch
        is_written, rows = text_mask(size, self.stage.text_ratio), self.rows[group]
        spoken = size - int(is_written.sum())
        if spoken < shard.count:
            raise TrainingError(
                f"stage {self.name}: {spoken} recordings a step are too few to share among {shard.count}; raise "
                "stages.decoder.batch or lower stages.decoder.text_ratio"
            )
        places, is_written, numbers = shard.of(places), shard.of(is_written), shard.of(np.arange(size))
        heard, read, shown = places[~is_written], places[is_written], rows[places]
        bank = np.random.default_rng([self.workspace.recipe.seed, step]).choice(
            rows, min(BANK, len(rows)), replace=False
        )
        frames, lengths = pad([self._heard(group, place, step) for place in heard], FRAME_MULTIPLE)
        batch = {
            "group": torch.tensor(number),
            "language": self.encoders[group].language_indices([self.language[row] for row in shown]),
            "heard": torch.from_numpy(np.flatnonzero(~is_written)),
            "read": torch.from_numpy(np.flatnonzero(is_written)),
            "frames": torch.from_numpy(frames),
            "frames_mask": torch.arange(frames.shape[1]) < torch.from_numpy(lengths)[:, None],
            "text": torch.from_numpy(self.text[shown]),
            "text_bank": torch.from_numpy(self.text[bank]),
        }
        if step >= self.phase_change_step:
            batch["x0"] = torch.from_numpy(self.pictures[self.image_of[shown]])
        if self.latents is not None:
            batch["latents"] = torch.from_numpy(self.latents[self.image_of[shown]])
        if self.stage.losses.get("caption"):
            captions = caption_pieces(self.workspace, self.encoders[group], shown)
            batch["pieces"] = torch.tensor([piece for caption in captions for piece in caption], dtype=torch.long)
            batch["counts"] = torch.tensor([len(caption) for caption in captions])
        if spoken < size:
            # also where this rank reads none: under ZeRO-3 all ranks have to take the same way through the network
            pieces = caption_pieces(self.workspace, self.encoders[group], rows[read]) or [[]]
            seeds = [step * size + int(number) for number in numbers[is_written]] or None
            batch["text_pieces"], batch["text_lengths"] = pieces_to_frames(pieces, seeds)
        return batch

    def _heard(self, group: str, place: int, step: int) -> np.ndarray:
        """The frames [S, D] of a recording, clean or disturbed: the same on any number of ranks."""
        clean, *disturbed = self.frames[group]
        chance = np.random.default_rng([self.workspace.recipe.seed, step, int(place)]).random()
        return disturbed[0][place] if disturbed and chance < self.stage.augment_ratio else clean[place]

    def compile(self, module: nn.Module, device: torch.device) -> None:
        assert isinstance(module, _Denoising)
        if self.stage.compile == "always" or (self.stage.compile == "gpu" and device.type == "cuda"):
            module.objective.decoder.compile_repeated_blocks()

    def export(self, module: nn.Module, folder: Path) -> None:
        assert isinstance(module, _Denoising)
        module.objective.decoder.save_pretrained(folder / "decoder")
        for group, bottleneck in module.bottlenecks.items():
            assert isinstance(bottleneck, SpeechBottleneck)
            bottleneck.save_pretrained(folder / f"bottleneck-{group}")
