"""Work for all cores of a machine, in fresh processes: nothing heavy is imported here, as each begins anew."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from sta.errors import StaError
from sta.progress import Bar

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def on_cores(bar: Bar, work: Callable[..., int], tasks: Sequence[tuple[Any, ...]], sharers: int = 1) -> None:
    """Run `work(*task)`, which returns the units it did, for each task, one process per core.

    Each has one thread, so that no result depends on how many cores there are; `sharers` on this machine do the same.
    """
    workers = max(1, min(len(os.sched_getaffinity(0)) // sharers, len(tasks)))
    ignore = signal.signal, (signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with (
        _environment(dict.fromkeys(THREAD_VARIABLES, "1")),
        bar,
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), *ignore) as pool,
    ):
        futures = [pool.submit(work, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                bar.advance(future.result())
        except BrokenProcessPool:
            raise StaError(
                f"{bar.title}: one of {workers} processes was killed, as happens where the memory is full; free "
                "some, or run the same command again on fewer cores (taskset -c 0 sta ...) to go on"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that processes started in the block inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
