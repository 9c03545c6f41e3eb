"""Ranks that prepare a folder together: each does its shard on its part of the cores, and the first joins the whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from sta.data.cache import writing
from sta.data.lock import Lock
from sta.distributed import ranks
from sta.distributed.process_pool import on_cores
from sta.distributed.sharding import BatchShard
from sta.progress import Bar


@dataclass(frozen=True)
class Team:
    """The ranks of a launch; by default one, alone.

    Attributes:
        shard: of this rank.
        neighbours: ranks on this machine, itself among them.
        gather: what every rank says, on every rank, once all have come to say it.
    """

    shard: BatchShard = field(default_factory=BatchShard)
    neighbours: int = 1
    gather: Callable[[Any], list[Any]] = lambda said: [said]

    @staticmethod
    def of(accelerator: Accelerator) -> Team:
        """Return the ranks of the running launch."""
        if accelerator.num_processes == 1:
            return Team()
        shard = BatchShard(accelerator.process_index, accelerator.num_processes)
        return Team(shard, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), ranks.all_gather_object)

    def build(
        self, final: Path, fill: Callable[[Path], None], join: Callable[[Path], None] = lambda partial: None
    ) -> Path:
        """Make the folder `final`: every rank fills its shard of a partial folder, then the first joins what is there.

        The folder appears whole or not at all. What an interrupted `fill` left in the partial folder is offered to the
        next one, on any number of ranks; after an error that left nothing in it, it is gone. Where another launch is
        making the folder, this one waits for it.
        """
        with Lock(final) as lock:
            if self._is_made(lock):
                return final
            partial = final.with_name(final.name + ".partial")
            try:
                with self.agreed(), writing(final):
                    partial.mkdir(parents=True, exist_ok=True)
                    fill(partial)
                with self.agreed():
                    if self.shard.rank == 0:
                        with writing(final):
                            join(partial)
                            os.replace(partial, final)
            except Exception:
                with suppress(OSError):  # it holds what the next launch goes on with, or another rank was faster
                    partial.rmdir()
                raise
        return final

    def _is_made(self, lock: Lock) -> bool:
        """Return whether a folder is there, by the first rank's word: if not, that one has its lock now.

        The ranks ask again and again while another launch has it: none waits longer than a collective may.
        """
        while True:
            made = self.gather(lock.is_made() if self.shard.rank == 0 else False)[0]
            if made is not None:
                return bool(made)

    def on_first(self, work: Callable[[], object]) -> None:
        """Let the first rank do something that the others wait for."""
        with self.agreed():
            if self.shard.rank == 0:
                work()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Leave the block when every rank has; an error on one is an error on all.

        A stop by a signal is not waited with: the launcher stops every rank.
        """
        fault: Exception | None = None
        try:
            yield
        except Exception as error:
            fault = error
        faults = self.gather(None if fault is None else ranks.sendable(fault))
        first = fault or next((other for other in faults if other is not None), None)
        if first is not None:
            raise first

    def each(
        self, title: str, unit: str, total: int, work: Callable[..., int], tasks: Sequence[tuple[Any, ...]]
    ) -> None:
        """Run `work(*task)`, which returns the units it did, for this rank's shard of the tasks, on its cores."""
        mine = tasks[self.shard.rank :: self.shard.world]
        if mine:
            bar = Bar(title, -(-total // self.shard.world), unit, shown=self.shard.rank == 0)
            on_cores(bar, work, mine, self.neighbours)
