"""Ragged sequences on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from sta.data.store import Ragged, new_array

LENGTHS = [3, 0, 7, 1]


@pytest.fixture
def pieces(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(1, 255, (n, 2), dtype=np.uint8) for n in LENGTHS]


@pytest.fixture
def store(tmp_path: Path, pieces: list[np.ndarray]) -> Ragged:
    Ragged.write(tmp_path, iter(pieces), LENGTHS)
    return Ragged(tmp_path)


def test_what_was_written_comes_back(store: Ragged, pieces: list[np.ndarray]) -> None:
    assert len(store) == 4
    assert store.lengths.tolist() == LENGTHS
    assert isinstance(store.values, np.memmap)
    for got, piece in zip([store[i] for i in range(4)], pieces, strict=True):
        np.testing.assert_array_equal(got, piece)
        assert got.dtype == np.uint8


@pytest.mark.parametrize(("multiple", "longest"), [(1, 7), (4, 8), (7, 7), (64, 64)])
def test_padding(store: Ragged, pieces: list[np.ndarray], multiple: int, longest: int) -> None:
    batch, lengths = store.padded([2, 0, 1], multiple)
    assert batch.shape == (3, longest, 2)
    assert batch.dtype == np.uint8
    assert lengths.tolist() == [7, 3, 0]
    np.testing.assert_array_equal(batch[0, :7], pieces[2])
    np.testing.assert_array_equal(batch[1, :3], pieces[0])
    assert not batch[0, 7:].any()
    assert not batch[1, 3:].any()
    assert not batch[2].any()


@pytest.mark.parametrize("lengths", [[3, 0, 7, 2], [3, 0, 7], [3, 0, 7, 1, 1], [4, 0, 7, 0]])
def test_lengths_must_be_those_of_the_sequences(tmp_path: Path, pieces: list[np.ndarray], lengths: list[int]) -> None:
    with pytest.raises((ValueError, IndexError), match=r"length|announced|index"):
        Ragged.write(tmp_path, iter(pieces), lengths)


def test_no_sequences_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 sequences came"):
        Ragged.write(tmp_path, iter([]), [])


def test_an_array_takes_its_room_at_once(tmp_path: Path) -> None:
    array = new_array(tmp_path / "a.npy", np.float32, (1000, 1000))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes


def test_a_full_disk_is_an_error_before_anything_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Ragged.write(tmp_path, [np.zeros((3, 2))], [3])
