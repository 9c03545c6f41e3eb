"""Metrics: arrays and lists in, rows of a report out. Loads no model and no corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluate import EvaluationModule

MODULES = Path(__file__).parent / "modules"


def load_metric(name: str) -> EvaluationModule:
    """Load one of the package's metrics as a module of Hugging Face `evaluate`, from disk, without a network."""
    known = sorted(p.stem for p in MODULES.glob("*/*.py") if p.stem == p.parent.name)
    if name not in known:
        raise ValueError(f"unknown metric module {name!r}; known: {', '.join(known)}")
    import evaluate

    return evaluate.load(str(MODULES / name))
