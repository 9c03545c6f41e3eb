"""Find the recipe, run or release that the options of a command mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sta.errors import StaError

if TYPE_CHECKING:
    from sta.config.recipe import Recipe
    from sta.training.workspace import Workspace


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Load the recipe named, with its overrides."""
    from sta.config.recipe import load_recipe

    seed = [] if vars(options).get("seed") is None else [f"seed={options.seed}"]
    return load_recipe(options.recipe, [*options.overrides, *seed])


def release_of(given: Path | None) -> Path:
    """Return the folder of the release meant: the one given, $STA_WEIGHTS, the newest below runs/, or what ships."""
    from sta.inference.release import PRETRAINED
    from sta.inference.weights import local

    named = given or (Path(os.environ["STA_WEIGHTS"]) if os.environ.get("STA_WEIGHTS") else None)
    if named is not None:
        return local(str(named))
    found = sorted(Path("runs").glob("*/release"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else PRETRAINED


def finished_run(folder: Path) -> Workspace:
    """Open the run of a folder, or of the release in it, which no stage may be newer than."""
    from sta.config.recipe import load_recipe
    from sta.inference.release import outdated
    from sta.training.workspace import Workspace

    folder = folder.parent if folder.name == "release" else folder
    if not (folder / "recipe.yaml").exists():
        raise StaError(f"{folder}: not a run's folder, it has no recipe.yaml; name one such as runs/garden-mini")
    workspace = Workspace(load_recipe(folder / "recipe.yaml"), folder.resolve().parent)
    if workspace.folder != folder.resolve():
        raise StaError(f"{folder}: holds the run '{workspace.recipe.name}'; give the folder that name again")
    if not (folder / "release").exists():
        raise StaError(f"{folder}: has no release/ yet; `sta run` finishes it")
    if words := outdated(workspace, workspace.folder / "release"):
        raise StaError(f"{words}; `sta run` makes it anew")
    return workspace
