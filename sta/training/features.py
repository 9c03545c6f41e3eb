"""What frozen networks make of the corpus, computed once and kept under the network's fingerprint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sta.cards import TeacherCard, load_teacher
from sta.data.cache import build_folder, key_of
from sta.data.store import Ragged, new_array
from sta.models.augment import augment_mel, disturb_mel
from sta.models.bottleneck import SpeechBottleneck
from sta.models.encoder import LENGTH_MULTIPLE, SpeechEncoder
from sta.models.loading import load_network
from sta.models.shared import Share
from sta.models.teacher import Teacher, load_own, load_published
from sta.models.vq import VQTokenizer, to_unit_range
from sta.recipe import GardenCorpus
from sta.training.progress import Bar
from sta.training.runtime import has_fast_bf16, step_seed
from sta.training.team import Team
from sta.training.workspace import Workspace, fingerprint

BATCH, PART = 256, 2048  # items that a network is given at once; that are written at once
SHORT = 0.55  # a recording below this share of the longest tenth's length counts as a short phrase


def fast(device: torch.device) -> torch.autocast:
    """bfloat16 where the machine has it in hardware: for frozen networks whose output is cached."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device.type))


def load_teacher_of(workspace: Workspace) -> Teacher:
    """The recipe's teacher: the one its stage trained, or a published one."""
    card = load_teacher(workspace.recipe.teacher)
    return load_own(workspace.final("teacher")) if card.trained_here else load_published(card)


def teacher_features(workspace: Workspace, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's unit vectors: of pictures [pictures, E] and of captions [rows, E], float32, memory-mapped."""
    folder = cache_teacher(workspace, device)
    return np.load(folder / "image.npy", mmap_mode="r"), np.load(folder / "text.npy", mmap_mode="r")


def cache_teacher(workspace: Workspace, device: torch.device, team: Team | None = None) -> Path:
    """Compute what `teacher_features` gives, each rank of the team its share."""
    card: TeacherCard = load_teacher(workspace.recipe.teacher)
    name = fingerprint(workspace.final("teacher")) if card.trained_here else key_of(card.model_dump(mode="json"))
    teacher = cache(lambda: load_teacher_of(workspace).to(device))
    pixels, texts = workspace.pixels, workspace.texts

    def see(part: range) -> Tensor:
        with fast(device):
            return teacher().encode_images(torch.from_numpy(np.array(pixels[part.start : part.stop])).to(device))

    def read(part: range) -> Tensor:
        with fast(device):
            return teacher().encode_texts([texts[row] for row in part])

    arrays = {"image": (len(pixels), see), "text": (len(texts), read)}
    return _cache_arrays(workspace.cache / f"teacher-{name}", arrays, "teacher's view", team)


def picture_codes(workspace: Workspace, device: torch.device) -> np.ndarray:
    """The tokenizer's codes of every picture: int64 [pictures, N], memory-mapped."""
    return np.load(cache_pictures(workspace, "codes", device) / "codes.npy", mmap_mode="r")


def picture_latents(workspace: Workspace, device: torch.device) -> np.ndarray:
    """The tokenizer's latents of every picture before they are quantised: float16 [pictures, d, h, w], mapped."""
    return np.load(cache_pictures(workspace, "latents", device) / "latents.npy", mmap_mode="r")


def cache_pictures(
    workspace: Workspace, what: Literal["codes", "latents"], device: torch.device, team: Team | None = None
) -> Path:
    """Compute what the tokenizer makes of every picture, each rank of the team its share."""
    final, pixels = workspace.final("tokenizer"), workspace.pixels
    tokenizer = cache(lambda: load_network(VQTokenizer, final / "tokenizer").to(device))

    @torch.no_grad()
    def make(part: range) -> Tensor:
        pictures = to_unit_range(torch.from_numpy(np.array(pixels[part.start : part.stop])).to(device))
        return tokenizer().encode(pictures) if what == "codes" else tokenizer().latents(pictures).half()

    folder = workspace.cache / f"{what}-{fingerprint(final)}"
    return _cache_arrays(folder, {what: (len(pixels), make)}, f"{what} of the pictures", team)


def _cache_arrays(
    folder: Path, arrays: Mapping[str, tuple[int, Callable[[range], Tensor]]], title: str, team: Team | None
) -> Path:
    """Make `NAME.npy` for each (number of items, what to make of a batch of them), the same on any number of ranks.

    Every rank writes its parts, those that an interrupted run left are kept, and the first rank lays all out in order.
    """
    team = team or Team()
    parts = [(name, part) for name, (total, _) in arrays.items() for part in _ranges(0, total, PART)]

    def fill(partial: Path) -> None:
        mine = parts[team.share.rank :: team.share.world]
        with Bar(title, sum(len(part) for _, part in mine), "items", shown=team.share.rank == 0) as bar:
            for name, part in mine:
                path = partial / f"{name}-{part.start}.npy"
                if not path.exists():
                    make = arrays[name][1]
                    made = [make(batch).cpu().numpy() for batch in _ranges(part.start, part.stop, BATCH)]
                    np.save(path.with_suffix(".writing.npy"), np.concatenate(made))
                    path.with_suffix(".writing.npy").replace(path)
                bar.advance(len(part))

    def join(partial: Path) -> None:
        laid_out: dict[str, np.ndarray] = {}
        for name, part in parts:
            path = partial / f"{name}-{part.start}.npy"
            made = np.load(path, mmap_mode="r")
            if name not in laid_out:
                shape = (arrays[name][0], *made.shape[1:])
                laid_out[name] = new_array(partial / f"{name}.npy", made.dtype, shape)
            laid_out[name][part.start : part.stop] = made
        for name, part in parts:
            (partial / f"{name}-{part.start}.npy").unlink()

    return team.build(folder, fill, join)


def _ranges(start: int, stop: int, size: int) -> list[range]:
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def load_speech(workspace: Workspace, group: str, stage: str | None = None) -> tuple[SpeechEncoder, SpeechBottleneck]:
    """Encoder and bottleneck of a group as distilled, or the bottleneck as `stage` tuned it; in evaluation mode."""
    distilled = workspace.final(f"distill-{group}")
    tuned = workspace.final(stage) / f"bottleneck-{group}" if stage else distilled / "bottleneck"
    return load_network(SpeechEncoder, distilled / "encoder"), load_network(SpeechBottleneck, tuned)


def batches_by_length(features: Ragged, rows: np.ndarray, size: int = 64) -> list[np.ndarray]:
    """Rows in batches of like length, longest first, so that little is padding."""
    order = rows[np.argsort(-features.lengths[rows], kind="stable")]
    return [order[i : i + size] for i in range(0, len(order), size)]


@torch.no_grad()
def encode_rows(
    encoder: SpeechEncoder, workspace: Workspace, rows: np.ndarray, device: torch.device, disturbed: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames [B, S+1, D], their mask, CTC logits and CTC lengths of some rows, clean or as distillation hears them."""
    values, sizes = workspace.features.padded(list(rows), LENGTH_MULTIPLE)
    codes = workspace.corpus.column("language")
    language = torch.tensor([encoder.language_index(codes[i]) for i in rows], device=device)
    inputs, lengths = encoder.inputs(torch.from_numpy(values).to(device)), torch.from_numpy(sizes).to(device)
    if disturbed:
        stage = workspace.recipe.stages.distill
        inputs, lengths = augment_mel(inputs, lengths, stage.augment, stage.accent)
        inputs = disturb_mel(inputs, lengths, stage.noise)
    out = encoder(inputs, lengths, language)
    assert out.ctc_logits is not None
    return out.frames, out.mask, out.ctc_logits, out.ctc_lengths


def cached_frames(workspace: Workspace, group: str, device: torch.device, disturbed: bool = False) -> Ragged:
    """The frozen encoder's frames of the group's training rows, float16; the number of a row is its place in `rows`.

    Args:
        disturbed: hear each row once with the augmentation and the noise of the distill stage (log-mel only).
    """
    return Ragged(cache_frames(workspace, group, device, disturbed))


def cache_frames(
    workspace: Workspace, group: str, device: torch.device, disturbed: bool = False, team: Team | None = None
) -> Path:
    """Compute what `cached_frames` gives, each rank of the team its share; the same on any number of ranks."""
    team = team or Team()
    encoder_name = fingerprint(workspace.final(f"distill-{group}") / "encoder")
    folder = workspace.cache / f"frames-{encoder_name}"
    if disturbed:
        stage = workspace.recipe.stages.distill
        name = key_of([encoder_name, stage.augment, stage.accent, stage.noise, workspace.recipe.seed])
        folder = workspace.cache / f"disturbed-frames-{name}"
    parts = [f"part-{rank}-of-{team.share.world}" for rank in range(team.share.world)]

    def fill(partial: Path) -> None:
        mine = partial / parts[team.share.rank]
        build_folder(mine, lambda part: _fill_frames(workspace, group, part, device, disturbed, team.share))

    def join(partial: Path) -> None:
        _join_frames([partial / part for part in parts], partial)
        for part in partial.glob("part-*"):  # those of another number of ranks too
            shutil.rmtree(part)

    return team.build(folder, fill, join)


def _fill_frames(
    workspace: Workspace, group: str, folder: Path, device: torch.device, disturbed: bool, share: Share
) -> None:
    """The frames of every batch that is this rank's, and which rows they are of."""
    encoder = load_speech(workspace, group)[0].to(device)
    batches = list(enumerate(batches_by_length(workspace.features, group_rows(workspace, group))))
    batches = batches[share.rank :: share.world]
    kept: list[np.ndarray] = []
    what = f"{'disturbed ' * disturbed}frames of {group}"
    total = sum(len(batch) for _, batch in batches)
    with Bar(what, total, "recordings", shown=share.rank == 0) as bar, torch.random.fork_rng():
        for number, batch in batches:
            torch.manual_seed(step_seed(workspace.recipe.seed, "frames", number, 0))
            with fast(device):
                frames, mask, _, _ = encode_rows(encoder, workspace, batch, device, disturbed)
            kept += [frame[valid].half().cpu().numpy() for frame, valid in zip(frames, mask, strict=True)]
            bar.advance(len(batch))
    rows = np.concatenate([batch for _, batch in batches]) if batches else np.zeros(0, np.int64)
    np.save(folder / "rows.npy", rows)
    if kept:
        Ragged.write(folder, kept, [len(frames) for frames in kept])


def _join_frames(parts: Sequence[Path], folder: Path) -> None:
    """Every rank's frames as one store, in the order of the rows."""
    rows = [np.load(part / "rows.npy") for part in parts]
    stores = [Ragged(part) for part, of_part in zip(parts, rows, strict=True) if len(of_part)]
    places = [(store, place) for store in stores for place in range(len(store))]
    places = [places[i] for i in np.argsort(np.concatenate(rows))]
    Ragged.write(folder, (store[i] for store, i in places), [int(store.lengths[i]) for store, i in places])


def short_phrases(workspace: Workspace, lengths: np.ndarray) -> np.ndarray:
    """Which recordings of these lengths are short phrases: only Garden has any, elsewhere a short one is a caption."""
    if not isinstance(workspace.recipe.corpus, GardenCorpus):
        return np.zeros(len(lengths), bool)
    return lengths < SHORT * np.quantile(lengths, 0.9)


def group_rows(workspace: Workspace, group: str) -> np.ndarray:
    """Training rows of the languages that an encoder serves, in order."""
    rows = [workspace.corpus.select("train", code) for code in workspace.recipe.groups[group]]
    return np.sort(np.concatenate(rows))
