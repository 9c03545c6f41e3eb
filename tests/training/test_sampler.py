"""The order of items: every epoch is a permutation, the same on any number of ranks, and shards keep to their lanes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sta.distributed.sharding import BatchShard
from sta.training.sampler import LANES, Mixing, ShardedSampler, ShuffledSampler


@pytest.mark.parametrize("count", [1, 7, 30])
def test_each_epoch_is_a_permutation(count: int) -> None:
    items = np.arange(100, 100 + count)
    order = ShuffledSampler(items, seed=1)
    epochs = [order.take(e * count, count) for e in range(3)]
    assert all(sorted(e) == items.tolist() for e in epochs)
    if count > 5:
        assert not (epochs[0] == epochs[1]).all()
        assert not (ShuffledSampler(items, seed=2).take(0, count) == epochs[0]).all()
    start = count // 2
    np.testing.assert_array_equal(order.take(start, 2 * count), np.concatenate(epochs)[start : start + 2 * count])


def test_nothing_to_take() -> None:
    assert len(ShuffledSampler(np.zeros(0, np.int64), 0).take(5, 3)) == 0
    assert len(ShuffledSampler(np.arange(3), 0).take(5, 0)) == 0


@pytest.mark.parametrize(("count", "batch"), [(64, 8), (67, 8), (5, 8), (300, 4), (1000, 8)])
def test_batches_are_alike_in_length_and_nothing_is_lost(count: int, batch: int) -> None:
    rng = np.random.default_rng(0)
    items, lengths = np.arange(count) + 50, rng.integers(50, 1000, count)
    order = ShuffledSampler(items, 1, lengths, batch)
    assert order.epoch_length % batch == 0
    for epoch in range(3):
        taken = order.take(epoch * order.epoch_length, order.epoch_length)
        seen = np.bincount(taken - 50, minlength=count)
        assert seen.min() >= 1
        assert seen.sum() - count < batch
    if count >= 64:
        spread = np.mean([np.ptp(lengths[b - 50]) for b in taken.reshape(-1, batch)])
        plain = ShuffledSampler(items, 1).take(0, count // batch * batch).reshape(-1, batch)
        assert spread < 0.5 * np.mean([np.ptp(lengths[b - 50]) for b in plain])
        mean = [lengths[b - 50].mean() for b in taken.reshape(-1, batch)]
        assert mean != sorted(mean), "the batches must not come in order of length"


def test_ranks_share_a_batch_without_loss() -> None:
    items = np.arange(12)
    parts = [BatchShard(rank, 3).of(items) for rank in range(3)]
    assert sorted(np.concatenate(parts)) == items.tolist()
    assert {len(p) for p in parts} == {4}
    assert BatchShard().of(items).tolist() == items.tolist()


# --- in lanes ---------------------------------------------------------------------------------------------------


@st.composite
def orders(draw: st.DrawFn, batches: tuple[int, ...] = (1, 2, 4, 6, 12, 64)) -> ShardedSampler:
    """Items in shards of unequal size, some of one item, in batches with and without lengths."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=30))
    shards = np.repeat(np.arange(len(sizes)) * 7, sizes)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    lengths = rng.integers(1, 1000, len(shards)) if draw(st.booleans()) else None
    items = rng.permutation(1000 + len(shards))[: len(shards)]
    return ShardedSampler(
        items, draw(st.integers(0, 9)), shards, draw(st.sampled_from(batches)), lengths, draw(st.integers(0, 5))
    )


@given(orders(), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_every_epoch_in_lanes_is_a_permutation(order: ShardedSampler, epoch: int) -> None:
    count = len(order.items)
    assert sorted(order.take(epoch * count, count)) == sorted(order.items)


@given(orders((4, 12, 64)), st.integers(0, 40), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))
@settings(max_examples=80, deadline=None)
def test_ranks_read_one_order_and_go_on_in_another_number(
    order: ShardedSampler, stop: int, before: int, after: int
) -> None:
    """Steps of the ranks side by side are the batches of one; what reads on starts where the others stopped."""

    def taken(world: int, steps: range, anew: ShardedSampler) -> list[int]:
        found = []
        for step in steps:
            batch = anew.take(step * anew.batch, anew.batch)
            parts = [BatchShard(rank, world).of(batch) for rank in range(world)]
            found += np.stack(parts, 1).ravel().tolist()
        return found

    def again() -> ShardedSampler:
        return ShardedSampler(order.items, order.seed, order.shards, order.batch, order.lengths, order.offset)

    steps = 2 * len(order.items) // order.batch + 2
    stop = min(stop, steps)
    whole = taken(1, range(steps), order)
    assert taken(before, range(stop), again()) + taken(after, range(stop, steps), again()) == whole
    epoch = whole[: len(order.items)]
    assert sorted(epoch) == sorted(order.items), "an item of the epoch was lost or came twice"


@given(orders((12, 48)), st.sampled_from([2, 3, 4, 6, 12]))
@settings(max_examples=80, deadline=None)
def test_each_rank_reads_the_shards_of_its_lanes_alone(order: ShardedSampler, world: int) -> None:
    """A lane's shards are a stretch of the epoch's line of shards; only those at a cut are in two lanes."""
    order.offset = 0
    count = len(order.items)
    shard_of = dict(zip(order.items.tolist(), order.shards.tolist(), strict=True))
    for epoch in range(2):
        taken, lanes = order.take(epoch * count, count), order._lanes(epoch)
        read = {lane: {shard_of[item] for item in taken[lanes == lane]} for lane in np.unique(lanes).tolist()}
        assert sum(map(len, read.values())) <= len(np.unique(order.shards)) + len(read) - 1
        for rank in range(world):
            places = BatchShard(rank, world).of(np.arange(order.batch))
            mine = taken[np.isin((epoch * count + np.arange(count)) % order.batch, places)]
            allowed = set().union(*(shards for lane, shards in read.items() if lane % world == rank))
            assert {shard_of[item] for item in mine.tolist()} <= allowed


def test_two_ranks_share_hardly_a_shard() -> None:
    shards = np.repeat(np.arange(400), 25)
    order = ShardedSampler(np.arange(10_000), 0, shards, 8)
    batches = order.take(0, 10_000).reshape(-1, 8)
    read = [set(shards[BatchShard(rank, 2).of(batches.T).ravel()]) for rank in range(2)]
    assert len(read[0] & read[1]) <= 8
    assert min(map(len, read)) >= 200
    first = [len(set(shards[batches[:, place][:10]])) for place in range(8)]
    assert max(first) <= 2, "a lane reads one shard after another"


def test_shards_and_rows_are_shuffled_anew_in_each_epoch() -> None:
    order = ShardedSampler(np.arange(1000), 3, np.repeat(np.arange(10), 100), 4)
    epochs = [order.take(epoch * 1000, 1000) for epoch in range(2)]
    assert (epochs[0] != epochs[1]).mean() > 0.9
    assert (np.diff(epochs[0][::4]) == 1).mean() < 0.1
    other = ShardedSampler(np.arange(1000), 4, order.shards, 4)
    assert (other.take(0, 1000) != epochs[0]).mean() > 0.9


@pytest.mark.parametrize("count", [3000, 3005])
def test_batches_in_lanes_are_alike_in_length(count: int) -> None:
    lengths = np.random.default_rng(0).integers(50, 1000, count)
    order = ShardedSampler(np.arange(count), 1, np.arange(count) // 100, 8, lengths)
    batches = order.take(count, count // 8 * 8 - 8)  # the second epoch, which may begin within a batch
    start = -count % 8
    batches = batches[start : start + (len(batches) - start) // 8 * 8].reshape(-1, 8)
    plain = ShardedSampler(np.arange(count), 1, order.shards, 8).take(0, len(batches) * 8).reshape(-1, 8)
    assert np.ptp(lengths[batches], axis=1).mean() < 0.5 * np.ptp(lengths[plain], axis=1).mean()
    mean = lengths[batches].mean(1).tolist()
    assert mean != sorted(mean)


def test_many_numbers_of_ranks_divide_the_lanes() -> None:
    assert all(LANES % ranks == 0 for ranks in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96))


def test_nothing_to_take_in_lanes() -> None:
    assert len(ShardedSampler(np.zeros(0, np.int64), 0, np.zeros(0, np.int64), 4).take(5, 3)) == 0


# --- of a mixture -----------------------------------------------------------------------------------------------

PARTS = np.repeat([0, 1, 2], [600, 60, 40])
MIXING = Mixing(PARTS, (1.0, 3.0, 0.5))


def mixed(kind: str) -> ShuffledSampler:
    items, lengths = np.arange(700) + 50, np.random.default_rng(0).integers(50, 1000, 700)
    if kind == "in lanes":
        return ShardedSampler(items, 1, np.arange(700) // 20, 10, lengths, mixing=MIXING)
    return ShuffledSampler(items, 1, lengths if kind == "by length" else None, 10, MIXING)


@pytest.mark.parametrize("kind", ["plain", "by length", "in lanes"])
def test_parts_are_drawn_as_often_as_their_weights_say(kind: str) -> None:
    taken = PARTS[mixed(kind).take(0, 20 * 700) - 50]
    np.testing.assert_allclose(np.bincount(taken) / len(taken), np.array([1.0, 3.0, 0.5]) / 4.5, atol=1 / 700)
    if kind != "in lanes":  # a lane reads one shard after another
        for start in range(0, len(taken), 1000):
            assert abs((taken[start : start + 1000] == 1).mean() - 2 / 3) < 0.1, "a part comes all at once"


@pytest.mark.parametrize("kind", ["plain", "by length", "in lanes"])
def test_items_of_a_part_come_equally_often(kind: str) -> None:
    seen = np.bincount(mixed(kind).take(0, 20 * 700) - 50, minlength=700)
    for part in range(3):
        assert np.ptp(seen[part == PARTS]) <= 1


@pytest.mark.parametrize("kind", ["plain", "by length", "in lanes"])
def test_a_mixture_goes_on_where_it_stopped_on_any_number_of_ranks(kind: str) -> None:
    whole = mixed(kind).take(0, 3000)
    again = [mixed(kind).take(10 * step, 10) for step in (250, 7, 120)]
    assert [batch.tolist() for batch in again] == [whole[10 * s : 10 * s + 10].tolist() for s in (250, 7, 120)]
    parts = [BatchShard(rank, 2).of(again[0]) for rank in range(2)]
    assert sorted(np.concatenate(parts)) == sorted(again[0])


def test_a_part_without_items_leaves_its_weight_to_the_others() -> None:
    mixing = Mixing(np.repeat([0, 2], [30, 10]), (1.0, 5.0, 1.0))
    assert mixing.counts(40).tolist() == [20, 0, 20]
    taken = ShuffledSampler(np.arange(40), 0, mixing=mixing).take(0, 400)
    assert (taken >= 30).mean() == 0.5
    none = Mixing(np.zeros(0, np.int64), (1.0, 1.0))
    assert len(ShuffledSampler(np.zeros(0, np.int64), 0, mixing=none).take(5, 3)) == 0
