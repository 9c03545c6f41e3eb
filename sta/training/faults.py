"""Faults on purpose, to rehearse what a cluster does by itself: `STA_FAULT="kill@step:37,rank:1; torn@save:40"`.

A fault is `KIND@POINT:NUMBER`, and `,rank:R` where it is to strike one rank only; several are parted by semicolons.
Each strikes once in the life of a stage's folder, whose `log/faults.jsonl` says which have: so the same command, given
again, goes on.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sta.data.jsonlines import read_values
from sta.errors import TrainingError

VARIABLE = "STA_FAULT"

# Kind of fault -> the points at which it can strike. A step is named by its number in the log, a checkpoint by the step
# that it is saved after:
#   step     before a step
#   forward  a step has begun
#   save     a checkpoint's files are written, their hashes are not
#   rename   a checkpoint is on the disk and not in its place yet
#   prune    a checkpoint is in its place and the older ones are still there
KINDS = {
    "kill": ("step", "save", "rename", "prune"),
    "term": ("step",),
    "freeze": ("step", "save"),
    "nan": ("step",),
    "oom": ("forward",),
    "full": ("save",),
    "torn": ("rename",),
}
SIGNALS = {"kill": "SIGKILL", "term": "SIGTERM", "freeze": "SIGSTOP"}
QUIET = ("nan",)  # kinds that whoever is struck has to ask for
OF_RANK_0 = ("rename", "prune")  # points that the other ranks do not come to
_PATTERN = re.compile(r"(?P<kind>\w+)@(?P<point>\w+):(?P<number>\d+)(,\s*rank:(?P<rank>\d+))?")


@dataclass(frozen=True)
class Fault:
    """What strikes, and when; `rank` None: every rank."""

    kind: str
    point: str
    number: int
    rank: int | None = None

    def __str__(self) -> str:
        where = "" if self.rank is None else f",rank:{self.rank}"
        return f"{self.kind}@{self.point}:{self.number}{where}"


def parse_faults(text: str) -> list[Fault]:
    """Return the faults that a text names; a TrainingError about another says which there are."""
    return [_parse(part.strip()) for part in text.split(";") if part.strip()]


def _parse(text: str) -> Fault:
    match = _PATTERN.fullmatch(text)
    if not match or match["point"] not in KINDS.get(match["kind"], ()):
        known = "; ".join(f"{kind}@{'|'.join(points)}:NUMBER" for kind, points in KINDS.items())
        raise TrainingError(f"{VARIABLE}: '{text}' is no fault; there are {known}; and ',rank:R' for one rank alone")
    rank = None if match["rank"] is None else int(match["rank"])
    if rank and match["point"] in OF_RANK_0:
        raise TrainingError(f"{VARIABLE}: '{text}' would never strike: leave ',rank:{rank}' out at {match['point']}")
    return Fault(match["kind"], match["point"], int(match["number"]), rank)


class Faults:
    """The faults, of all, that are still to strike this rank; the file `record` says which have struck."""

    def __init__(self, faults: Sequence[Fault] = (), record: Path = Path("faults.jsonl"), rank: int = 0):
        lines = [json.loads(line) for line in read_values(record)] if faults else []
        struck = {line["fault"] for line in lines if line["rank"] == rank}
        self.rank, self.record = rank, record
        self.waiting = [f for f in faults if f.rank in (None, rank) and str(f) not in struck]

    def strike(self, point: str, number: int, folder: Path | None = None) -> None:
        """Do what is due at a point, if anything is; `folder` is the checkpoint's there."""
        fault = self._due(point, number, [kind for kind in KINDS if kind not in QUIET])
        if fault is None:
            return
        if fault.kind in SIGNALS:
            os.kill(os.getpid(), getattr(signal, SIGNALS[fault.kind]))
        elif fault.kind == "oom":
            raise torch.OutOfMemoryError(f"{VARIABLE}: {fault}")
        elif fault.kind == "full":
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, as {VARIABLE} asks")
        elif folder is not None:  # torn, as by a disk that lost its power
            largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
            os.truncate(largest, largest.stat().st_size // 2)

    def asks(self, kind: str, point: str, number: int) -> bool:
        """Return whether a fault that nobody but the caller can make is due, such as a loss that is no number."""
        return self._due(point, number, [kind]) is not None

    def _due(self, point: str, number: int, kinds: Sequence[str]) -> Fault | None:
        """Return the fault that is due, once it is written down."""
        for fault in self.waiting:
            if (fault.point, fault.number) == (point, number) and fault.kind in kinds:
                self.waiting.remove(fault)
                self.record.parent.mkdir(parents=True, exist_ok=True)
                with self.record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"fault": str(fault), "rank": self.rank}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                return fault
        return None
