"""The stages of a run, in order, and how each is done."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sta.config.recipe import Optimisation, Recipe, Stages, dump_recipe, load_recipe, makes_the_same
from sta.config.variants import find_variant
from sta.data.cache import write_atomically, write_json
from sta.data.jsonlines import read_values
from sta.data.lock import Lock
from sta.distributed import ranks
from sta.distributed.sharding import BatchShard
from sta.distributed.team import Team
from sta.errors import RecipeError, TrainingError
from sta.training import runtime
from sta.training.loop import train
from sta.training.prepare import is_prepared, prepare
from sta.training.task import Task
from sta.training.workspace import Workspace

RECIPE, ENVIRONMENT = "recipe.yaml", "environment.json"
TAKEN = "{}: this folder holds a run of another recipe; change `name=...`, choose another --out, or remove it"


def stage_names(recipe: Recipe) -> list[str]:
    """Return the stages of a recipe, in order."""
    found = ["prepare"]
    for section in Stages.model_fields:
        found += task_of(recipe, section).stages(recipe, section)
    return found


def task_of(recipe: Recipe, stage: str) -> type[Task]:
    """Return what a stage, or all stages of a section, are done by; its code is imported when it is asked for."""
    section = stage.partition("-")[0]
    name = getattr(recipe.stages, section).task or section
    return find_variant("sta.training.tasks", name, Task, f"stages.{section}.task")  # type: ignore[type-abstract]


def weights_of(recipe: Recipe, stage: str) -> Mapping[str, float]:
    """Return the weight of each loss of a stage, by its settings or else its task."""
    losses: Mapping[str, float] | None = getattr(settings_of(recipe, stage), "losses", None)
    return losses or vars(task_of(recipe, stage)).get("weights", {})


def open_run(recipe: Recipe, out: Path) -> Workspace:
    """Make the run's folder with the recipe as resolved and what it runs on; every process of a launch calls this.

    A folder in which another recipe made nothing is taken over; a run of another recipe is a RecipeError.
    """
    runtime.join()
    workspace = Workspace(recipe, out)
    ranks.run_on_main(lambda: _make_folder(workspace))
    return workspace


def _make_folder(workspace: Workspace) -> None:
    for section in Stages.model_fields:  # what is not there is refused before a folder is made
        task_of(workspace.recipe, section).check(workspace.recipe)
    workspace.source.check()
    path = workspace.folder / RECIPE
    if _is_of_another_recipe(workspace):
        if not all(_is_nothing(left) for left in workspace.folder.iterdir()):
            raise RecipeError(TAKEN.format(path))
        for left in workspace.folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    said = dump_recipe(workspace.recipe).encode()
    if not path.exists() or path.read_bytes() != said:
        write_atomically(path, said)
    write_json(workspace.folder / ENVIRONMENT, environment())


def _is_nothing(path: Path) -> bool:
    """Return whether a file or folder of a run's folder is there before anything is made, and nobody is at work."""
    if path.is_dir():
        left = (p for p in path.iterdir() if p.name != "log" and p.suffix != ".lock")
        return not any(not p.is_dir() or any(p.iterdir()) for p in left)
    if path.suffix == ".lock":
        with Lock(path.with_suffix("")) as lock:
            return lock.take()
    return path.name in (RECIPE, ENVIRONMENT) or path.suffix == ".partial"


def _is_of_another_recipe(workspace: Workspace) -> bool:
    """Return whether a folder has a run of another recipe; settings that came after that was written are defaults."""
    path = workspace.folder / RECIPE
    try:
        return path.exists() and not makes_the_same(load_recipe(path), workspace.recipe)
    except RecipeError:  # cut short, or of a version that had other settings
        return True


def environment() -> dict[str, object]:
    """Return what the run runs on: versions, device, commit."""
    packages = ("torch", "transformers", "open_clip_torch", "diffusers", "accelerate", "deepspeed", "datasets")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "python": platform.python_version(), "device": device, "threads": torch.get_num_threads(),
        "commit": git.stdout.strip() or None, "packages": {p: metadata.version(p) for p in packages},
    }  # fmt: skip


def _record_start(workspace: Workspace, name: str, processes: int) -> None:
    """Add a line to a stage's `log/environment.jsonl`: what this start of it runs on."""
    path = workspace.stage(name) / "log" / "environment.jsonl"
    before = path.read_bytes() if path.exists() else b""
    write_atomically(path, before + json.dumps({**environment(), "processes": processes}).encode() + b"\n")


def provenance(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Return of each stage that was trained: its seconds, and the commits and machines of its starts."""
    found = {}
    for path in sorted(workspace.folder.glob("*/log/metrics.jsonl")):
        starts = [json.loads(line) for line in read_values(path.with_name("environment.jsonl"))]
        machines = [f"{s['device']}, {s['processes']} x {s['threads']} threads" for s in starts]
        found[path.parent.parent.name] = {
            "seconds": json.loads(read_values(path)[-1])["seconds"],
            "commits": list(dict.fromkeys(s["commit"] for s in starts)),
            "machines": list(dict.fromkeys(machines)),
        }
    return found


def _processor() -> str:
    """Return the processor's model, as Linux names it, or its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def run_stage(workspace: Workspace, name: str) -> Path:
    """Do one stage unless it is done, or another launch trains it now; every process of a launch calls this."""
    known = stage_names(workspace.recipe)
    if name not in known:
        raise RecipeError(f"stage '{name}' is not one of this recipe's: {', '.join(known)}")
    final = workspace.stage(name) / "final"
    runtime.join()
    done = partial(is_prepared, workspace) if name == "prepare" else final.exists
    if ranks.run_on_main(done):  # a rank that looked for itself might look when it has just been made
        return final
    accelerator = runtime.start(workspace.recipe.precision)
    if name == "prepare":
        with Lock(workspace.stage(name)) as lock:  # says that the run is begun; another launch of it may prepare too
            ranks.run_on_main(lambda: _take(lock, workspace))
            return prepare(workspace, Team.of(accelerator))
    folder, settings = workspace.stage(name), settings_of(workspace.recipe, name)
    with Lock(folder) as lock:
        if not ranks.run_on_main(lambda: _take(lock, workspace)):
            raise TrainingError(
                f"{folder}: another process trains this stage now; wait for it, or change `name=...` or --out"
            )
        ranks.run_on_main(lambda: _record_start(workspace, name, accelerator.num_processes))
        task_of(workspace.recipe, name).fill_caches(workspace, name, accelerator.device, Team.of(accelerator))
        task = build_task(workspace, name, accelerator)
        return train(task, settings, folder, workspace.recipe.seed, accelerator)


def _take(lock: Lock, workspace: Workspace) -> bool:
    """Take a stage's lock, with which no other recipe takes the run's folder over; it may have done so before."""
    taken = lock.take()
    if _is_of_another_recipe(workspace):
        raise RecipeError(TAKEN.format(workspace.folder / RECIPE))
    return taken


def settings_of(recipe: Recipe, name: str) -> Optimisation:
    """Return the optimisation section of a stage; every distill stage shares one."""
    settings = getattr(recipe.stages, name.partition("-")[0])
    assert isinstance(settings, Optimisation)
    return settings


def build_task(workspace: Workspace, name: str, accelerator: Accelerator) -> Task:
    """Return the task of a training stage, whose earlier stages are done."""
    shard = BatchShard(accelerator.process_index, accelerator.num_processes)
    return task_of(workspace.recipe, name).build(workspace, name, accelerator.device, shard)
