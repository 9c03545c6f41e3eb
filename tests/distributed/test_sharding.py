"""A batch that ranks share: what they draw together, and what they measure together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sta.distributed import sharding
from sta.distributed.ahead import ahead_everywhere
from sta.distributed.sharding import BatchShard

CPU = torch.device("cpu")


def of_every_rank(world: int, total: int, draw: Callable[[int], Tensor]) -> Tensor:
    """What `draw(count)` gives the ranks of a world, put back into the order of the whole batch."""
    whole: list[Tensor] = [torch.empty(0)] * total
    for rank in range(world):
        held = BatchShard(rank, world).of(np.arange(total))
        torch.manual_seed(rank)  # what else a rank draws is no matter
        with sharding.sharded_step(BatchShard(rank, world), total, seed=5):
            for place, item in zip(held, draw(len(held)), strict=True):
                whole[place] = item
    return torch.stack(whole)


@pytest.fixture(params=[True, False], ids=["by item", "hashed"])
def by_item(request: pytest.FixtureRequest) -> Iterator[None]:
    """How `normal_like` draws: as on the CPU, or as on a GPU."""
    with nullcontext() if request.param else ahead_everywhere():
        yield


@pytest.mark.parametrize(
    "draw",
    [
        lambda count: sharding.uniform(count, 3, device=CPU),
        lambda count: sharding.normal(count, device=CPU),
        lambda count: sharding.integers(9, count, 2, device=CPU),
        lambda count: sharding.normal_like(torch.empty(count, 7, 5)),
    ],
    ids=["uniform", "normal", "integers", "normal_like"],
)
@pytest.mark.parametrize("total", [12, 7])
@pytest.mark.usefixtures("by_item")
def test_any_number_of_ranks_draws_what_one_draws(draw: Callable[[int], Tensor], total: int) -> None:
    alone = of_every_rank(1, total, draw)
    assert of_every_rank(3, total, draw).equal(alone)
    assert of_every_rank(4, total, draw).equal(alone)
    assert len(alone.flatten(1).unique(dim=0)) > 1 if alone.ndim > 1 else len(alone.unique()) > 1


@pytest.mark.usefixtures("by_item")
def test_a_step_repeats_and_another_does_not() -> None:
    def drawn(seed: int) -> Tensor:
        with sharding.sharded_step(BatchShard(), 4, seed):
            return torch.cat([sharding.uniform(4, device=CPU), sharding.normal_like(torch.empty(4, 2)).flatten()])

    assert drawn(1).equal(drawn(1))
    assert not drawn(1).isclose(drawn(2)).any()


def test_another_batch_of_the_step_has_its_own_size() -> None:
    with sharding.sharded_step(BatchShard(1, 2), 8, seed=0):
        with pytest.raises(ValueError, match=r"rank 1 of 2 holds 4 of 8 items, not 2"):
            sharding.uniform(2, device=CPU)
        with sharding.with_batch_size(5):
            assert sharding.uniform(2, device=CPU).shape == (2,)
        assert sharding.uniform(4, device=CPU).shape == (4,)


@pytest.mark.usefixtures("by_item")
def test_normal_numbers_are_normal() -> None:
    with sharding.sharded_step(BatchShard(), 500, seed=0):
        drawn = sharding.normal_like(torch.empty(500, 4, 100)).flatten(1)
    for power, moment in enumerate((0, 1, 0, 3), 1):
        assert float(drawn.pow(power).mean()) == pytest.approx(moment, abs=0.04)
    for limit in (1.0, 2.0, 3.0, 4.0):
        beyond = 2 * float(torch.special.ndtr(torch.tensor(-limit)))
        assert float((drawn.abs() > limit).float().mean()) == pytest.approx(beyond, abs=4 * (beyond / 2e5) ** 0.5)
    for one, other in ((drawn[:, 1:], drawn[:, :-1]), (drawn[1:], drawn[:-1]), (drawn[:, 2:].abs(), drawn[:, :-2])):
        assert abs(float((one * other).mean())) < 0.01, "neighbours know nothing of each other"


def test_only_the_cpu_draws_item_by_item(monkeypatch: pytest.MonkeyPatch) -> None:
    with sharding.sharded_step(BatchShard(), 3, seed=0):
        expected = [
            torch.empty(5).normal_(generator=torch.Generator().manual_seed(seed))
            for seed in sharding.integers(2**62, 3, device=CPU).tolist()
        ]
    with sharding.sharded_step(BatchShard(), 3, seed=0):
        assert sharding.normal_like(torch.empty(3, 5)).equal(torch.stack(expected)), "as runs so far have drawn"
    monkeypatch.setattr(torch, "Generator", None)
    assert sharding.normal_like(torch.empty(3, 5, device="meta")).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4, 5), (2,), (0, 4), (2, 0)])
@pytest.mark.usefixtures("by_item")
def test_normal_numbers_are_of_the_same_shape_and_kind(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    drawn = sharding.normal_like(torch.empty(shape, dtype=dtype))
    assert (drawn.shape, drawn.dtype) == (shape, dtype)
    assert drawn.isfinite().all()


def test_splitmix_is_splitmix() -> None:
    """The published sequence from the seed 1234567, and a plain one by Python's integers."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = sharding.splitmix(torch.tensor([1234567, 2**62 - 1]), 5)
    assert [number % 2**64 for number in found[0].tolist()] == known
    assert found[1].tolist() != found[0].tolist()
    assert sharding.splitmix(torch.tensor([1234567]), 2).tolist() == found[:1, :2].tolist()


def test_the_ends_of_the_bits_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "splitmix", lambda seeds, count: torch.tensor([[0, -1, 2**32 - 1, -(2**32)]]))
    drawn = sharding._hashed_normal(torch.zeros(1), torch.empty(1, 4))
    torch.testing.assert_close(drawn, torch.tensor([[6.6604, 0.0, 6.6604, 0.0]]), atol=1e-3, rtol=0)


def test_dropout_drops_its_share_of_each_item_and_keeps_the_mean() -> None:
    layer = sharding.Dropout(0.3)
    with sharding.sharded_step(BatchShard(), 20, seed=0):
        dropped = layer(torch.ones(20, 50, 10))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert layer.eval()(dropped) is dropped


def test_alone_batch_norm_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = sharding.BatchNorm(3), nn.BatchNorm2d(3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 5, 5)
    assert ours(x).equal(theirs(x))
    assert all(value.equal(theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    with pytest.raises(ValueError, match="batch norm takes"):
        ours(torch.zeros(3))


# ---- two ranks, each a process of its own --------------------------------------------------------------------


def measured(shard: BatchShard) -> dict[str, Tensor]:
    """Means, moments and gradients of five items, of which this rank holds its share."""
    generator = torch.Generator().manual_seed(0)
    everyone = torch.randn(6, 3, 4, 4, generator=generator)
    values = torch.randn(5, generator=generator)
    held = torch.from_numpy(shard.of(np.arange(6)))
    x = everyone[held].requires_grad_()
    norm = sharding.BatchNorm(3)
    with sharding.sharded_step(shard, 6, seed=2):
        out = norm(x)
        (out.pow(3).mean() * 1).backward()
        with sharding.with_batch_size(5):
            part = values[torch.from_numpy(shard.of(np.arange(5)))]
            mean = sharding.mean(part)
        found = {
            "whole": sharding.all_gather(everyone[held]),
            "largest": torch.tensor(sharding.all_reduce_max(shard.rank + 4)),
            "places": sharding.replicated_integers(100, 5, CPU),
        }
    assert x.grad is not None
    grad, weight = torch.zeros(6, 3, 4, 4), norm.weight.grad
    assert weight is not None
    grad[held] = x.grad / shard.world
    outs = torch.zeros(6, 3, 4, 4)
    outs[held] = out.detach()
    if shard.world > 1:
        for each in (grad, outs, weight, mean):
            dist.all_reduce(each)
        weight, mean = weight / shard.world, mean / shard.world
    buffers = {name: value for name, value in norm.state_dict().items() if "running" in name or "num" in name}
    return {**found, **buffers, "grad": grad, "outs": outs, "weight": weight, "mean": mean}


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    torch.save(measured(BatchShard(rank, 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = str(tmp_path_factory.mktemp("ranks"))
    torch.multiprocessing.spawn(_rank, (folder,), nprocs=2)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]


def test_two_ranks_measure_what_one_measures(of_two: list[dict[str, Tensor]]) -> None:
    alone = measured(BatchShard())
    for together in of_two:
        assert together.pop("largest") == 5
        for name, value in together.items():
            torch.testing.assert_close(value, alone[name], atol=1e-6, rtol=1e-5)
