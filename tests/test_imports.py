"""The import contract: which part of the package may know of which, and where the heavyweights enter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "sta").rglob("*.py"))
BASE = {"errors", "signals", "config"}
#: part -> the parts it may import, besides itself.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "signals": {"errors"},
    "private": set(),
    "config": {"errors"},
    "data": BASE,
    "progress": {"distributed"},
    "distributed": BASE | {"data", "private", "progress"},
    "models": BASE | {"data", "distributed", "private"},
    "training": BASE | {"data", "distributed", "models", "private", "progress"},
    "metrics": BASE | {"data"},
    "inference": BASE | {"data", "distributed", "models", "training", "metrics"},
    "evaluation": BASE | {"data", "distributed", "models", "training", "metrics", "inference", "progress"},
    "plan": BASE | {"data", "distributed", "models", "training", "metrics", "progress"},
    "bench": BASE
    | {"data", "distributed", "models", "training", "metrics", "inference", "evaluation", "private", "progress"},
    "cli": BASE
    | {"data", "distributed", "models", "training", "metrics", "inference", "evaluation", "bench", "plan", "progress"},
    "train": {"cli"},
    "__main__": {"cli"},
    "__init__": {"config", "inference"},  # the public names, on first use: see test_importing_is_light
}
#: heavyweight -> the modules or packages that may import it.
HOMES = {
    "open_clip": {"sta/models/teachers", "sta/training/tasks/teacher.py"},
    "accelerate": {"sta/training", "sta/bench", "sta/distributed/team.py", "sta/private.py"},
    "deepspeed": {"sta/training", "sta/private.py"},
    "diffusers": {"sta/models", "sta/inference", "sta/bench/reference.py"},
    "transformers": {"sta/models/backbones", "sta/models/recogniser.py", "sta/models/teachers",
                     "sta/data/synthesis/vits.py", "sta/private.py"},
    "datasets": {"sta/data/rows.py", "sta/metrics/modules"},
    "torch": {"sta/distributed", "sta/models", "sta/training", "sta/metrics", "sta/inference", "sta/evaluation",
              "sta/bench", "sta/plan", "sta/cli", "sta/private.py", "sta/data/synthesis/vits.py"},
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(module: str) -> str:
    """`sta.data.rows` -> `data`; `sta` -> `__init__`."""
    return (*module.split("."), "__init__")[1]


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, as dotted names; `from sta import x` as `sta.x`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            assert node.module is not None
            found |= {f"sta.{a.name}" for a in node.names} if node.module == "sta" else {node.module}
    return found


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30
    assert {part_of(name_of(p).removesuffix(".py").replace("/", ".")) for p in MODULES} <= set(ALLOWED)
    assert any("sta.config.recipe" in imports(p) for p in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_knows_only_what_lies_below(path: Path) -> None:
    part = part_of(name_of(path).removesuffix(".py").replace("/", "."))
    known = {part_of(m) for m in imports(path) if m == "sta" or m.startswith("sta.")} - {part, "__version__"}
    assert known <= ALLOWED[part], f"{name_of(path)} imports {sorted(known - ALLOWED[part])}"


@pytest.mark.parametrize("package", HOMES)
def test_heavyweights_enter_in_few_places(package: str) -> None:
    users = [name_of(p) for p in MODULES if any(m.split(".")[0] == package for m in imports(p))]
    strangers = [u for u in users if not any(u == home or u.startswith(home + "/") for home in HOMES[package])]
    assert not strangers, f"{package} is imported in {strangers}"


def test_every_allowed_home_exists() -> None:
    assert all((ROOT / home).exists() for homes in HOMES.values() for home in homes)


@pytest.mark.parametrize("module", ["sta", "sta.config.recipe", "sta.config.cards"])
def test_importing_is_light(module: str) -> None:
    heavy = ["torch", "transformers", "diffusers", "datasets", "open_clip", "accelerate", "deepspeed"]
    heavy += ["numpy"] if module == "sta" else []
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
