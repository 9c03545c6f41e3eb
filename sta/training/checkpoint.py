"""Checkpoints of a running stage: complete or absent, checked before they are used, the newest ones kept.

A checkpoint is written beside, with the hash of each of its files, brought to the disk and then renamed; older ones go
only after that. No random state is needed, since a step's random numbers follow from its number: so a stage may go on
under another number of processes, but for DeepSpeed's, which share the optimizer's state out among them.
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

from sta.data.sums import first_fault, write_sums
from sta.errors import TrainingError

KEEP = 2
SPOILT = ".spoilt"  # at the end of the name of a checkpoint that was passed over


def all_of(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint that was renamed into place and not passed over, newest first."""
    found = [path for path in folder.glob("step-*") if not path.suffix]
    return [(int(path.name.partition("-")[2]), path) for path in sorted(found, reverse=True)]


def save(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Save everything that the next step depends on; all ranks call it."""
    final, partial = folder / f"step-{step:07d}", folder / f"step-{step:07d}.partial"
    try:
        if accelerator.is_main_process:
            for unfinished in folder.glob("*.partial"):
                shutil.rmtree(unfinished)
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            state = {"step": step, "processes": accelerator.num_processes, "kind": accelerator.distributed_type.value}
            (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
            write_sums(partial)
            for path in (*partial.rglob("*"), partial):
                _to_disk(path)
            os.replace(partial, final)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:
        # torch and safetensors have errors of their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise TrainingError(f"{final}: cannot be written ({reason}); the checkpoint before it is whole") from error
    if accelerator.is_main_process:
        _to_disk(folder)
        for old in (*(path for _, path in all_of(folder)[KEEP:]), *folder.glob(f"*{SPOILT}")):
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def _to_disk(path: Path) -> None:
    """Return when a file, or the names in a folder, would survive a loss of power."""
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
    """The newest whole checkpoint, None if there is none at all, or what is wrong with all there are.

    Those that are passed over are renamed, so that they take no whole one's place.
    """
    found, spoilt = all_of(folder), list[Path]()
    for step, path in found:
        fault = first_fault(path)
        if fault is None:
            for other in spoilt:
                os.replace(other, other.with_name(other.name + SPOILT))
            return step, path
        print(f"sta: {fault[0]}: {fault[1]}; this checkpoint is passed over", file=sys.stderr)
        spoilt.append(path)
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
