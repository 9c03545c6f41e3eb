"""A run's report: every number, the pictures that are shown, and the files they are written to."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sta.data.audio import wav_bytes
from sta.data.cache import build_folder
from sta.data.lock import Lock
from sta.distributed import ranks
from sta.errors import StaError
from sta.evaluation.bounds import bound_rows, swapped_rows
from sta.evaluation.evaluator import Evaluator
from sta.evaluation.spoken import condition_rows, every_mood_rows
from sta.evaluation.systems import split_rows
from sta.evaluation.zero_shot import zero_shot_rows
from sta.inference.pipeline import SpeechToImagePipeline, repeat_condition
from sta.inference.release import PARTS, load_release
from sta.metrics.fidelity import fid_rows
from sta.metrics.judged import mean_rows
from sta.metrics.page import Example, write_grid, write_page
from sta.metrics.rows import Report, ResultKey, Row, bootstrap, everywhere
from sta.models.vq import to_pixels
from sta.progress import Bar
from sta.training.stages import environment, provenance
from sta.training.workspace import Workspace

Build = Callable[[Workspace, SpeechToImagePipeline], Evaluator]


def evaluate(workspace: Workspace, release: Path) -> Report:
    """Measure a run's release; writes `evaluation/report.json`, `report.html` and `grid.png`.

    Every process of a launch calls this, and the main one writes.

    Raises:
        StaError: another launch measures the run now.
    """
    folder = workspace.folder / "evaluation"
    if not ranks.run_on_main(folder.exists):
        with _measuring(folder):
            _measure(workspace, release, folder)
    return ranks.run_on_main(lambda: Report.read(folder / "report.json"))


@contextmanager
def _measuring(folder: Path) -> Iterator[None]:
    """Let no other launch make a run's evaluation in the block."""
    with Lock(folder) as lock:
        if not ranks.run_on_main(lock.take):
            raise StaError(f"{folder}: another process measures this run now; wait for it")
        yield


def _measure(workspace: Workspace, release: Path, folder: Path, build: Build = Evaluator) -> None:
    evaluator = build(workspace, load_release(release))
    ranks.run_on_main(evaluator.fill_caches)
    rows, (examples, diversity) = _rows(evaluator), _examples(evaluator)
    rows += diversity
    if evaluator.judge is None:
        rows += mean_rows(rows, workspace.recipe.languages)
    report = Report(_meta(workspace) | evaluator.extractor, rows)

    def fill(partial: Path) -> None:
        _write(partial, report, examples)
        if (release / PARTS).exists():
            shutil.copy(release / PARTS, partial / PARTS)

    ranks.run_on_main(lambda: build_folder(folder, fill))


def _rows(evaluator: Evaluator) -> list[Row]:
    """Measure every number of the report."""
    found: list[Row] = []
    pictures, shown, drawn_of = [], [], []
    languages, conditions = evaluator.workspace.recipe.languages, evaluator.settings.conditions
    steps = len(languages) * (len(evaluator.splits) + 2 + len(conditions)) + 1
    with Bar("evaluate", steps, "parts") as bar:
        for language in languages:
            for split in evaluator.splits:
                rows = evaluator.select_rows(split, language)
                if len(rows):
                    measure = split_rows if evaluator.judge is None else _split
                    drawn, measured = measure(evaluator, rows, language, split)
                    pictures.append(drawn)
                    shown.append(rows)
                    drawn_of.append(split)
                    found += measured
                elif ranks.is_main():
                    print(f"evaluate: the {split} split has no row in language '{language}', left out", file=sys.stderr)
                bar.advance()
            if evaluator.judge is not None:
                found += bound_rows(evaluator, language, evaluator.hardest)
                bar.advance()
                found += swapped_rows(evaluator, language)
                found += every_mood_rows(evaluator, language)
            bar.advance()
            for condition in conditions if len(evaluator.select_rows(evaluator.hardest, language)) else ():
                found += condition_rows(evaluator, language, condition)
                bar.advance()
    if evaluator.judge is None:
        found += zero_shot_rows(evaluator.workspace, evaluator.space.image, evaluator.space.text)
    drawn, rows, of = torch.cat(pictures), np.concatenate(shown), np.repeat(drawn_of, [len(r) for r in shown])
    return (
        found + _fidelity(evaluator, drawn, rows, of) + evaluator.inception_score(drawn, everywhere("clean", "speech"))
    )


def _fidelity(evaluator: Evaluator, pictures: Tensor, rows: np.ndarray, splits: np.ndarray) -> list[Row]:
    """Measure the FID of all pictures, and of each split's where no attributes are known and there are several."""
    real, drawn = evaluator.fid_features(pictures, rows)
    parts = dict.fromkeys(splits.tolist()) if evaluator.judge is None else {}
    masks = {"all": np.full(len(rows), True)} | {split: splits == split for split in parts if len(parts) > 1}
    return [
        row
        for split, mask in masks.items()
        if mask.sum() > 1
        for row in fid_rows(real[mask], drawn[mask], seed=evaluator.seed, **everywhere("clean", "speech", split))
    ]


def _split(evaluator: Evaluator, rows: np.ndarray, language: str, split: str) -> tuple[Tensor, list[Row]]:
    """Draw the pictures of a split's recordings, of which attributes are known; returns them, and what is measured."""
    assert evaluator.judge is not None
    where = ResultKey(language=language, split=split, condition="clean", system="speech")
    tokens = evaluator.encode(rows, language)
    pictures = evaluator.generate(tokens, evaluator.seeds(rows))
    found = [*evaluator.rate(tokens, rows, where), *evaluator.retrieval(tokens, rows, where)]
    known = evaluator.known(rows)
    if not len(known):
        return pictures, found
    reading = evaluator.judge.predict(evaluator.real_images(known))
    pairs = zip(reading, evaluator.true_attributes(known), strict=True)
    right = np.array([np.mean([read[k] == v for k, v in truth.items() if k in read]) for read, truth in pairs])
    found.append(Row.of("classifier", bootstrap(right), len(known), **where))
    return pictures, found + evaluator.score(evaluator.judge.predict(pictures[np.isin(rows, known)]), known, **where)


def _examples(evaluator: Evaluator) -> tuple[list[Example], list[Row]]:
    """Return what the page shows, recordings of one split with several drawings each, and how much these differ."""
    shown, found = list[Example](), list[Row]()
    for language in evaluator.workspace.recipe.languages:
        rows, times = (
            evaluator.known(evaluator.select_rows(evaluator.hardest, language))[: evaluator.settings.pictures],
            evaluator.settings.samples,
        )
        if not len(rows):
            continue
        seeds = [s + k for s in evaluator.seeds(rows) for k in range(times)]
        pictures = evaluator.generate(repeat_condition(evaluator.encode(rows, language), times), seeds)
        readings, different = _looked_at(evaluator, pictures, language, times)
        found += different
        for number, row in enumerate(rows):
            mine = slice(number * times, (number + 1) * times)
            shown.append(_example(evaluator, int(row), language, pictures[mine], readings[mine]))
    return shown, found


def _looked_at(
    evaluator: Evaluator, pictures: Tensor, language: str, times: int
) -> tuple[list[dict[str, str]], list[Row]]:
    """Return what is seen in each picture, and how much those of one recording differ, where that is measured."""
    if evaluator.judge is not None:
        return evaluator.judge.predict(pictures), []
    raw = evaluator.see(pictures)
    if raw is None or evaluator.pictures is None:
        return [], []
    where = ResultKey(language=language, split=evaluator.hardest, condition="clean", system="speech")
    seen = [{"concept": name} for name in evaluator.pictures.likeliest(raw)]
    return seen, evaluator.pictures.diversity(raw, times, **where)


def _example(
    evaluator: Evaluator, row: int, language: str, pictures: Tensor, readings: list[dict[str, str]]
) -> Example:
    truth, label = {}, evaluator.corpus.column("label")[row]
    if evaluator.judge is not None:
        truth = evaluator.caption_attributes(np.array([row]))[0]
    elif readings and label is not None:
        truth = {"concept": label}
    return Example(
        caption=evaluator.corpus.column("text")[row] or "", language=language,
        direction=evaluator.workspace.cards[language].direction, mood=evaluator.moods[row] or "",
        source=f"split {evaluator.hardest}", audio=wav_bytes(evaluator.corpus.waveform(row)),
        truth=evaluator.corpus.picture(row), drawn=[Image.fromarray(p.numpy()) for p in to_pixels(pictures)],
        attributes=truth, predicted=readings,
    )  # fmt: skip


def _write(folder: Path, report: Report, examples: Sequence[Example]) -> None:
    report.write(folder / "report.json")
    write_page(folder / "report.html", report, examples, report.meta["recipe"])
    write_grid(folder / "grid.png", examples)


def evaluate_again(workspace: Workspace, name: str = "evaluation", build: Build = Evaluator) -> Report:
    """Measure a finished run anew, in a folder of it; the report that it has stays until there is another.

    Args:
        build: of what measures it.

    Raises:
        StaError: another launch measures it now.
    """
    new, old = workspace.folder / name, workspace.folder / f"{name}.old"
    with _measuring(new):
        ranks.run_on_main(lambda: _set_aside(new, old))
        try:
            _measure(workspace, workspace.folder / "release", new, build)
        finally:
            if ranks.is_main() and old.exists():
                shutil.rmtree(old) if new.exists() else old.replace(new)
        return ranks.run_on_main(lambda: Report.read(new / "report.json"))


def _set_aside(new: Path, old: Path) -> None:
    if new.exists():
        shutil.rmtree(old, ignore_errors=True)
        new.replace(old)


def _meta(workspace: Workspace) -> dict[str, Any]:
    recipe = workspace.recipe
    return {
        "recipe": recipe.name, "seed": recipe.seed, "languages": recipe.languages,
        "corpus": recipe.corpus.name, "sampling": recipe.sampling.model_dump(), "training": provenance(workspace),
        **environment(),
        **{key: name for key in ("judge", "recogniser") if (name := getattr(recipe.evaluation, key)) is not None},
    }  # fmt: skip
