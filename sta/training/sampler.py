"""The order in which training meets its items: seeded permutations without end, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sta.training.workspace import Workspace

#: In how many lanes a corpus is read by shards; any number of ranks that divides it has shards of its own.
LANES = 192


@dataclass(frozen=True)
class Mixing:
    """How often items of each part of a mixture are drawn: the number of each item's part, and each part's weight."""

    parts: np.ndarray
    weights: Sequence[float]

    def counts(self, total: int) -> np.ndarray:
        """Return how many of `total` items come from each part that has any: as the weights say, rounded."""
        there = np.bincount(self.parts, minlength=len(self.weights)) > 0
        ends = np.cumsum(np.where(there, self.weights, 0.0))
        return np.diff(np.rint(total * ends / ends[-1]).astype(np.int64), prepend=0)


class ShuffledSampler:
    """Items in endless epochs, each a seeded permutation: position -> item, nothing lost.

    With `mixing`, an epoch is as long and holds of each part as many as its weight says: each part has endless epochs
    of its own, from which they are taken.

    With `lengths`, windows of `batch` positions hold items of like length, so that little is padding: each
    stretch of `STRETCH` batches is sorted by length and its batches shuffled, and an epoch is filled up to whole
    batches with items of its own.
    """

    STRETCH = 16

    def __init__(
        self, items: np.ndarray, seed: int, lengths: np.ndarray | None = None, batch: int = 1,
        mixing: Mixing | None = None,
    ):  # fmt: skip
        self.items, self.seed, self.lengths, self.batch = np.asarray(items), seed, lengths, batch
        self._counts, self._parts = [], list[ShuffledSampler]()
        if mixing is not None and len(self.items):
            self._counts = mixing.counts(len(self.items)).tolist()
            self._parts = [
                ShuffledSampler(np.flatnonzero(mixing.parts == part), seed + 7919 * (part + 1))
                for part in range(len(self._counts))
            ]
        self.epoch_length = len(self.items) if lengths is None else -(-len(self.items) // batch) * batch
        self._drawn: dict[int, np.ndarray] = {}  # the orders of the last two epochs: to draw one anew takes 3 ms

    def take(self, start: int, count: int) -> np.ndarray:
        """Return the items at positions start .. start + count."""
        if not len(self.items):
            return np.zeros(0, np.int64)
        positions = np.arange(start, start + count)
        epochs, places = positions // self.epoch_length, positions % self.epoch_length
        taken = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            taken[epochs == epoch] = self.items[self._order(int(epoch))[places[epochs == epoch]]]
        return taken

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._drawn:
            self._drawn = {e: order for e, order in self._drawn.items() if e == epoch - 1}
            self._drawn[epoch] = self._draw(epoch)
        return self._drawn[epoch]

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        order = self._chosen(epoch, rng)
        if self.lengths is None:
            return order
        order = np.resize(order, self.epoch_length)
        batches: list[np.ndarray] = []
        for stretch in np.split(order, range(self.STRETCH * self.batch, len(order), self.STRETCH * self.batch)):
            stretch = stretch[np.argsort(self.lengths[stretch], kind="stable")]
            batches += list(rng.permutation(stretch.reshape(-1, self.batch)))
        return np.concatenate(batches)

    def _chosen(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the numbers of an epoch's items, in random order."""
        if not self._parts:
            return rng.permutation(len(self.items))
        drawn = [part.take(epoch * n, n) for part, n in zip(self._parts, self._counts, strict=True)]
        return rng.permutation(np.concatenate(drawn))


class ShardedSampler(ShuffledSampler):
    """Shuffle a corpus that is larger than memory: each rank reads shards of its own, one after another.

    The item at place j of a batch comes from lane j mod `LANES`. So rank r of n, which holds the places r, r + n, ...
    of every batch, reads lanes r, r + n, ... and no others, where n divides `LANES`; the order knows nothing of n.
    Each epoch shuffles the shards and the items within each, lays them end to end and cuts the line into lanes, each as
    long as the epoch has places for it: every item comes once, without a remainder. A shard that a cut falls into is
    read by two lanes. No more shards than lanes are being read at a time.

    With `lengths`, each stretch of whole batches is sorted by length within the lanes, and its batches are shuffled. An
    epoch is never filled up: it may begin and end within a batch, whose items are then of any length.

    Args:
        shards: of each item, the number of the shard that holds it.
        batch: positions of one batch.
        offset: place in the whole batch of the first item that is taken for it.
    """

    def __init__(
        self, items: np.ndarray, seed: int, shards: np.ndarray, batch: int, lengths: np.ndarray | None = None,
        offset: int = 0, mixing: Mixing | None = None,
    ):  # fmt: skip
        super().__init__(items, seed, lengths, batch, mixing)
        self.shards, self.offset, self.epoch_length = np.asarray(shards), offset, len(self.items)

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        lanes = self._lanes(epoch)
        order = np.empty(len(lanes), np.int64)
        order[np.argsort(lanes, kind="stable")] = self._line(epoch, rng)
        return order if self.lengths is None else self._sorted(order, lanes, epoch, rng)

    def _lanes(self, epoch: int) -> np.ndarray:
        """Return the lane of each position of an epoch."""
        first = epoch * self.epoch_length
        return (self.offset + np.arange(first, first + self.epoch_length) % self.batch) % LANES

    def _line(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """Return the numbers of all items, shard after shard; shards, and items in a shard, in random order."""
        mixed = self._chosen(epoch, rng)
        _, shard = np.unique(self.shards, return_inverse=True)
        turn = rng.permutation(shard.max() + 1)
        return mixed[np.argsort(turn[shard[mixed]], kind="stable")]

    def _sorted(self, order: np.ndarray, lanes: np.ndarray, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """Return the order with batches of like length; every item stays in its lane."""
        assert self.lengths is not None
        first = -epoch * self.epoch_length % self.batch  # where the first whole batch begins
        batches = max(0, len(order) - first) // self.batch
        for number in range(0, batches, self.STRETCH):
            start, count = first + number * self.batch, min(self.STRETCH, batches - number)
            part = slice(start, start + count * self.batch)
            stretch, lane = order[part], lanes[part]
            alike = np.empty_like(stretch)
            alike[np.argsort(lane, kind="stable")] = stretch[np.lexsort((self.lengths[stretch], lane))]
            order[part] = rng.permutation(alike.reshape(count, self.batch)).ravel()
        return order


def build_sampler(
    workspace: Workspace, items: np.ndarray, rows: np.ndarray, seed: int, batch: int, lengths: np.ndarray | None = None,
    offset: int = 0, shards: np.ndarray | None = None,
) -> ShuffledSampler:  # fmt: skip
    """Return the order of a corpus's items: by shards and by the weights of its parts, where it has them.

    Args:
        items, seed, batch, lengths, offset: as of the samplers.
        rows: a row of the corpus for each item.
        shards: of each item, where it is read from another file than its row's shard.
    """
    corpus, source = workspace.corpus, workspace.source
    mixing = Mixing(corpus.part_of[rows], source.weights) if len(source.weights) > 1 else None
    if source.by_shards:
        shards = corpus.shard_of[rows] if shards is None else shards
        return ShardedSampler(items, seed, shards, batch, lengths, offset, mixing)
    return ShuffledSampler(items, seed, lengths, batch, mixing)
