"""A finished run measured on a corpus that it was not trained on, its report beside the run's own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sta.config.cards import LanguageCard
from sta.config.recipe import CACHE, Measured, load_measured
from sta.data.corpora.base import CorpusSource
from sta.distributed import ranks
from sta.distributed.team import Team
from sta.errors import RecipeError
from sta.evaluation.evaluator import Evaluator
from sta.evaluation.report import evaluate_again
from sta.inference.pipeline import SpeechToImagePipeline
from sta.metrics.rows import Report
from sta.training import runtime
from sta.training.prepare import prepare_tests
from sta.training.workspace import Workspace


@dataclass
class OtherCorpus(Workspace):
    """The folders of a run with another corpus; what the stages left, and what training made, is the run's.

    Attributes:
        trained: the run with its own corpus.
        encoded_as: the languages that are measured, where the run lacks them -> its own that they are encoded as.
    """

    trained: Workspace
    encoded_as: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, workspace: Workspace, measured: Measured) -> OtherCorpus:
        """Put another corpus in the place of a run's own."""
        recipe, (corpus, evaluation) = workspace.recipe, (measured.corpus, measured.evaluation)
        judge = recipe.evaluation.model_copy(update={"judge": evaluation.judge})
        trained = Workspace(recipe.model_copy(update={"evaluation": judge}), workspace.out)
        languages = list(measured.encoded_as) or recipe.languages
        other = recipe.model_copy(update={"corpus": corpus, "evaluation": evaluation, "languages": languages})
        return cls(other, workspace.out, trained, measured.encoded_as)

    @cached_property
    def cards(self) -> dict[str, LanguageCard]:
        """The languages by code; one that the run lacks has the card of that which it is encoded as."""
        own = {code: self.encoded_as.get(code, code) for code in self.recipe.languages}
        return {code: self.trained.cards[name].model_copy(update={"code": code}) for code, name in own.items()}

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

    def check(self) -> None:
        """Refuse, before anything slow is done, a corpus that is not there, and a run whose own is not."""
        self.source.check()
        self.trained.made("corpus")

    def evaluator(self, workspace: Workspace, pipe: SpeechToImagePipeline) -> Evaluator:
        """Return what measures a workspace like this one, beside the run's own corpus."""
        self.add_languages(pipe)
        return Evaluator(workspace, pipe, Evaluator(self.trained, pipe))

    def add_languages(self, pipe: SpeechToImagePipeline) -> None:
        """Have a pipeline encode the languages that it lacks."""
        for code, own in self.encoded_as.items():
            pipe.languages[code] = pipe.pack(own)


def evaluate_on(workspace: Workspace, name_or_path: str, overrides: Sequence[str] = ()) -> tuple[Path, Report]:
    """Measure a finished run on the corpus of a file; returns `evaluation-NAME` in the run's folder, and the report.

    Rows and pictures are prepared; every process of a launch calls this.

    Raises:
        StaError: the file or the corpus is not what it should be, or another launch measures the run now.
    """
    name = f"evaluation-{Path(name_or_path).stem}"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise RecipeError(f"{name_or_path}: the report's folder would be '{name}'; name the file in a-z, 0-9, _ and -")
    other = OtherCorpus.of(workspace, load_measured(workspace.recipe, name_or_path, overrides))
    accelerator = runtime.start(other.recipe.precision)
    ranks.run_on_main(other.check)
    prepare_tests(other, Team.of(accelerator))
    return other.folder / name, evaluate_again(other, name, other.evaluator)
