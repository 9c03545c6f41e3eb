"""A run's report: every number, the pictures that are shown, and the files they are written to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sta import ranks
from sta.data.audio import wav_bytes
from sta.data.cache import build_folder
from sta.data.lock import Lock
from sta.errors import StaError
from sta.evaluation.bounds import bound_rows, swapped_rows
from sta.evaluation.examiner import Examiner
from sta.evaluation.spoken import condition_rows, every_mood_rows
from sta.metrics.page import Example, write_grid, write_page
from sta.metrics.rows import Report, Row, Where, bootstrap
from sta.models.vq import to_pixels
from sta.pipeline import repeat_tokens
from sta.release import PARTS, load_release
from sta.training.progress import Bar
from sta.training.stages import environment, provenance
from sta.training.workspace import Workspace


def evaluate(workspace: Workspace, release: Path) -> Report:
    """Measure a run's release; writes `evaluation/report.json`, `report.html` and `grid.png`.

    Every process of a launch calls this, and the main one writes.

    Raises:
        StaError: another launch measures the run now.
    """
    folder = workspace.folder / "evaluation"
    if not ranks.on_main(folder.exists):
        with _measuring(folder):
            _measure(workspace, release, folder)
    return ranks.on_main(lambda: Report.read(folder / "report.json"))


@contextmanager
def _measuring(folder: Path) -> Iterator[None]:
    """Let no other launch make a run's evaluation in the block."""
    with Lock(folder) as lock:
        if not ranks.on_main(lock.take):
            raise StaError(f"{folder}: another process measures this run now; wait for it")
        yield


def _measure(workspace: Workspace, release: Path, folder: Path) -> None:
    examiner = Examiner(workspace, load_release(release))
    ranks.on_main(examiner.fill_caches)
    rows, examples = _rows(examiner), _examples(examiner)
    report = Report(_meta(workspace) | examiner.extractor, rows)

    def fill(partial: Path) -> None:
        _write(partial, report, examples)
        if (release / PARTS).exists():
            shutil.copy(release / PARTS, partial / PARTS)

    ranks.on_main(lambda: build_folder(folder, fill))


def _rows(examiner: Examiner) -> list[Row]:
    """Every number of the report."""
    found: list[Row] = []
    pictures, shown = [], []
    languages, conditions = examiner.workspace.recipe.languages, examiner.settings.conditions
    steps = len(languages) * (len(examiner.splits) + 2 + len(conditions)) + 1
    with Bar("evaluate", steps, "parts") as bar:
        for language in languages:
            for split in examiner.splits:
                rows = examiner.pick(split, language)
                if len(rows):
                    drawn, measured = _split(examiner, rows, language, split)
                    pictures.append(drawn)
                    shown.append(rows)
                    found += measured
                elif ranks.is_main():
                    print(f"evaluate: the {split} split has no row in language '{language}', left out", file=sys.stderr)
                bar.advance()
            if examiner.judge is not None:
                found += bound_rows(examiner, language, examiner.hardest)
                bar.advance()
                found += swapped_rows(examiner, language)
                found += every_mood_rows(examiner, language)
            bar.advance()
            for condition in conditions if len(examiner.pick(examiner.hardest, language)) else ():
                found += condition_rows(examiner, language, condition)
                bar.advance()
        where = Where(language="all", split="all", condition="clean", system="speech")
        drawn = torch.cat(pictures)
        found += examiner.fidelity(drawn, np.concatenate(shown), where) + examiner.inception_score(drawn, where)
    return found


def _split(examiner: Examiner, rows: np.ndarray, language: str, split: str) -> tuple[Tensor, list[Row]]:
    """The pictures of a split's recordings, and what is measured on them."""
    where = Where(language=language, split=split, condition="clean", system="speech")
    tokens = examiner.hear(rows, language)
    pictures = examiner.draw(tokens, examiner.seeds(rows))
    found = [Row.of("bits", bootstrap(tokens.bits.cpu().numpy()), len(rows), **where)]
    found += examiner.retrieval(tokens, rows, where)
    if examiner.judge is None:
        return pictures, found
    reading = examiner.judge.read(examiner.real(rows))
    pairs = zip(reading, examiner.all_of(rows), strict=True)
    right = np.array([np.mean([read[k] == v for k, v in truth.items() if k in read]) for read, truth in pairs])
    found.append(Row.of("reader", bootstrap(right), len(rows), **where))
    return pictures, found + examiner.marks(examiner.judge.read(pictures), rows, **where)


def _examples(examiner: Examiner) -> list[Example]:
    """What the page shows: recordings of the hardest split, several drawings each."""
    shown = []
    for language in examiner.workspace.recipe.languages:
        rows, times = examiner.pick(examiner.hardest, language)[: examiner.settings.pictures], examiner.settings.samples
        if not len(rows):
            continue
        seeds = [s + k for s in examiner.seeds(rows) for k in range(times)]
        pictures = examiner.draw(repeat_tokens(examiner.hear(rows, language), times), seeds)
        readings = examiner.judge.read(pictures) if examiner.judge else []
        for number, row in enumerate(rows):
            mine = slice(number * times, (number + 1) * times)
            shown.append(_example(examiner, int(row), language, pictures[mine], readings[mine]))
    return shown


def _example(examiner: Examiner, row: int, language: str, pictures: Tensor, readings: list[dict[str, str]]) -> Example:
    truth = examiner.said(np.array([row]))[0] if examiner.judge else {}
    return Example(
        caption=examiner.corpus.column("text")[row], language=language,
        direction=examiner.workspace.cards[language].direction, mood=examiner.moods[row] or "",
        heard=f"split {examiner.hardest}", audio=wav_bytes(examiner.corpus.waveform(row)),
        truth=examiner.corpus.picture(row), drawn=[Image.fromarray(p.numpy()) for p in to_pixels(pictures)],
        said=truth, read=readings,
    )  # fmt: skip


def _write(folder: Path, report: Report, examples: Sequence[Example]) -> None:
    report.write(folder / "report.json")
    write_page(folder / "report.html", report, examples, report.meta["recipe"])
    write_grid(folder / "grid.png", examples)


def evaluate_again(workspace: Workspace) -> Report:
    """Measure a finished run anew; the report that it has stays until there is another.

    Raises:
        StaError: another launch measures it now.
    """
    new, old = workspace.folder / "evaluation", workspace.folder / "evaluation.old"
    with _measuring(new):
        ranks.on_main(lambda: _set_aside(new, old))
        try:
            _measure(workspace, workspace.folder / "release", new)
        finally:
            if ranks.is_main() and old.exists():
                shutil.rmtree(old) if new.exists() else old.replace(new)
        return ranks.on_main(lambda: Report.read(new / "report.json"))


def _set_aside(new: Path, old: Path) -> None:
    if new.exists():
        shutil.rmtree(old, ignore_errors=True)
        new.replace(old)


def _meta(workspace: Workspace) -> dict[str, Any]:
    recipe = workspace.recipe
    return {
        "recipe": recipe.name, "seed": recipe.seed, "languages": recipe.languages,
        "sampling": recipe.sampling.model_dump(), "training": provenance(workspace), **environment(),
    }  # fmt: skip
