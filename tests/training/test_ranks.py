"""Two ranks in one training: what happens to one of them happens to both."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sta.config.recipe import Optimisation
from sta.distributed.sharding import BatchShard
from sta.errors import Interrupted
from sta.training import checkpoint, runtime
from sta.training.batch import Batch
from sta.training.loop import train
from sta.training.task import Task

STEPS, BAD = 8, 3


@dataclass(frozen=True)
class _Points(Batch):
    """Points x [n, 3]."""

    x: Tensor


class _Fit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 2)

    def forward(self, batch: _Points) -> dict[str, Tensor]:
        return {"mse": (self.line(batch.x) - batch.x[:, :2]).pow(2).mean()}


class _Line(Task):
    """A line through points, of which the odd ones (rank 1's) are not numbers at one step."""

    name = "line"
    weights = {"mse": 1.0}  # noqa: RUF012

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = _Fit()

    def batch(self, step: int, shard: BatchShard) -> _Points:
        points = np.random.default_rng(step).standard_normal((4, 3)).astype(np.float32)
        if step == BAD:
            points[1::2] = np.nan
        return _Points(torch.from_numpy(shard.of(points)))

    def items(self, step: int) -> list[str]:
        return [f"{step}-{n}" for n in range(4)]

    def export(self, module: nn.Module, folder: Path) -> None:
        save_file(module.state_dict(), folder / "weights.safetensors")


def _train(rank: int, world: int, port: int, folder: str) -> None:
    if world > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
    settings = Optimisation(steps=STEPS, batch=4, lr=0.05, warmup=2, log_every=1, save_every=3)
    train(_Line(), settings, Path(folder), 3, runtime.start("fp32"))


def _stop(rank: int, world: int, port: int, folder: str) -> None:
    """Rank 0 is asked to stop, and is slow to hash its checkpoint."""
    os.environ["STA_FAULT"] = "term@step:4,rank:0"
    write_sums = checkpoint.write_sums

    def slowly(folder: Path) -> None:
        time.sleep(2)
        write_sums(folder)

    checkpoint.write_sums = slowly
    with pytest.raises(Interrupted):
        _train(rank, world, port, folder)
    assert checkpoint.all_of(Path(folder) / "checkpoints")[0][0] == 4, "it left before the checkpoint was there"


def test_no_rank_leaves_before_the_checkpoint_is_in_its_place(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_stop, (2, port, str(tmp_path)), nprocs=2)


def test_a_fault_on_one_rank_is_passed_over_on_both(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for world in (1, 2):
        torch.multiprocessing.spawn(_train, (world, port, str(tmp_path / str(world))), nprocs=world)
    one, two = (load_file(tmp_path / str(n) / "final" / "weights.safetensors") for n in (1, 2))
    for name, value in one.items():
        assert value.isfinite().all()
        torch.testing.assert_close(two[name], value)
    for world in (1, 2):
        log = (tmp_path / str(world) / "log" / "skipped.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == [BAD + 1]
        assert json.loads(log[0])["items"] == [f"{BAD}-{n}" for n in range(4)]
