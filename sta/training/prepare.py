"""The prepare stage: corpus, SentencePiece pieces, speech features and pictures, on all cores, resumable."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from sta.data.audio import speech_features
from sta.data.cache import build_folder
from sta.data.folder import ROWS_PER_SHARD, read_manifest, set_aside_unreadable
from sta.data.garden.corpus import Garden
from sta.data.rows import Corpus, write_shard
from sta.data.store import Ragged
from sta.data.text import train_sentencepiece
from sta.errors import CorpusError
from sta.recipe import FolderCorpus, GardenCorpus
from sta.training.progress import Bar
from sta.training.workspace import Workspace, write_json

ROWS_PER_TASK = 500
MIN_SURVIVAL = 0.99
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def prepare(workspace: Workspace) -> Path:
    """Build whatever of the corpus is not there yet; returns `prepare/final`."""
    cache = workspace.cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    corpus = workspace.recipe.corpus
    fill = _fill_garden if isinstance(corpus, GardenCorpus) else _fill_folder
    build_folder(cache / "corpus", lambda partial: fill(workspace, partial), resume=True)
    _check_survival(workspace)
    build_folder(cache / "pieces", lambda partial: _train_pieces(workspace, partial))
    build_folder(workspace.features_folder, lambda partial: _fill_features(workspace, partial))
    build_folder(cache / f"pixels-{corpus.size}", lambda partial: _fill_pixels(workspace, partial))
    splits = workspace.corpus.column("split")
    summary = {"cache": str(cache), "rows": {s: splits.count(s) for s in sorted(set(splits))}}
    return build_folder(workspace.stage("prepare") / "final", lambda p: write_json(p / "prepare.json", summary))


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides


def _on_all_cores(
    title: str, unit: str, total: int, work: Callable[..., int], tasks: Sequence[tuple[Any, ...]]
) -> None:
    """Run `work(*task)`, which returns the units it did, in fresh processes, one per core with one thread each."""
    workers = max(1, min(len(os.sched_getaffinity(0)), len(tasks)))
    context = multiprocessing.get_context("spawn")
    with (
        _environment(dict.fromkeys(THREAD_VARIABLES, "1")),
        Bar(title, total, unit) as bar,
        ProcessPoolExecutor(workers, context, _ignore_interrupt) as pool,
    ):
        futures = [pool.submit(work, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                bar.advance(future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that processes started in the block inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _fill_garden(workspace: Workspace, folder: Path) -> None:
    settings = workspace.recipe.corpus
    assert isinstance(settings, GardenCorpus)
    garden = Garden(settings, tuple(workspace.recipe.languages), workspace.recipe.seed)
    for name in ("shards", "attributes"):
        (folder / name).mkdir(exist_ok=True)
    shards = garden.shards()
    _on_all_cores(
        "drawing and speaking Garden", "scenes", sum(len(r) for _, r in shards), Garden.write,
        [(garden, number, folder) for number in range(len(shards))],
    )  # fmt: skip
    parts = sorted((folder / "attributes").glob("*.jsonl"))
    (folder / "attributes.jsonl").write_text("".join(p.read_text(encoding="utf-8") for p in parts), encoding="utf-8")


def _fill_folder(workspace: Workspace, folder: Path) -> None:
    settings = workspace.recipe.corpus
    assert isinstance(settings, FolderCorpus)
    rows = read_manifest(settings, workspace.recipe.languages)
    rows = set_aside_unreadable(rows, settings, folder / "unreadable.jsonl")
    (folder / "shards").mkdir(exist_ok=True)
    for start in range(0, len(rows), ROWS_PER_SHARD):
        write_shard(rows[start : start + ROWS_PER_SHARD], folder / "shards" / f"{start // ROWS_PER_SHARD:05d}.arrow")


def _check_survival(workspace: Workspace) -> None:
    """Refuse a normaliser that empties captions: a length filter would then drop rows without a word."""
    for code, card in workspace.cards.items():
        rows = [i for i in range(len(workspace.corpus)) if workspace.corpus.column("language")[i] == code]
        if not rows:
            raise CorpusError(f"{workspace.cache}: the corpus has no recording in language '{code}'")
        alive = sum(bool(workspace.texts[i].strip()) for i in rows) / len(rows)
        if alive < MIN_SURVIVAL:
            raise CorpusError(
                f"languages/{code}.yaml: the normaliser {list(card.normaliser)} leaves {alive:.0%} of the captions; "
                f"at least {MIN_SURVIVAL:.0%} must survive"
            )


def _train_pieces(workspace: Workspace, folder: Path) -> None:
    for code, card in workspace.cards.items():
        rows = workspace.corpus.select("train", code)
        texts = [workspace.texts[i] for i in rows]
        train_sentencepiece(texts, card.sentencepiece, folder / f"{code}.model", seed=workspace.recipe.seed)
    rows = workspace.corpus.select("train")
    joint = workspace.cards[workspace.recipe.languages[0]].sentencepiece
    train_sentencepiece(
        [workspace.texts[i] for i in rows], joint, folder / "teacher.model", vocab_size=300, seed=workspace.recipe.seed
    )


def _waveform_features(folder: Path, rows: range, target: Path, samples: bool) -> int:
    """Write the features of some rows, end to end, as `target.npy`, and their lengths beside."""
    corpus = Corpus(folder)
    pieces = []
    for row in rows:
        pieces.append(speech_features(corpus.waveform(row), samples))
    np.save(target.with_suffix(".npy"), np.concatenate(pieces))
    target.with_suffix(".json").write_text(json.dumps([len(p) for p in pieces]))
    return len(rows)


def _fill_features(workspace: Workspace, folder: Path) -> None:
    total = len(workspace.corpus)
    parts = folder / "parts"
    parts.mkdir()
    ranges = [range(i, min(i + ROWS_PER_TASK, total)) for i in range(0, total, ROWS_PER_TASK)]
    samples = workspace.recipe.encoder.backbone is not None
    tasks = [(workspace.corpus.folder, r, parts / f"{i:05d}", samples) for i, r in enumerate(ranges)]
    _on_all_cores("hearing the recordings", "recordings", total, _waveform_features, tasks)
    lengths = [n for i in range(len(ranges)) for n in json.loads((parts / f"{i:05d}.json").read_text())]
    Ragged.write(folder, _pieces_of(parts, len(ranges)), lengths)
    for path in parts.iterdir():
        path.unlink()
    parts.rmdir()


def _pieces_of(parts: Path, count: int) -> Iterator[np.ndarray]:
    for part in range(count):
        values = np.load(parts / f"{part:05d}.npy", mmap_mode="r")
        start = 0
        for length in json.loads((parts / f"{part:05d}.json").read_text()):
            yield values[start : start + length]
            start += length


def _fill_pixels(workspace: Workspace, folder: Path) -> None:
    size = workspace.recipe.corpus.size
    _, first = workspace.corpus.image_index
    values = np.lib.format.open_memmap(folder / "values.npy", "w+", np.uint8, (len(first), size, size, 3))
    with Bar("seeing the pictures", len(first), "pictures") as bar:
        for number, row in enumerate(first):
            values[number] = np.asarray(ImageOps.fit(workspace.corpus.picture(int(row)), (size, size)))
            bar.advance()
    values.flush()
