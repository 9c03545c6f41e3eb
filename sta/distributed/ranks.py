"""The processes of a launch: which one speaks, what each does of a list of work, and which one says what went wrong.

In a round of work each rank does one item, and all know what came of it; so what is made of many items neither depends
on the number of ranks nor on which rank did what. Without a launcher there is one rank, which does everything.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sta.errors import StaError

if TYPE_CHECKING:
    from torch.distributed import Store

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

    Every rank must go to the end. What is made is pickled: tensors should be on the CPU.

    Raises:
        Exception: what `work` raised on the first rank where it did, on every rank.
    """
    if not _joined():
        yield from map(work, items)
        return
    import torch.distributed as dist

    place, ranks = dist.get_rank(), dist.get_world_size()
    for start in range(0, len(items), ranks):
        made = [_attempt(work, item) for item in items[start + place : start + ranks : ranks]]
        for outcome in _unless_failed(_gathered(made)):
            yield from outcome


def run_on_main(do: Callable[[], Made]) -> Made:
    """Return what `do` gives on the main rank, on every rank; an error there is one everywhere."""
    if not _joined():
        return do()
    mine = [_attempt(lambda _: do(), None)] if is_main() else []
    made: list[Made] = _unless_failed(_gathered(mine))[0]
    return made[0]


@dataclass(frozen=True)
class _Failure:
    error: Exception


def _attempt(work: Callable[[Item], Made], item: Item) -> Made | _Failure:
    try:
        return work(item)
    except Exception as error:
        return _Failure(error)


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


def _gathered(mine: list[Any]) -> list[list[Any]]:
    """Return what every rank gives, in their order."""
    sent = [_Failure(sendable(made.error)) if isinstance(made, _Failure) else made for made in mine]
    every: list[list[Any]] = all_gather_object(sent)
    every[rank()] = mine  # an error of one's own still knows where it was raised
    return every


def _unless_failed(every: list[list[Any]]) -> list[list[Any]]:
    for made in every:
        for outcome in made:
            if isinstance(outcome, _Failure):
                raise outcome.error
    return every


def _joined() -> bool:
    """Return whether there are other ranks that this one can talk to."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


# ---- the last word ------------------------------------------------------------------------------------------


def claim_error_report() -> bool:
    """Return whether this rank is the first to say why the launch ends; the others say nothing."""
    store = _store()
    if store is None:
        return is_main()
    try:
        return store.add("sta/last-word", 1) == 1
    except RuntimeError:  # the store is gone, and with it the process that held it
        return False


def is_peer_lost(error: Exception) -> bool:
    """Return whether an error says that another process of the launch is gone."""
    return _joined() and isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS_OF_LOSS)


def _store() -> Store | None:
    """Return what the ranks write notes to each other in, once they have joined."""
    if not _joined():
        return None
    from sta.private import default_store

    return default_store()
