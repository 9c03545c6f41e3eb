"""What frozen networks make of the corpus, computed once and kept under the network's fingerprint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sta.config.cards import TeacherCard, load_teacher
from sta.config.recipe import Recipe
from sta.data.cache import build_folder, key_of
from sta.data.store import Ragged, new_array
from sta.distributed.team import Team
from sta.errors import RecipeError
from sta.models.augment import augment
from sta.models.bottleneck import SpeechBottleneck
from sta.models.decoders.base import Target
from sta.models.encoder import LENGTH_MULTIPLE, EncoderOutput, SpeechEncoder
from sta.models.loading import load_network
from sta.models.teachers.open_clip import Teacher, load_own, load_published, version_of
from sta.models.vq import VQTokenizer, to_unit_range
from sta.progress import Bar
from sta.training.runtime import has_fast_bf16, step_seed
from sta.training.workspace import Workspace, fingerprint

BATCH, BATCHES_PER_PART = 256, 8  # items that a network is given at once; such batches that are written at once


def bf16_autocast(device: torch.device) -> torch.autocast:
    """Use bfloat16 where the machine has it in hardware: for frozen networks whose output is cached."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device.type))


def load_teacher_of(workspace: Workspace) -> Teacher:
    """Return the recipe's teacher: the one its stage trained, or a published one."""
    card = load_teacher(workspace.recipe.teacher)
    return load_own(workspace.final("teacher")) if card.trained_here else load_published(card)


def teacher_features(workspace: Workspace, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Return the teacher's unit vectors of pictures [pictures, E] and captions [rows, E], float32, memory-mapped."""
    folder = cache_teacher(workspace, device)
    return np.load(folder / "image.npy", mmap_mode="r"), np.load(folder / "text.npy", mmap_mode="r")


def cache_teacher(workspace: Workspace, device: torch.device, team: Team | None = None) -> Path:
    """Compute what `teacher_features` gives, each rank of the team its share."""
    card: TeacherCard = load_teacher(workspace.recipe.teacher)
    name = fingerprint(workspace.final("teacher")) if card.trained_here else _key_of_published(card)
    teacher = cache(lambda: load_teacher_of(workspace).to(device))
    pixels, texts = workspace.pixels, workspace.texts

    def see(part: range) -> Tensor:
        with bf16_autocast(device):
            return teacher().encode_images(torch.from_numpy(np.array(pixels[part.start : part.stop])).to(device))

    def read(part: range) -> Tensor:
        with bf16_autocast(device):
            return teacher().encode_texts([texts[row] for row in part])

    arrays = {"image": (len(pixels), see), "text": (len(texts), read)}
    return _cache_arrays(workspace.cache / f"teacher-{name}", arrays, "teacher's view", team)


def _key_of_published(card: TeacherCard) -> str:
    said, files = card.model_dump(mode="json"), version_of(card)
    return key_of([said, files] if files else said)


def pictures_as(workspace: Workspace, target: Target, device: torch.device) -> np.ndarray:
    """Return every picture as the tokenizer gives it, memory-mapped.

    Codes are int64 [pictures, N]; latents, before they are quantised, float16 [pictures, d, h, w].
    """
    return np.load(cache_pictures(workspace, target, device) / f"{target}.npy", mmap_mode="r")


def cache_pictures(workspace: Workspace, target: Target, device: torch.device, team: Team | None = None) -> Path:
    """Compute what the tokenizer makes of every picture, each rank of the team its share."""
    final, pixels = workspace.final("tokenizer"), workspace.pixels
    tokenizer = cache(lambda: load_network(VQTokenizer, final / "tokenizer").to(device))

    @torch.no_grad()
    def make(part: range) -> Tensor:
        pictures = to_unit_range(torch.from_numpy(np.array(pixels[part.start : part.stop])).to(device))
        made = tokenizer().encode_as(pictures, target)
        return made.half() if made.is_floating_point() else made

    folder = workspace.cache / f"{target}-{fingerprint(final)}"
    return _cache_arrays(folder, {target: (len(pixels), make)}, f"{target} of the pictures", team)


@dataclass(frozen=True)
class _Part:
    """Some batches of items that are written at once.

    Attributes:
        name: of its folder.
        first: number of its first batch.
        make: what a network makes of a batch and its number: tensors by name, of each batch laid end to end.
    """

    name: str
    first: int
    batches: Sequence[Any]
    make: Callable[[Any, int], Mapping[str, Tensor]]

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def write(self, target: Path, bar: Bar) -> None:
        """Write what is made, as `NAME.npy`, to the folder `target`, whole or not at all, unless it is there."""

        def fill(folder: Path) -> None:
            made: dict[str, list[np.ndarray]] = {}
            for number, batch in enumerate(self.batches, self.first):
                for name, tensor in self.make(batch, number).items():
                    made.setdefault(name, []).append(tensor.cpu().numpy())
                bar.advance(len(batch))
            for name, arrays in made.items():
                np.save(folder / f"{name}.npy", np.concatenate(arrays))

        if target.exists():
            bar.advance(len(self))
        build_folder(target, fill)


def _in_parts(name: str, batches: Sequence[Any], make: Callable[[Any, int], Mapping[str, Tensor]]) -> list[_Part]:
    firsts = range(0, len(batches), BATCHES_PER_PART)
    return [_Part(f"{name}-{first}", first, batches[first : first + BATCHES_PER_PART], make) for first in firsts]


def _build_parts(
    folder: Path, parts: Callable[[], Sequence[_Part]], join: Callable[[Path], set[str]], title: str, unit: str,
    team: Team,
) -> Path:  # fmt: skip
    """Make a folder of what networks make of many items, the same on any number of ranks.

    Every rank writes its parts, those that an interrupted run left are kept, and the first rank joins all.

    Args:
        parts: asked for only where the folder is not there.
        join: lays the parts out as files of the folder, and returns the files' names.
    """

    def fill(partial: Path) -> None:
        mine = parts()[team.shard.rank :: team.shard.world]
        with Bar(title, sum(len(part) for part in mine), unit, shown=team.shard.rank == 0) as bar:
            for part in mine:
                part.write(partial / part.name, bar)

    def join_and_clear(partial: Path) -> None:
        files = join(partial)
        for path in partial.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in files:  # of an interrupted run of another version
                path.unlink()

    return team.build(folder, fill, join_and_clear)


def _cache_arrays(
    folder: Path, arrays: Mapping[str, tuple[int, Callable[[range], Tensor]]], title: str, team: Team | None
) -> Path:
    """Make `NAME.npy` for each (number of items, what to make of a batch of them)."""
    parts = {name: _in_parts(name, _ranges(total, BATCH), _as_values(make)) for name, (total, make) in arrays.items()}

    def join(partial: Path) -> set[str]:
        for name, of_array in parts.items():
            laid_out, start = None, 0
            for part in of_array:
                made = np.load(partial / part.name / "values.npy", mmap_mode="r")
                if laid_out is None:
                    laid_out = new_array(partial / f"{name}.npy", made.dtype, (arrays[name][0], *made.shape[1:]))
                laid_out[start : start + len(made)] = made
                start += len(made)
        return {f"{name}.npy" for name in arrays}

    every = [part for of_array in parts.values() for part in of_array]
    return _build_parts(folder, lambda: every, join, title, "items", team or Team())


def _as_values(make: Callable[[range], Tensor]) -> Callable[[range, int], dict[str, Tensor]]:
    return lambda batch, number: {"values": make(batch)}


def _ranges(total: int, size: int) -> list[range]:
    return [range(first, min(first + size, total)) for first in range(0, total, size)]


def load_speech(workspace: Workspace, group: str, stage: str | None = None) -> tuple[SpeechEncoder, SpeechBottleneck]:
    """Encoder and bottleneck of a group as distilled, or the bottleneck as `stage` tuned it; in evaluation mode."""
    distilled = workspace.final(f"distill-{group}")
    tuned = workspace.final(stage) / f"bottleneck-{group}" if stage else distilled / "bottleneck"
    return load_network(SpeechEncoder, distilled / "encoder"), load_network(SpeechBottleneck, tuned)


def batches_by_length(features: Ragged, rows: np.ndarray, size: int = 64) -> list[np.ndarray]:
    """Return rows in batches of like length, longest first, so that little is padding."""
    order = rows[np.argsort(-features.lengths[rows], kind="stable")]
    return [order[i : i + size] for i in range(0, len(order), size)]


def encode_rows(
    encoder: SpeechEncoder, workspace: Workspace, rows: np.ndarray, disturbed: bool = False
) -> EncoderOutput:
    """Encode some rows, clean or as distillation hears them."""
    features, lengths = workspace.features.padded(list(rows), LENGTH_MULTIPLE)
    languages, stage = workspace.corpus.column("language"), workspace.recipe.stages.distill
    disturb = partial(augment, stage=stage, kind=encoder.acoustics.feature_kind) if disturbed else None
    return encoder.encode(features, lengths, [languages[row] for row in rows], disturb)


def reads_language(card: TeacherCard, code: str) -> bool:
    """Return whether a teacher reads captions in a language; one that is trained here learns to."""
    return card.trained_here or code in card.text_languages or code.partition("-")[0] in card.text_languages


def teacher_reads(workspace: Workspace) -> np.ndarray:
    """Return which rows have a caption in a language that the teacher reads: bool [rows]."""
    corpus, card = workspace.corpus, workspace.teacher_card
    codes = [code for code in workspace.recipe.languages if reads_language(card, code)]
    return corpus.has_text & np.any([np.zeros(len(corpus), bool), *map(corpus.column("language").equal, codes)], 0)


def check_teacher_reads(recipe: Recipe, section: str) -> None:
    """Refuse a text loss of a stage where the teacher reads none of the languages, so that no row would have it.

    Raises:
        RecipeError: names a teacher that does, and the loss.
    """
    card = load_teacher(recipe.teacher)
    if not any(reads_language(card, code) for code in recipe.languages):
        raise RecipeError(
            f"teacher '{card.name}' reads no captions in {', '.join(recipe.languages)} (text_languages of its card: "
            f"{', '.join(card.text_languages)}); name one that does, such as teacher=xlm-roberta-base-vit-b-32, or set "
            f"stages.{section}.losses.text to 0 and keep its view of the pictures"
        )


def caption_pieces(workspace: Workspace, encoder: SpeechEncoder, rows: np.ndarray) -> list[list[int]]:
    """Return the captions of some rows as pieces of the encoder's CTC head."""
    codes = workspace.corpus.column("language")
    return [
        encoder.offset_pieces(workspace.pieces[codes[row]].encode(workspace.texts[row]), codes[row]) for row in rows
    ]


def cached_frames(workspace: Workspace, group: str, device: torch.device, disturbed: bool = False) -> Ragged:
    """Return the frozen encoder's float16 frames of the group's training rows, numbered by their place in `rows`.

    Args:
        disturbed: hear each row once with the augmentation and the noise of the distill stage (log-mel only).
    """
    return Ragged(cache_frames(workspace, group, device, disturbed))


def cache_frames(
    workspace: Workspace, group: str, device: torch.device, disturbed: bool = False, team: Team | None = None
) -> Path:
    """Compute what `cached_frames` gives, each rank of the team its share."""
    encoder_name = fingerprint(workspace.final(f"distill-{group}") / "encoder")
    folder = workspace.cache / f"frames-{encoder_name}"
    if disturbed:
        stage = workspace.recipe.stages.distill
        name = key_of([encoder_name, stage.augment, stage.accent, stage.noise, stage.gain, workspace.recipe.seed])
        folder = workspace.cache / f"disturbed-frames-{name}"
    encoder = cache(lambda: load_speech(workspace, group)[0].to(device))
    batches = cache(lambda: batches_by_length(workspace.features, group_rows(workspace, group)))

    def hear(rows: np.ndarray, number: int) -> dict[str, Tensor]:
        torch.manual_seed(step_seed(workspace.recipe.seed, "frames", number, 0))
        with bf16_autocast(device):
            out = encode_rows(encoder(), workspace, rows, disturbed)
        return {"values": out.frames[out.mask].half(), "lengths": out.mask.sum(1)}

    parts = cache(lambda: _in_parts("frames", batches(), hear))
    title = f"{'disturbed ' * disturbed}frames of {group}"
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return _build_parts(
            folder, parts, lambda partial: _join_frames(partial, parts()), title, "recordings", team or Team()
        )


def _join_frames(folder: Path, parts: Sequence[_Part]) -> set[str]:
    """Return the frames of all parts as one store, in the order of the rows."""
    lengths = np.concatenate([np.load(folder / part.name / "lengths.npy") for part in parts])
    order = np.argsort(np.concatenate([batch for part in parts for batch in part.batches]))
    place_of, heard = np.argsort(order), 0
    values = None
    for part in parts:
        made, start = np.load(folder / part.name / "values.npy", mmap_mode="r"), 0
        if values is None:
            values, offsets = Ragged.new(folder, lengths[order].tolist(), made)
        for place, length in zip(place_of[heard : heard + len(part)], lengths[heard : heard + len(part)], strict=True):
            values[offsets[place] : offsets[place + 1]] = made[start : start + length]
            start += length
        heard += len(part)
    return {"values.npy", "offsets.npy"}


def group_rows(workspace: Workspace, group: str) -> np.ndarray:
    """Return the training rows with a recording in the languages that an encoder serves, in order."""
    rows = np.concatenate([workspace.corpus.select("train", code) for code in workspace.recipe.groups[group]])
    return np.sort(rows[workspace.corpus.has_audio[rows]])
