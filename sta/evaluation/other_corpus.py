"""A finished run measured on a corpus that it was not trained on, its report beside the run's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sta.config.recipe import CACHE, measured_on
from sta.data.corpora.base import CorpusSource
from sta.distributed import ranks
from sta.distributed.team import Team
from sta.errors import RecipeError
from sta.evaluation.report import evaluate_again
from sta.metrics.rows import Report
from sta.training import runtime
from sta.training.prepare import prepare_tests
from sta.training.workspace import Workspace


@dataclass
class OtherCorpus(Workspace):
    """The folders of a run with another corpus; what the stages left, and what training made, is the run's."""

    trained: Workspace

    @cached_property
    def source(self) -> CorpusSource:
        """The corpus, of which nothing is trained on."""
        source = super().source
        source.alone = False
        return source

    @cached_property
    def cache(self) -> Path:
        """The corpus's folder: not one that could be trained on, as it may lack rows."""
        return self.out / CACHE / f"tests-{super().cache.name}"

    @property
    def prepared(self) -> dict[str, Path]:
        """The folders that are made here."""
        return {what: path for what, path in super().prepared.items() if what in ("corpus", "pixels")}

    def made(self, what: str) -> Path:
        """Return a folder of `prepared`, or one of the run's own."""
        return super().made(what) if what in self.prepared else self.trained.made(what)


def evaluate_on(workspace: Workspace, name_or_path: str, overrides: Sequence[str] = ()) -> tuple[Path, Report]:
    """Measure a finished run on the corpus of a file; returns `evaluation-NAME` in the run's folder, and the report.

    Rows and pictures are prepared, in the run's languages; every process of a launch calls this.

    Raises:
        StaError: the file or the corpus is not what it should be, or another launch measures the run now.
    """
    name = f"evaluation-{Path(name_or_path).stem}"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise RecipeError(f"{name_or_path}: the report's folder would be '{name}'; name the file in a-z, 0-9, _ and -")
    recipe = measured_on(workspace.recipe, name_or_path, overrides)
    judge = workspace.recipe.evaluation.model_copy(update={"judge": recipe.evaluation.judge})
    trained = Workspace(workspace.recipe.model_copy(update={"evaluation": judge}), workspace.out)
    other = OtherCorpus(recipe, workspace.out, trained)
    accelerator = runtime.start(recipe.precision)
    ranks.run_on_main(other.source.check)
    prepare_tests(other, Team.of(accelerator))
    return other.folder / name, evaluate_again(other, name, trained)
