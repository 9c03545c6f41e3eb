"""The processes of a launch: which one speaks, what each does of a list of work, and which one says what went wrong.

In a round of work each rank does one item, and all know what came of it; so what is made of many items neither depends
on the number of ranks nor on which rank did what. Without a launcher there is one rank, which does everything.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sta.errors import StaError

SIGNS_OF_LOSS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")

Item = TypeVar("Item")
Made = TypeVar("Made")


def rank() -> int:
    """Return the number of this process in its launch."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this process has number 0."""
    return rank() == 0


# ---- work ---------------------------------------------------------------------------------------------------


def parallel_map(items: Sequence[Item], work: Callable[[Item], Made]) -> Iterator[Made]:
    """Return what `work` makes of each item, in order and on every rank, a round of one item for each rank at a time.

    Every rank must go to the end. What is made is pickled: tensors should be on the CPU. An error is one on every rank.
    """
    if not _joined():
        yield from map(work, items)
        return
    import torch.distributed as dist

    place, ranks = dist.get_rank(), dist.get_world_size()
    for start in range(0, len(items), ranks):
        yield from _together(work, items[start + place : start + ranks : ranks])


def run_on_main(do: Callable[[], Made]) -> Made:
    """Return what `do` gives on the main rank, on every rank; an error there is one everywhere."""
    if not _joined():
        return do()
    (made,) = _together(lambda _: do(), [None] * is_main())
    return made


def _together(work: Callable[[Item], Made], mine: Sequence[Item]) -> list[Made]:
    """Return what every rank makes of its items, in the ranks' order; the first error of any is one on all."""
    made, fault = list[Made](), None
    try:
        made = [work(item) for item in mine]
    except Exception as error:
        fault = error
    every = all_gather_object((made, None if fault is None else sendable(fault)))
    every[rank()] = made, fault  # an error of one's own still knows where it was raised
    for _, of_rank in every:
        if of_rank is not None:
            raise of_rank
    return [one for made, _ in every for one in made]


def sendable(error: Exception) -> Exception:
    """Return the error, or one of the same words, as another rank can be sent it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return StaError(f"{type(error).__name__}: {error}")
    return error


def all_gather_object(mine: Any) -> list[Any]:
    """Return what every rank says, in their order, on every rank, once all have come to say it."""
    if not _joined():
        return [mine]
    import torch.distributed as dist

    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return every


def _joined() -> bool:
    """Return whether there are other ranks that this one can talk to."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


# ---- the last word ------------------------------------------------------------------------------------------


def claim_error_report() -> bool:
    """Return whether this rank is the first to say why the launch ends; the others say nothing."""
    if not _joined():
        return is_main()
    from sta.private import default_store

    try:
        return default_store().add("sta/last-word", 1) == 1
    except RuntimeError:  # the store is gone, and with it the process that held it
        return False


def is_peer_lost(error: Exception) -> bool:
    """Return whether an error says that another process of the launch is gone."""
    return _joined() and isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS_OF_LOSS)
