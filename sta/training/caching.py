"""What a network makes of many items, computed by all ranks in parts and kept on disk; an interrupted run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sta.data.cache import build_folder
from sta.data.store import Ragged, new_array
from sta.distributed.team import Team
from sta.progress import Bar

BATCH, BATCHES_PER_PART = 256, 8  # items that a network is given at once; such batches that are written at once


@dataclass(frozen=True)
class Part:
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


def in_parts(name: str, batches: Sequence[Any], make: Callable[[Any, int], Mapping[str, Tensor]]) -> list[Part]:
    """Cut batches into parts, each of which a rank makes at once."""
    firsts = range(0, len(batches), BATCHES_PER_PART)
    return [Part(f"{name}-{first}", first, batches[first : first + BATCHES_PER_PART], make) for first in firsts]


def build_parts(
    folder: Path, parts: Callable[[], Sequence[Part]], join: Callable[[Path], set[str]], title: str, unit: str,
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


def cache_arrays(
    folder: Path, arrays: Mapping[str, tuple[int, Callable[[range], Tensor]]], title: str, team: Team | None
) -> Path:
    """Make `NAME.npy` for each (number of items, what to make of a batch of them)."""
    parts = {name: in_parts(name, _ranges(total, BATCH), _as_values(make)) for name, (total, make) in arrays.items()}

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
    return build_parts(folder, lambda: every, join, title, "items", team or Team())


def cache_ragged(
    folder: Path, batches: Callable[[], Sequence[np.ndarray]], make: Callable[[np.ndarray, int], Mapping[str, Tensor]],
    title: str, team: Team | None,
) -> Path:  # fmt: skip
    """Make a `Ragged` of items that are made in batches.

    Args:
        batches: of numbers of items, asked for only where the folder is not there; the store has their order.
        make: of a batch and its number `values` [sum of lengths, F] and `lengths`.
    """
    parts = cache(lambda: in_parts("frames", batches(), make))
    return build_parts(
        folder, parts, lambda partial: _join_ragged(partial, parts()), title, "recordings", team or Team()
    )


def _join_ragged(folder: Path, parts: Sequence[Part]) -> set[str]:
    """Return the items of all parts as one store, in the order of their numbers."""
    lengths = np.concatenate([np.load(folder / part.name / "lengths.npy") for part in parts])
    order = np.argsort(np.concatenate([batch for part in parts for batch in part.batches]))
    place_of, done = np.argsort(order), 0
    values = None
    for part in parts:
        made, start = np.load(folder / part.name / "values.npy", mmap_mode="r"), 0
        if values is None:
            values, offsets = Ragged.new(folder, lengths[order].tolist(), made)
        for place, length in zip(place_of[done : done + len(part)], lengths[done : done + len(part)], strict=True):
            values[offsets[place] : offsets[place + 1]] = made[start : start + length]
            start += length
        done += len(part)
    return {"values.npy", "offsets.npy"}


def _as_values(make: Callable[[range], Tensor]) -> Callable[[range, int], dict[str, Tensor]]:
    return lambda batch, number: {"values": make(batch)}


def _ranges(total: int, size: int) -> list[range]:
    return [range(first, min(first + size, total)) for first in range(0, total, size)]
