"""Checkpoints of a running stage: complete or absent, checked before they are used, the newest ones kept.

A checkpoint is written beside, with the hash of each of its files, brought to the disk and then renamed; older ones go
only after that, but for the one with the lowest loss: where a training has gone astray, remove the newer ones to go on
from it. No random state is needed, since a step's random numbers follow from its number: so a stage may go on
under another number of processes, but for DeepSpeed's, which share the optimizer's state out among them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, utils
from accelerate.checkpointing import save_accelerator_state
from safetensors import SafetensorError
from torch import Tensor

from sta.data.checksums import first_fault, write_sums
from sta.distributed import ranks
from sta.errors import TrainingError, first_line
from sta.private import prepared
from sta.training.faults import Faults

KEEP = 2  # newest
SPOILT = ".spoilt"  # at the end of the name of a checkpoint that was passed over


def all_of(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of every checkpoint that was renamed into place and not passed over, newest first."""
    found = [path for path in folder.glob("step-*") if not path.suffix]
    return [(int(path.name.partition("-")[2]), path) for path in sorted(found, reverse=True)]


class Checkpoints(AbstractContextManager["Checkpoints"]):
    """The checkpoints that one stage writes; all ranks call the same methods in the same order.

    Training waits while a checkpoint is copied into the main memory, which takes as much of it again (from a GPU up to
    twice as much, as torch rounds page-locked blocks up). Writing it, hashing it, bringing it to the disk and putting
    it in its place is done beside the steps that follow; `wait`, or the end of the block, returns when it is.
    DeepSpeed's ranks write theirs at once, while all wait.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, faults: Faults):
        self.accelerator, self.folder, self.faults = accelerator, folder, faults
        self.is_deepspeed = accelerator.distributed_type == utils.DistributedType.DEEPSPEED
        self.snapshot = Snapshot()
        self.beside = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.beside.shutdown(wait=True)
        if kind is None:
            self.wait()

    def save(self, step: int, loss: float | None, phase_changed: bool = True) -> None:
        """Save everything that the next step depends on; a TrainingError where this or the last one is not written.

        Args:
            step: how many are done.
            loss: what the steps since the last checkpoint came to; the one with the lowest is kept beside the newest.
            phase_changed: whether the task's `phase_change_step` is past; losses before and after are not compared.
        """
        self.wait()
        partial = self.folder / f"step-{step:07d}.partial"
        if self.accelerator.is_main_process:
            with self._told(partial):
                for unfinished in self.folder.glob("*.partial"):
                    shutil.rmtree(unfinished)
                self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        with self._told(partial):
            files = self._write_now(partial, step)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            processes, kind = self.accelerator.num_processes, self.accelerator.distributed_type.value
            state = {"step": step, "processes": processes, "kind": kind, "loss": loss, "phase_changed": phase_changed}
            self.pending = self.beside.submit(self._put_in_place, partial, state, files)
        elif not self.is_deepspeed:
            with self._told(partial, clears=False):  # the main rank is writing there now
                self.faults.strike("save", step)

    def _write_now(self, partial: Path, step: int) -> dict[str, Any]:
        """Write what only this rank has; returns the files that are to be written beside the steps that follow."""
        accelerator = self.accelerator
        if self.is_deepspeed:
            accelerator.save_state(str(partial))
            self.faults.strike("save", step)
            return {}
        partial.mkdir(parents=True, exist_ok=True)
        save_accelerator_state(str(partial), [], [], [], [], accelerator.process_index, accelerator.step)
        if not accelerator.is_main_process:
            return {}
        return self.snapshot.take(files_of(accelerator))

    def look(self) -> None:
        """Stop where the last checkpoint turns out not to be written, rather than at the next one."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last checkpoint is in its place; the other ranks do not wait."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _put_in_place(self, partial: Path, state: dict[str, Any], files: dict[str, Any]) -> None:
        step, final = state["step"], partial.with_suffix("")
        with self._told(partial):
            for name, content in files.items():
                utils.save(content, partial / name, safe_serialization=name.endswith(".safetensors"))
            if files:
                self.faults.strike("save", step)
            (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
            write_sums(partial)
            for path in (*partial.rglob("*"), partial):
                _to_disk(path)
            self.faults.strike("rename", step, partial)
            os.replace(partial, final)
            _to_disk(self.folder)
        self.faults.strike("prune", step)
        for old in (*_superfluous(self.folder), *self.folder.glob(f"*{SPOILT}")):
            shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def _told(self, partial: Path, clears: bool = True) -> Iterator[None]:
        """Turn an error while a checkpoint is written into one sentence; the rank that clears leaves nothing of it."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, SafetensorError) as error:  # the latter two of a full disk too
            if ranks.is_peer_lost(error):  # under DeepSpeed the ranks meet while they save
                raise
            if clears:
                shutil.rmtree(partial, ignore_errors=True)
            reason = getattr(error, "strerror", None) or first_line(error)
            raise TrainingError(
                f"{partial.with_suffix('')}: cannot be written ({reason}); the checkpoint before it is whole"
            ) from error


class Snapshot:
    """A copy of tensors in the main memory, whose place the next copy takes; from a GPU it is page-locked, so fast."""

    def __init__(self) -> None:
        self.copies: list[Tensor] = []

    def take(self, content: Any) -> Any:
        """Return the same dicts and lists, whose tensors later steps do not change."""
        given: list[Tensor] = []
        utils.recursively_apply(lambda tensor: given.append(tensor.detach()), content)
        if [(t.shape, t.dtype) for t in given] != [(c.shape, c.dtype) for c in self.copies]:
            self.copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in given]
        for copy, tensor in zip(self.copies, given, strict=True):
            copy.copy_(tensor, non_blocking=tensor.is_cuda)
        if any(tensor.is_cuda for tensor in given):
            torch.cuda.synchronize()
        copies = iter(self.copies)
        return utils.recursively_apply(lambda _: next(copies), content)


def files_of(accelerator: Accelerator) -> dict[str, Any]:
    """Return what `Accelerator.load_state` reads on every rank, by the file's name: weights, optimizers, average."""
    files: dict[str, Any] = {}
    models, optimizers, others = prepared(accelerator)
    for number, model in enumerate(models):
        weights = accelerator.get_state_dict(model, unwrap=False)
        # tensors of two names have one in it
        files[_numbered(utils.SAFE_WEIGHTS_NAME, number)] = utils.clean_state_dict_for_safetensors(weights)
    for number, optimizer in enumerate(optimizers):
        files[_numbered(f"{utils.OPTIMIZER_NAME}.bin", number)] = optimizer.state_dict()
    for number, custom in enumerate(others):
        files[f"custom_checkpoint_{number}.pkl"] = custom.state_dict()
    return files


def _numbered(name: str, number: int) -> str:
    """As accelerate names the files of several networks or optimizers: model.safetensors, model_1.safetensors."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}_{number}.{suffix}" if number else name


def _superfluous(folder: Path) -> list[Path]:
    """Return all but the newest checkpoints and the one with the lowest loss of those that compare with the newest."""
    every = {path: _state(path) for _, path in all_of(folder)}
    older, last = list(every)[KEEP:], next(iter(every.values()), {})
    known = {
        path: state["loss"]
        for path, state in every.items()
        if state.get("loss") is not None and state.get("phase_changed") == last.get("phase_changed")
    }
    best = min(known, key=lambda path: (known[path], path), default=None)
    return [path for path in older if path != best]


def _state(checkpoint: Path) -> dict[str, Any]:
    """Return what `state.json` says; nothing where it cannot be read."""
    try:
        return dict(json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _to_disk(path: Path) -> None:
    """Return when a file, or the names in a folder, would survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def restore(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint whose files are what was written, on all ranks; the step it was saved after, or 0."""
    found = ranks.run_on_main(lambda: _newest_whole(folder))
    if found is None:
        return 0
    step, checkpoint = found
    _load(accelerator, checkpoint)
    return step


def _newest_whole(folder: Path) -> tuple[int, Path] | None:
    """Return the newest whole checkpoint, if any; those passed over are renamed, to take no whole one's place."""
    found, spoilt = all_of(folder), list[Path]()
    for step, path in found:
        fault = first_fault(path)
        if fault is None:
            for other in spoilt:
                os.replace(other, other.with_name(other.name + SPOILT))
            return step, path
        print(f"sta: {fault[0]}: {fault[1]}; this checkpoint is passed over", file=sys.stderr)
        spoilt.append(path)
    if found:
        raise TrainingError(f"{folder}: none of its checkpoints is whole; remove the folder to start the stage again")
    return None


def _load(accelerator: Accelerator, checkpoint: Path) -> None:
    state = _state(checkpoint)
    processes, kind = state["processes"], accelerator.distributed_type.value
    if "DEEPSPEED" in (kind, state["kind"]) and (kind, accelerator.num_processes) != (state["kind"], processes):
        raise TrainingError(
            f"{checkpoint}: was saved by {processes} process(es) ({state['kind']}) and is loaded by "
            f"{accelerator.num_processes} ({kind}); under DeepSpeed go on as it was begun, or remove it to start again"
        )
    try:
        accelerator.load_state(str(checkpoint))
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{checkpoint}: does not load ({first_line(error)}); it was saved by {processes} process(es), "
            "remove it to start the stage again"
        ) from error
