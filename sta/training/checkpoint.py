"""Checkpoints of a running stage: complete or absent, the newest ones kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from sta.errors import TrainingError

KEEP = 2


def latest(folder: Path) -> tuple[int, Path] | None:
    """(step, folder) of the newest complete checkpoint."""
    found = sorted(p for p in folder.glob("step-*") if (p / "state.json").exists() and ".partial" not in p.name)
    return (json.loads((found[-1] / "state.json").read_text())["step"], found[-1]) if found else None


def save(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Save everything that the next step depends on; all ranks call it.

    The state is written beside, then renamed, and older checkpoints go only after that.
    """
    final, partial = folder / f"step-{step:07d}", folder / f"step-{step:07d}.partial"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and not final.exists():
            (partial / "state.json").write_text(json.dumps({"step": step, "processes": accelerator.num_processes}))
            os.replace(partial, final)
            for old in sorted(p for p in folder.glob("step-*") if p.suffix != ".partial")[:-KEEP]:
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


def load(accelerator: Accelerator, checkpoint: Path) -> None:
    """Restore what `save` saved.

    Raises:
        TrainingError: it does not fit this recipe or this number of processes.
    """
    processes = json.loads((checkpoint / "state.json").read_text())["processes"]
    try:
        accelerator.load_state(str(checkpoint))
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{checkpoint}: does not load ({str(error).splitlines()[0]}); it was saved by {processes} process(es), "
            "remove it to start the stage again"
        ) from error
