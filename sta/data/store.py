"""Arrays on disk that training reads at random: ragged features, pictures, teacher features, codes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Return a memory-mapped array to fill, its room taken at once: a full disk kills a process that fills a map."""
    array: np.memmap = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


class Ragged:
    """Sequences of unequal length, kept end to end in one memory-mapped file.

    `store[i]` is [S_i, F]; `store.lengths` is [n].
    """

    def __init__(self, folder: Path):
        self.values = np.load(folder / "values.npy", mmap_mode="r")
        self.offsets = np.load(folder / "offsets.npy")
        self.lengths = np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: int) -> np.ndarray:
        return self.values[self.offsets[item] : self.offsets[item + 1]]

    @staticmethod
    def new(folder: Path, lengths: Sequence[int], like: np.ndarray) -> tuple[np.memmap, np.ndarray]:
        """Return values [sum of lengths, F] of a store to fill, of the type and width of `like`, and offsets [n+1]."""
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        np.save(folder / "offsets.npy", offsets)
        return new_array(folder / "values.npy", like.dtype, (int(offsets[-1]), *like.shape[1:])), offsets

    @staticmethod
    def write(folder: Path, pieces: Iterable[np.ndarray], lengths: Sequence[int]) -> None:
        """Write the sequences in order; `lengths` must be theirs."""
        values, row = None, 0
        for piece in pieces:
            if values is None:
                values, offsets = Ragged.new(folder, lengths, piece)
            if len(piece) != lengths[row]:
                raise ValueError(f"sequence {row} has length {len(piece)}, announced was {lengths[row]}")
            values[offsets[row] : offsets[row + 1]] = piece
            row += 1
        if values is None or row != len(lengths):
            raise ValueError(f"{row} sequences came, {len(lengths)} were announced")
        values.flush()

    def padded(self, items: Sequence[int], multiple: int, longest: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return ([B, S, F] padded with zeros to a multiple of `multiple`, lengths [B]); S is at least `longest`."""
        return pad([self[int(i)] for i in items], multiple, longest)


def pad(sequences: Sequence[np.ndarray], multiple: int, longest: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Join sequences [S_i, F] to one batch: ([B, S, F] padded with zeros to a multiple of `multiple`, lengths [B])."""
    lengths = np.array([len(s) for s in sequences])
    longest = -(-max(longest, int(lengths.max())) // multiple) * multiple
    batch = np.zeros((len(sequences), longest, *sequences[0].shape[1:]), sequences[0].dtype)
    for row, sequence in enumerate(sequences):
        batch[row, : len(sequence)] = sequence
    return batch, lengths
