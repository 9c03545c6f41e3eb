"""What of the machine training takes."""

from __future__ import annotations

import os

import pytest
import torch

from sta.training.runtime import loading_processes


@pytest.mark.parametrize(
    ("device", "cores", "neighbours", "processes"),
    [("cpu", 16, 1, 0), ("cuda", 16, 1, 4), ("cuda", 16, 8, 1), ("cuda", 2, 1, 1), ("cuda", 4, 8, 0)],
)
def test_batches_are_made_beside_a_gpu_by_cores_that_it_leaves(
    device: str, cores: int, neighbours: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(neighbours))
    assert loading_processes(torch.device(device)) == processes
