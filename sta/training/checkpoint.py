"""Checkpoints of a running stage: complete or absent, checked before they are used, the newest ones kept.

A checkpoint is written beside, with the hash of each of its files, brought to the disk and then renamed; older ones go
only after that. Random numbers are no part of it, since a step's follow from its number: so a stage may go on under
another number of processes, but for DeepSpeed's, which share the optimizer's state out among them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from sta.data.sums import SUMS, first_fault, write_sums
from sta.errors import TrainingError

KEEP = 2


def latest(folder: Path) -> tuple[int, Path] | None:
    """(step, folder) of the newest complete checkpoint."""
    found = _complete(folder)
    return found[0] if found else None


def _complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every complete checkpoint, newest first."""
    found = [p for p in folder.glob("step-*") if (p / SUMS).exists() and ".partial" not in p.name]
    return [(int(path.name.partition("-")[2]), path) for path in sorted(found, reverse=True)]


def save(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Save everything that the next step depends on; all ranks call it."""
    final, partial = folder / f"step-{step:07d}", folder / f"step-{step:07d}.partial"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            state = {"step": step, "processes": accelerator.num_processes, "kind": accelerator.distributed_type.value}
            (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
            write_sums(partial)
            _to_disk(partial)
            if final.exists():
                shutil.rmtree(final)  # it was passed over: not whole
            os.replace(partial, final)
            _to_disk(folder)
            for _, old in _complete(folder)[KEEP:]:
                shutil.rmtree(old)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:
        # torch and safetensors have errors of their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TrainingError(f"{final}: cannot be written ({reason}); the checkpoint before it is whole") from error
    accelerator.wait_for_everyone()


def _to_disk(folder: Path) -> None:
    """Return when the files right in a folder and below, and their names, would survive a loss of power."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def restore(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest checkpoint whose files are what was written, on all ranks; the step it was saved after, or 0.

    Raises:
        TrainingError: no checkpoint is whole, or it does not fit this recipe or this number of processes.
    """
    chosen: list[tuple[int, Path] | str | None] = [None]
    if accelerator.is_main_process:
        chosen = [_newest_whole(folder)]
    if accelerator.num_processes > 1:
        broadcast_object_list(chosen)
    found = chosen[0]
    if isinstance(found, str):
        raise TrainingError(found)
    if found is None:
        return 0
    step, checkpoint = found
    _load(accelerator, checkpoint)
    return step


def _newest_whole(folder: Path) -> tuple[int, Path] | str | None:
    """The newest whole checkpoint, None if there is none at all, or what is wrong with all there are."""
    found = _complete(folder)
    for step, path in found:
        fault = first_fault(path)
        if fault is None:
            return step, path
        print(f"sta: {fault[0]}: {fault[1]}; this checkpoint is passed over", file=sys.stderr)
    return f"{folder}: none of its checkpoints is whole; remove the folder to start the stage again" if found else None


def _load(accelerator: Accelerator, checkpoint: Path) -> None:
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
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
            f"{checkpoint}: does not load ({str(error).splitlines()[0]}); it was saved by {processes} process(es), "
            "remove it to start the stage again"
        ) from error
