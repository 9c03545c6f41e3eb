"""The decoder stage's batches: the written share is there, and spread over the ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sta.training.loop import Share
from sta.training.tasks.decoder import written_places


@pytest.mark.parametrize(("size", "share", "count"), [(16, 0.25, 4), (16, 0.5, 8), (10, 0.3, 3), (8, 0, 0), (8, 1, 8)])
def test_the_share_is_met(size: int, share: float, count: int) -> None:
    assert written_places(size, share).sum() == count


@given(st.integers(1, 64), st.floats(0, 1))
def test_the_share_is_met_to_one_place(size: int, share: float) -> None:
    assert abs(written_places(size, share).sum() - size * share) < 1 + 1e-6


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_reads_and_hears(world: int) -> None:
    written = written_places(16, 0.25)
    parts = [Share(rank, world).of(written) for rank in range(world)]
    assert [part.sum() for part in parts] == [4 // world] * world
