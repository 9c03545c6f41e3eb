"""What a stage writes down while it trains: its metrics, the steps that it passed over, the parts of its batch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sta.data.cache import write_atomically, write_json
from sta.data.jsonlines import read_values
from sta.errors import TrainingError


class Log(AbstractContextManager["Log"]):
    """metrics.jsonl and TensorBoard of one stage; a resumed stage forgets the steps it does again."""

    def __init__(self, folder: Path, first: int, shown: bool):
        self.last: float | None = None
        self.since_save: list[float] = []
        self.shown, self.begun = shown, time.monotonic()
        if not shown:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        lines = [_parsed(line) for line in read_values(path)]
        kept = [line for line in lines if line is not None and line["step"] <= first]
        self.spent = kept[-1]["seconds"] if kept else 0.0
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.file = path.open("a")
        self.board = SummaryWriter(str(folder), purge_step=first)

    def __exit__(self, *error: object) -> None:
        if self.shown:
            self.file.close()
            self.board.close()

    def write(self, step: int, samples: int, values: Mapping[str, Any]) -> None:
        """Append the numbers of a step to the log, and to the trackers."""
        numbers = {k: round(float(v.detach() if isinstance(v, Tensor) else v), 6) for k, v in values.items()}
        self.last = numbers["loss"]
        self.since_save.append(self.last)
        if not self.shown:
            return
        seconds = round(self.spent + time.monotonic() - self.begun, 3)
        try:
            self.file.write(json.dumps({"step": step, "samples": samples, "seconds": seconds, **numbers}) + "\n")
            self.file.flush()
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
        except OSError as error:
            raise TrainingError(
                f"{self.file.name}: cannot be written at step {step} ({error.strerror or error}); free space, then run "
                "the same command again to go on from the last checkpoint"
            ) from error

    def loss_since_save(self) -> float | None:
        """Return the mean of the losses that were written since this was asked last."""
        losses, self.since_save = self.since_save, []
        return sum(losses) / len(losses) if losses else None


def _parsed(line: str) -> dict[str, Any] | None:
    """Return what a line says; None where it is half written."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


class Skipped:
    """skipped.jsonl of one stage: each step that was passed over, why, and what its batch held."""

    def __init__(self, stage: str, folder: Path, first: int, allowed: int, writes: bool):
        self.stage, self.path, self.allowed, self.writes = stage, folder / "skipped.jsonl", allowed, writes
        lines = read_values(self.path)
        self.lines = [line for line in lines if json.loads(line)["step"] <= first]
        if writes and len(self.lines) < len(lines):
            self._write()

    @property
    def count(self) -> dict[str, int]:
        """Return how many steps were skipped, for the summary."""
        return {"skipped": len(self.lines)} if self.lines else {}

    def add(self, step: int, fault: str, items: list[str]) -> None:
        """Record a step; a TrainingError where there are more than allowed."""
        self.lines.append(json.dumps({"step": step + 1, "why": fault, "items": items}, ensure_ascii=False))
        if self.writes:
            self._write()
        if len(self.lines) > self.allowed:
            raise TrainingError(
                f"stage {self.stage}: not finite at step {step + 1} ({fault}), which makes {len(self.lines)} such "
                f"steps, more than stages.*.max_skipped_steps allows ({self.allowed}); {self.path} names their batches "
                "; lower stages.*.lr or the weight"
            )

    def _write(self) -> None:
        write_atomically(self.path, "".join(line + "\n" for line in self.lines).encode())


class MicroBatches:
    """The file that says in how many parts each rank does its share of a batch, so that it fits the memory."""

    def __init__(self, stage: str, folder: Path, share: int):
        self.stage, self.path, self.shard = stage, folder / "micro_batches.json", share
        kept = json.loads(self.path.read_text(encoding="utf-8"))["parts"] if self.path.exists() else 1
        self.count = kept if share % kept == 0 else 1

    def halved(self) -> int:
        """Return how many parts there are once they are smaller; a TrainingError where they cannot be."""
        if (self.shard // self.count) % 2:
            raise TrainingError(
                f"stage {self.stage}: out of memory with {self.shard // self.count} of the batch's items at a time, "
                "which cannot be halved; lower stages.*.batch or the size of the model, or train on more processes"
            )
        return 2 * self.count

    def halve(self) -> None:
        """Take smaller parts from now on."""
        self.count = self.halved()
        write_json(self.path, {"parts": self.count})
