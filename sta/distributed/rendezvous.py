"""How the processes of a launch meet, also after the launcher has started them again.

torchrun keeps one store over restarts, in which the addresses of the processes that are gone still stand; a process
that reads them before its neighbour has written new ones fails, or waits forever (4 of 9 restarts of two processes,
with torch 2.14). So rank 0 opens a store of its own each time, and says in the launcher's where it is.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

from torch.distributed import Store, TCPStore, rendezvous

PORT = "sta/port"  # of rank 0's store; that of an earlier start is refused
TRY, PAUSE = timedelta(seconds=2), 0.2


def meet(rank: int, world: int, patience: timedelta) -> Store:
    """Return the store of this start's processes, for which the others are waited.

    Raises:
        TimeoutError: rank 0 did not come.
    """
    board, _, _ = next(iter(rendezvous("env://", rank, world, timeout=patience)))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return board  # no launcher keeps it: it is new, and rank 0's own
    if rank == 0:
        own = TCPStore(os.environ["MASTER_ADDR"], 0, is_master=True, wait_for_workers=False, timeout=patience)
        board.set(PORT, str(own.port))
        return own
    end = time.monotonic() + patience.total_seconds()
    while time.monotonic() < end:
        try:
            found = TCPStore(os.environ["MASTER_ADDR"], int(board.get(PORT)), is_master=False, timeout=TRY)
        except RuntimeError:  # DistNetworkError among them
            time.sleep(PAUSE)
            continue
        found.set_timeout(patience)
        return found
    raise TimeoutError(f"rank 0 did not come within {patience}")
