"""The decoder stage: VQ-Diffusion or latent diffusion learns to draw from speech tokens.

Its gradient reaches the bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.config.cards import load_teacher
from sta.config.recipe import DecoderStage, Recipe
from sta.data.store import Ragged, pad
from sta.distributed import sharding
from sta.distributed.sharding import BatchShard
from sta.distributed.team import Team
from sta.errors import RecipeError, StaError
from sta.models.backbones import backbone_class
from sta.models.bottleneck import SpeechBottleneck, SpeechCondition
from sta.models.captioner import Captioner, pad_captions
from sta.models.decoders.base import Objective, PictureGrid, Target, TokenSpace, find_decoder
from sta.models.encoder import SpeechEncoder, pieces_to_frames
from sta.training import examples
from sta.training.batch import Batch
from sta.training.concepts import centroids_of
from sta.training.losses.base import similarity_distillation
from sta.training.picture_features import cache_pictures, pictures_as
from sta.training.sampler import ShuffledSampler, build_sampler
from sta.training.speech_features import cache_frames, cached_frames, caption_pieces, group_rows, load_speech
from sta.training.task import CorpusFacts, Task, compile_layers, compiles
from sta.training.tasks.distill import DistillTask
from sta.training.teacher_features import cache_teacher, check_teacher_reads, teacher_features, teacher_reads
from sta.training.workspace import Workspace

FRAME_MULTIPLE = 16
BANK = 512  # captions whose teacher features keep the embedding where the distill stage put it


@dataclass(frozen=True)
class DecoderBatch(Batch):
    """Recordings and captions of one group of languages, and their pictures.

    Attributes:
        group: the group's number. language: int64 [B], numbers of its encoder's `languages`.
        spoken, written, taught: int64 [B1], [B2], [B3], the batch's places of recordings, of captions that the text
            branch reads and of those that the teacher reads; B1 + B2 + B3 = B.
        frames: float16 [B1, S, D] of the frozen encoder; frames_mask: bool [B1, S]. None where no recording is read.
        views: float32 [2, B3, E], unit vectors: what the teacher makes of a caption, and of its label.
        text_pieces, text_lengths: int64 [B2, R], [B2], what the text branch reads; None where it reads nothing on any
            rank, and of one caption where it reads nothing on this rank alone.
        style: int64 [B], as of `SpeechCondition`; None where the decoder has no styles.
        x0: what the decoder draws: codes int64 [B, N], or latents float16 [B, d, h, w]; None while the draft trains.
        latents: float16 [B, d, h, w], what the draft is measured against; None without one.
        text: float32 [B, E], the teacher's view of the captions; text_known: float32 [B], 0 where it reads none;
            text_bank: [M, E], negatives. None where that loss weighs nothing.
        pieces: int64 [B, L], of `pad_captions`; None where the caption loss weighs nothing.
    """

    group: int
    language: Tensor
    spoken: Tensor
    written: Tensor
    taught: Tensor
    frames: Tensor | None = None
    frames_mask: Tensor | None = None
    views: Tensor | None = None
    text_pieces: Tensor | None = None
    text_lengths: Tensor | None = None
    style: Tensor | None = None
    x0: Tensor | None = None
    latents: Tensor | None = None
    text: Tensor | None = None
    text_known: Tensor | None = None
    text_bank: Tensor | None = None
    pieces: Tensor | None = None


def text_mask(size: int, share: float) -> np.ndarray:
    """Return bool [size], True for the first `share` of places: ranks take turns, so each gets as many of them."""
    return np.arange(size) < round(size * share)


def taught_mask(size: int, share: float) -> np.ndarray:
    """Return bool [size], True for the last `share` of places."""
    return text_mask(size, share)[::-1].copy()


def kinds_of_pictures(recipe: Recipe) -> tuple[Target, ...]:
    """Return what the stage reads of the pictures: what the decoder draws, and what a draft is measured against."""
    return find_decoder(recipe.decoder.kind).reads(recipe.decoder)


def kinds_of_frames(recipe: Recipe) -> tuple[bool, ...]:
    """Return whether each kind of frames that the stage reads is disturbed: clean ones come first; none may be read."""
    stage = recipe.stages.decoder
    if stage.teacher_ratio == 1:
        return ()
    return (False, True) if stage.augment_ratio > 0 and backbone_class(recipe.encoder.backbone).augments else (False,)


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
            {g: Captioner(encoders[g].vocabulary, b.config.width) for g, b in bottlenecks.items()}
            if stage.tune_bottleneck and stage.losses.get("caption")
            else {}
        )

    def train(self, mode: bool = True) -> _Denoising:
        super().train(mode)
        self.encoders.train(False)
        return self

    def forward(self, batch: DecoderBatch) -> dict[str, Tensor]:
        """Return the losses by name."""
        group, decoder = list(self.encoders)[batch.group], self.objective.decoder
        tokens = self._condition(group, batch)
        losses: dict[str, Tensor] = {"kl": tokens.kl.mean()}
        condition = replace(tokens, style=self._style(batch))
        drafted = decoder.draft(condition)
        if batch.x0 is not None:
            drop = sharding.uniform(len(batch.x0), device=batch.x0.device) < self.stage.condition_dropout
            losses |= self.objective(batch.x0, condition, drop, drafted)
        if drafted is not None:
            assert batch.latents is not None
            losses["draft"] = decoder.draft_loss(drafted, batch.latents)
        if batch.text is not None and self.stage.tune_bottleneck:
            losses["text"] = self._text_loss(tokens, batch)
        if group in self.captioners:
            losses["caption"] = self.captioners[group](tokens.tokens, batch.pieces)
        return losses

    def _style(self, batch: DecoderBatch) -> Tensor | None:
        """Return the styles [B], hidden in a share of the pictures; None where the decoder has none."""
        if batch.style is None:
            return None
        hidden = sharding.uniform(len(batch.style), device=batch.style.device) < self.stage.style_dropout
        return batch.style.masked_fill(hidden, len(self.objective.decoder.styles))

    def _text_loss(self, tokens: SpeechCondition, batch: DecoderBatch) -> Tensor:
        """Keep the embedding where the distill stage put it, for captions that the teacher reads."""
        assert batch.text is not None
        assert batch.text_known is not None
        assert batch.text_bank is not None
        apart = similarity_distillation(tokens.embedding, batch.text, batch.text_bank, self.temperature)
        return sharding.global_mean((apart * batch.text_known).sum(), batch.text_known.sum())

    def _condition(self, group: str, batch: DecoderBatch) -> SpeechCondition:
        """Return tokens of the batch in its order: of recordings, captions and the teacher's views, in their places."""
        bottleneck, total = self.bottlenecks[group], len(batch.language)
        assert isinstance(bottleneck, SpeechBottleneck)
        size = bottleneck.config
        noise, found = sharding.normal(total, size.tokens, size.width, device=batch.language.device), []
        if batch.frames is not None:
            frames, language = batch.frames.to(self.objective.decoder.dtype), batch.language[batch.spoken]
            found.append(bottleneck(frames, batch.frames_mask, language, noise[batch.spoken]))
        if batch.text_pieces is not None:
            found.append(self._written(group, batch, noise))
        if batch.views is not None:
            found.append(self._taught(batch.views, noise[batch.taught]))
        if len(found) == 1 and len(found[0].tokens) == total:
            return found[0]  # type: ignore[no-any-return]
        back = torch.cat([batch.spoken, batch.written, batch.taught]).argsort()
        return SpeechCondition(*(torch.cat(each)[back] for each in zip(*map(_parts, found), strict=True)))

    def _written(self, group: str, batch: DecoderBatch, noise: Tensor) -> SpeechCondition:
        """Return tokens of the captions that the text branch reads."""
        encoder, bottleneck = self.encoders[group], self.bottlenecks[group]
        assert isinstance(encoder, SpeechEncoder)
        count = len(batch.written)  # none, where this rank's caption is only there to be as the other ranks
        noise, language = (x[batch.written] if count else x[:1] for x in (noise, batch.language))
        with torch.no_grad():
            captions = encoder.encode_text(batch.text_pieces, batch.text_lengths, language)
        return bottleneck(captions.frames, captions.mask, language, noise)[:count]  # type: ignore[no-any-return]

    def _taught(self, views: Tensor, tokens: Tensor) -> SpeechCondition:
        """Return the teacher's views [2, B, E], with noise, as the embedding; its decoder reads no tokens [B, K, C]."""
        embedding = between(views, self.stage.teacher_noise)
        return SpeechCondition(torch.zeros_like(tokens), embedding, embedding.new_zeros(len(embedding)))


def between(views: Tensor, most: float) -> Tensor:
    """Draw unit vectors [B, E] from between two views [2, B, E] of each, with noise of a length up to `most`.

    Speech lies there too: it is distilled against both, and never gets quite there. (Such noise on the condition makes
    a decoder robust to the errors of what it is given: Ho et al. 2022, cascaded diffusion.)
    """
    share, level = sharding.uniform(views.shape[1], 2, device=views.device).split(1, -1)
    place = F.normalize(torch.lerp(views[0], views[1], share), dim=-1)
    return F.normalize(place + most * level * sharding.normal_like(place) / place.shape[1] ** 0.5, dim=-1)


def _parts(tokens: SpeechCondition) -> tuple[Tensor, Tensor, Tensor]:
    return tokens.tokens, tokens.embedding, tokens.kl


def build_module(
    recipe: Recipe, encoders: dict[str, SpeechEncoder], bottlenecks: dict[str, SpeechBottleneck],
    styles: Sequence[str] = (),
) -> _Denoising:  # fmt: skip
    """Build the stage's network on the distilled encoders and bottlenecks of every group; the decoder is untrained.

    Args:
        styles: names of those that the training rows have; one alone is no choice.
    """
    any_one = next(iter(bottlenecks.values())).config
    for encoder in encoders.values():  # whose frames are cached
        encoder.acoustics = encoder.acoustics.reader()
    torch.manual_seed(recipe.seed)
    settings, stage = recipe.decoder, recipe.stages.decoder
    space = TokenSpace(any_one.tokens, any_one.width, any_one.embedding_width, tuple(styles) if len(styles) > 1 else ())
    decoder = find_decoder(settings.kind).build(settings, PictureGrid.of(recipe), space)
    objective = decoder.objective(settings, stage.losses)
    return _Denoising(objective, encoders, bottlenecks, stage, recipe.stages.distill.temperature)


def frames_of(stores: Sequence[Ragged | np.ndarray], place: int, share: float, key: list[int]) -> np.ndarray:
    """Return the frames [S, D] of a recording, of the disturbed store for a share of the places; else the clean ones.

    Args:
        stores: the clean frames, and the disturbed ones if there are any.
        key: of the step; the choice follows from it and the place, so it is the same on any number of ranks.
    """
    clean, *disturbed = stores
    chance = np.random.default_rng([*key, int(place)]).random()
    frames: np.ndarray = disturbed[0][place] if disturbed and chance < share else clean[place]
    return frames


def style_numbers(names: Iterable[str | None], styles: Sequence[str]) -> Tensor:
    """Return the place of each name among the styles, int64 [n]; their count of one that is not there."""
    known = {name: number for number, name in enumerate(styles)}
    return torch.tensor([known.get(name or "", len(styles)) for name in names])


class DecoderTask(Task):
    """Diffusion on the codes, or the latents, of each recording's picture."""

    Settings = DecoderStage
    name = "decoder"

    def __init__(self, workspace: Workspace, device: torch.device):
        recipe = workspace.recipe
        self.workspace, self.stage, self.groups = workspace, recipe.stages.decoder, list(recipe.groups)
        self.weights = {k: v for k, v in self.stage.losses.items()}
        self.phase_change_step = int(self.stage.draft_warmup * self.stage.steps)
        self.pictures = pictures_as(workspace, kinds_of_pictures(recipe)[0], device)
        has_draft = find_decoder(recipe.decoder.kind).has_draft(recipe.decoder)
        self.latents = pictures_as(workspace, "latents", device) if has_draft else None
        self.known, self.read = workspace.corpus.has_text, teacher_reads(workspace)
        self.text, self.concepts = None, None
        if _weighs_text(self.stage) or self.stage.teacher_ratio:
            image, self.text = teacher_features(workspace, device)
            self.concepts = centroids_of(workspace.corpus, image, self.text, self.read)
        self.frames = {
            g: [cached_frames(workspace, g, device, each) for each in kinds_of_frames(recipe)] for g in self.groups
        }
        self.rows = {g: group_rows(workspace, g) for g in self.groups}
        self.image_of, _ = workspace.corpus.image_index
        self.language = workspace.corpus.column("language")
        speech = {g: load_speech(workspace, g) for g in self.groups}
        self.encoders = {g: encoder for g, (encoder, _) in speech.items()}
        bottlenecks = {g: bottleneck for g, (_, bottleneck) in speech.items()}
        self.module = build_module(recipe, self.encoders, bottlenecks, workspace.styles)
        self._start_from_views()
        self.styles, self.style = self.module.objective.decoder.styles, workspace.corpus.column("style")
        self.short, self.full = {}, {}
        phrase = workspace.corpus.column("phrase").equal(True)
        for group, rows in self.rows.items():
            short = phrase[rows]
            shorts = self._shorts(bool(short.any()))
            self.short[group] = self._order(group, short, 0, max(1, shorts), self.stage.batch - shorts)
            self.full[group] = self._order(group, ~short, 1, max(1, self.stage.batch - shorts), 0)

    def _start_from_views(self) -> None:
        """Show the decoder some of the teacher's views, if it wants any, the same ones on every rank."""
        assert isinstance(self.module, _Denoising)
        decoder = self.module.objective.decoder
        if not decoder.views_wanted:
            return
        rng, rows = np.random.default_rng(self.workspace.recipe.seed), np.concatenate(list(self.rows.values()))
        some = rng.choice(rows, decoder.views_wanted, replace=len(rows) < decoder.views_wanted)
        shares = torch.from_numpy(rng.random((len(some), 1), np.float32))
        said, named = self._views(some)["views"]
        decoder.start_from(F.normalize(torch.lerp(said, named, shares), dim=-1))

    # ---- before there is one ------------------------------------------------------------------------------------

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse a text loss where the teacher does not read the language, and its views where tokens are read."""
        if _weighs_text(recipe.stages.decoder):
            check_teacher_reads(recipe, "decoder")
        if recipe.stages.decoder.teacher_ratio and getattr(recipe.decoder, "condition", "tokens") != "embedding":
            raise RecipeError(
                "stages.decoder.teacher_ratio conditions on the teacher's view, which has no speech tokens: set "
                "decoder.condition to embedding, or teacher_ratio to 0"
            )

    @classmethod
    def fill_caches(cls, workspace: Workspace, name: str, device: torch.device, team: Team) -> None:
        """Compute the pictures' codes or latents and the recordings' frames."""
        cache_teacher(workspace, device, team)
        for what in kinds_of_pictures(workspace.recipe):
            cache_pictures(workspace, what, device, team)
        for group in workspace.recipe.groups:
            for disturbed in kinds_of_frames(workspace.recipe):
                cache_frames(workspace, group, device, disturbed, team)

    @classmethod
    def build(cls, workspace: Workspace, name: str, device: torch.device, shard: BatchShard) -> DecoderTask:
        return cls(workspace, device)

    @classmethod
    def build_network(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> _Denoising:
        """Build the decoder, and encoders and bottlenecks as distillation leaves them."""
        speech = {g: DistillTask.build_network(recipe, facts, f"distill-{g}") for g in recipe.groups}
        encoders = {group: network.encoder for group, network in speech.items()}
        return build_module(recipe, encoders, {group: network.bottleneck for group, network in speech.items()})

    @classmethod
    def example_batch(cls, recipe: Recipe, facts: CorpusFacts, name: str, size: int, seconds: float) -> DecoderBatch:
        """Return noise for frames, pictures and captions."""
        stage, rng = recipe.stages.decoder, np.random.default_rng(0)
        count = examples.frames_read(recipe, facts, seconds)
        is_taught = taught_mask(size, stage.teacher_ratio)
        is_written = text_mask(size, stage.text_ratio) & bool(recipe.stages.distill.losses.get("ctc")) & ~is_taught
        spoken, length = np.flatnonzero(~is_written & ~is_taught), examples.padded(count, FRAME_MULTIPLE)
        frames = rng.standard_normal((len(spoken), length, recipe.encoder.width)).astype(np.float16)
        known = sum(facts.pieces[code] for code in next(iter(recipe.groups.values())))
        captions = examples.captions(facts, known, size, seconds, rng)
        grid = PictureGrid.of(recipe)
        latents = torch.randn(size, grid.channels, grid.side, grid.side).half()
        draws_codes = kinds_of_pictures(recipe)[0] == "codes"
        batch = DecoderBatch(
            0, torch.zeros(size, dtype=torch.long), torch.from_numpy(spoken),
            torch.from_numpy(np.flatnonzero(is_written)), torch.from_numpy(np.flatnonzero(is_taught)),
            torch.from_numpy(frames) if len(spoken) else None,
            (torch.arange(length) < count).expand(len(spoken), -1) if len(spoken) else None,
            x0=torch.randint(grid.codes, (size, grid.side**2)) if draws_codes else latents,
            latents=latents if find_decoder(recipe.decoder.kind).has_draft(recipe.decoder) else None,
        )  # fmt: skip
        if stage.losses.get("caption"):
            batch = replace(batch, pieces=torch.from_numpy(pad_captions(captions, np.ones(size, bool))))
        width = load_teacher(recipe.teacher).embedding_width
        if is_taught.any():
            views = examples.unit_vectors(2 * int(is_taught.sum()), width, rng).view(2, -1, width)
            batch = replace(batch, views=views)
        if _weighs_text(stage):
            text, bank = (examples.unit_vectors(n, width, rng) for n in (size, min(BANK, facts.recordings)))
            batch = replace(batch, text=text, text_known=torch.ones(size), text_bank=bank)
        if is_written.any():
            read = captions[: int(is_written.sum())]
            pieces, lengths = pieces_to_frames(read, range(len(read)))
            batch = replace(batch, text_pieces=pieces, text_lengths=lengths)
        return batch

    @classmethod
    def mean_seconds(cls, recipe: Recipe, facts: CorpusFacts) -> float:
        return facts.mean_seconds(recipe.stages.decoder.phrase_ratio)

    @classmethod
    def check_shares(cls, recipe: Recipe, shares: int) -> None:
        """Refuse a batch whose shares do not all have a recording and, if there are any, a caption."""
        stage = recipe.stages.decoder
        taught = taught_mask(stage.batch, stage.teacher_ratio)
        spoken = int((~text_mask(stage.batch, stage.text_ratio) & ~taught).sum())
        if spoken < shares and not taught.all():
            raise StaError(
                f"stages.decoder: {spoken} recordings a step are too few for {shares} shares of it; raise "
                "stages.decoder.batch or lower stages.decoder.text_ratio"
            )

    # ---- while it trains ------------------------------------------------------------------------------------------

    def _shorts(self, any_short: bool) -> int:
        """Return how many short phrases a batch has, in its last places."""
        return int(self.stage.phrase_ratio * self.stage.batch) if any_short else 0

    def _order(self, group: str, kept: np.ndarray, seed: int, batch: int, offset: int) -> ShuffledSampler:
        """Return the order of some of a group's recordings; a batch takes `batch` of it from the place `offset` on."""
        places, seed = np.flatnonzero(kept), self.workspace.recipe.seed + seed
        return build_sampler(self.workspace, places, self.rows[group][places], seed, batch, offset=offset)

    def _places_of(self, step: int) -> tuple[int, np.ndarray]:
        """Return the number of the step's group, and which of the group's rows are in the whole batch."""
        number, turn, size = step % len(self.groups), step // len(self.groups), self.stage.batch
        short, full = self.short[self.groups[number]], self.full[self.groups[number]]
        shorts = self._shorts(len(short.items) > 0)
        return number, np.concatenate(
            [full.take(turn * (size - shorts), size - shorts), short.take(turn * shorts, shorts)]
        )

    def _written_places(self, group: str, places: np.ndarray) -> np.ndarray:
        """Return which places of the whole batch a caption takes: bool [batch], never a row that has none."""
        reads = self.encoders[group].config.ctc_head
        return text_mask(len(places), self.stage.text_ratio) & self.known[self.rows[group][places]] & reads

    def items(self, step: int) -> list[str]:
        """Return the ids of the step's rows."""
        number, places = self._places_of(step)
        return self.workspace.corpus.names(self.rows[self.groups[number]][places])

    def batch(self, step: int, shard: BatchShard) -> DecoderBatch:
        """Return this shard's frames, captions and pictures of the step."""
        self.check_shares(self.workspace.recipe, shard.count)
        number, everyone = self._places_of(step)
        group = self.groups[number]
        taught = taught_mask(len(everyone), self.stage.teacher_ratio) & self.read[self.rows[group][everyone]]
        written = self._written_places(group, everyone) & ~taught
        rows, numbers = self.rows[group], np.arange(len(everyone))
        places, is_written, is_taught, numbers = map(shard.of, (everyone, written, taught, numbers))
        shown, is_spoken = rows[places], ~is_written & ~is_taught
        language = self.encoders[group].language_indices([self.language[row] for row in shown])
        batch = DecoderBatch(
            number, language, torch.from_numpy(np.flatnonzero(is_spoken)),
            torch.from_numpy(np.flatnonzero(is_written)), torch.from_numpy(np.flatnonzero(is_taught)),
            **self._frames(group, places[is_spoken], step), **self._views(shown[is_taught]),
            **self._pictures(shown, step), **self._texts(group, shown, step),
        )  # fmt: skip
        if not written.any():
            return batch
        # also where this rank reads none: under ZeRO-3 all ranks have to take the same way through the network
        captions = caption_pieces(self.workspace, self.encoders[group], shown[is_written]) or [[]]
        seeds = [step * len(everyone) + int(number) for number in numbers[is_written]] or None
        pieces, counts = pieces_to_frames(captions, seeds)
        return replace(batch, text_pieces=pieces, text_lengths=counts)

    def _frames(self, group: str, places: np.ndarray, step: int) -> dict[str, Tensor]:
        """Return the frames of recordings, if there are any."""
        if not len(places):
            return {}
        stores, key, share = self.frames[group], [self.workspace.recipe.seed, step], self.stage.augment_ratio
        frames, lengths = pad([frames_of(stores, place, share, key) for place in places], FRAME_MULTIPLE)
        mask = torch.arange(frames.shape[1]) < torch.from_numpy(lengths)[:, None]
        return {"frames": torch.from_numpy(frames), "frames_mask": mask}

    def _views(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return what the teacher makes of the captions and labels of some rows, if there are any."""
        if not len(rows):
            return {}
        assert self.text is not None
        assert self.concepts is not None
        text, label = self.text[rows], self.concepts.of_row[rows]
        named = np.where((label >= 0)[:, None], self.concepts.centroids[np.maximum(label, 0)], text)
        return {"views": torch.from_numpy(np.stack([text, named]).astype(np.float32))}

    def _pictures(self, rows: np.ndarray, step: int) -> dict[str, Tensor]:
        """Return what the decoder and its draft are to draw."""
        found, pictures = dict[str, Tensor](), self.image_of[rows]
        if self.styles:
            found["style"] = style_numbers((self.style[row] for row in rows), self.styles)
        if step >= self.phase_change_step:
            found["x0"] = torch.from_numpy(self.pictures[pictures])
        if self.latents is not None:
            found["latents"] = torch.from_numpy(self.latents[pictures])
        return found

    def _texts(self, group: str, rows: np.ndarray, step: int) -> dict[str, Tensor]:
        """Return what the losses want to know of the captions."""
        found = dict[str, Tensor]()
        if self.text is not None and _weighs_text(self.stage):
            rng, every = np.random.default_rng([self.workspace.recipe.seed, step]), self.rows[group]
            bank = rng.choice(every, min(BANK, len(every)), replace=False)
            found["text"] = torch.from_numpy(self.text[rows])
            found["text_known"] = torch.from_numpy(self.read[rows].astype(np.float32))
            found["text_bank"] = torch.from_numpy(self.text[bank[self.read[bank]]])
        if self.stage.losses.get("caption"):
            captions = caption_pieces(self.workspace, self.encoders[group], rows)
            found["pieces"] = torch.from_numpy(pad_captions(captions, self.known[rows]))
        return found

    def compile(self, module: nn.Module, device: torch.device) -> None:
        """Compile the decoder's layers, where the stage asks for it."""
        assert isinstance(module, _Denoising)
        if compiles(self.stage.compile, device):
            compile_layers(module.objective.decoder)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the decoder, and the bottlenecks of every group."""
        assert isinstance(module, _Denoising)
        module.objective.decoder.save_pretrained(folder / "decoder")
        for group, bottleneck in module.bottlenecks.items():
            assert isinstance(bottleneck, SpeechBottleneck)
            bottleneck.save_pretrained(folder / f"bottleneck-{group}")


def _weighs_text(stage: DecoderStage) -> bool:
    return bool(stage.losses.get("text")) and stage.tune_bottleneck
