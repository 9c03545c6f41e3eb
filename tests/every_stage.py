"""Stages of a recipe in one launch, for the tests: `every_stage.py OUT NAME STAGES [key=value ...]`.

NAME is of the runs; `{}` in it stands for the stage, so that each stage has a run of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sta.config.recipe import load_recipe
from sta.training.stages import open_run, run_stage

if __name__ == "__main__":
    out, name, stages, *overrides = sys.argv[1:]
    for stage in stages.split(","):
        recipe = load_recipe("garden-tiny", [f"name={name.format(stage)}", *overrides])
        run_stage(open_run(recipe, Path(out)), stage)
