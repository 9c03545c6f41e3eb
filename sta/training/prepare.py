"""The prepare stage: corpus, SentencePiece pieces, speech features and pictures, on all cores of all ranks, resumable.

What takes long is done in tasks, which are shared out among the ranks and whose results are files of their own; an
interrupted preparation goes on with the tasks whose files are not there, on any number of ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sta.config.cards import MARKS, SentencePieceCard
from sta.config.recipe import FolderCorpus, GardenCorpus, ParquetCorpus, UserCorpus
from sta.data.corpora.folder import in_shards, read_manifest
from sta.data.corpora.garden.corpus import Garden
from sta.data.corpora.parquet import find_shards
from sta.data.corpora.user import check_rows
from sta.data.parts import (
    ITEMS_PER_PART,
    extract_features,
    lengths_of,
    load_images,
    make_part,
    make_tasks,
    parts_of,
    pieces_of,
    remove_parts,
)
from sta.data.rows import Corpus
from sta.data.store import Ragged, new_array
from sta.data.text import train_sentencepiece
from sta.data.unreadable import REPORT, Unreadable, read_report, rows_lost, settle, write_readable
from sta.distributed.team import Team
from sta.errors import CorpusError
from sta.models.backbones import backbone_class
from sta.training.faults import VARIABLE, torn_shards
from sta.training.workspace import Workspace, write_json

SUMMARY = "prepare.json"
MIN_SURVIVAL, CAPTIONS_READ = 0.99, 1_000_000
TORN_ON_PURPOSE = Unreadable(None, "a shard", f"the shard is torn, as {VARIABLE} asks", None, None)


def prepare(workspace: Workspace, team: Team | None = None) -> Path:
    """Build whatever of the corpus is not there yet, every rank its share; returns `prepare/final`."""
    team = team or Team()
    folders = workspace.prepared
    build_corpus = _build_garden if isinstance(workspace.recipe.corpus, GardenCorpus) else _build_brought
    build_corpus(workspace, team, folders["corpus"])
    team.on_first(lambda: _check_survival(workspace))
    team.build(folders["pieces"], _nothing, lambda partial: _train_pieces(workspace, partial))
    if workspace.teacher_card.trained_here:
        team.build(folders["teacher's pieces"], _nothing, lambda partial: _train_teacher_pieces(workspace, partial))
    _build_features(workspace, team)
    _build_pixels(workspace, team)
    final = workspace.stage("prepare") / "final"
    team.on_first(lambda: write_json(final / SUMMARY, _summary(workspace)))  # there may be one, of an older corpus
    return final


def _nothing(partial: Path) -> None:
    """What a rank does for a folder that the first makes alone."""


def is_prepared(workspace: Workspace) -> bool:
    """Whether the run and its cache hold all that `prepare` makes."""
    summary = workspace.stage("prepare") / "final" / SUMMARY
    return all(path.exists() for path in (summary, *workspace.prepared.values()))


def _summary(workspace: Workspace) -> dict[str, object]:
    """Where the corpus is, its rows, and what of it could not be read, which is said too."""
    cache, corpus, splits = workspace.cache, workspace.corpus, workspace.corpus.column("split")
    rows = {str(split): count for split, count in sorted(splits.counts().items())}
    summary: dict[str, object] = {"cache": str(cache), "rows": rows}
    if isinstance(workspace.recipe.corpus, UserCorpus):
        entries = read_report(cache / "corpus")
        summary["unreadable"] = lost = rows_lost(entries, len(corpus), corpus.shards)
        if lost:
            report = cache / "corpus" / REPORT
            print(f"{lost} of {lost + len(corpus)} samples cannot be read and are set aside: {report}", file=sys.stderr)
    return summary


def _build_garden(workspace: Workspace, team: Team, final: Path) -> None:
    settings = workspace.recipe.corpus
    assert isinstance(settings, GardenCorpus)
    garden = Garden(settings, tuple(workspace.recipe.languages), workspace.recipe.seed)
    shards = garden.shards()

    def fill(partial: Path) -> None:
        for name in ("shards", "attributes"):
            (partial / name).mkdir(exist_ok=True)
        tasks = [(garden, number, partial) for number in range(len(shards))]
        team.each("drawing and speaking Garden", "scenes", sum(len(r) for _, r in shards), Garden.write, tasks)

    def join(partial: Path) -> None:
        truths = "".join(p.read_text(encoding="utf-8") for p in sorted((partial / "attributes").glob("*.jsonl")))
        (partial / "attributes.jsonl").write_text(truths, encoding="utf-8")

    team.build(final, fill, join)


def _build_brought(workspace: Workspace, team: Team, final: Path) -> None:
    settings, languages = workspace.recipe.corpus, workspace.recipe.languages
    assert isinstance(settings, UserCorpus)

    def fill(partial: Path) -> None:
        shards: Sequence[object] = []
        if isinstance(settings, FolderCorpus):
            shards = in_shards(read_manifest(settings, languages))
        elif isinstance(settings, ParquetCorpus):
            shards = find_shards(settings, languages)
        torn = torn_shards()
        shards = [[TORN_ON_PURPOSE] if number in torn else shard for number, shard in enumerate(shards)]
        tasks = [(shard, number, partial) for number, shard in enumerate(shards)]
        team.each("reading the corpus", "shards", len(tasks), write_readable, tasks)

    def join(partial: Path) -> None:
        settle(partial, settings.max_unreadable, partial.with_name(REPORT))
        check_rows(f"corpus {settings.name}", Corpus(partial).column, languages)

    team.build(final, fill, join)


def _check_survival(workspace: Workspace) -> None:
    """Refuse a normaliser that empties captions: a length filter would then drop rows without a word."""
    for code, card in workspace.cards.items():
        rows = np.flatnonzero(workspace.corpus.column("language").equal(code))
        if not len(rows):
            raise CorpusError(f"{workspace.cache}: the corpus has no recording in language '{code}'")
        rows = _some(rows)
        alive = sum(bool(workspace.texts[i].strip()) for i in rows) / len(rows)
        if alive < MIN_SURVIVAL:
            raise CorpusError(
                f"languages/{code}.yaml: the normaliser {list(card.normaliser)} leaves {alive:.0%} of the captions; "
                f"at least {MIN_SURVIVAL:.0%} must survive"
            )


def _train_pieces(workspace: Workspace, folder: Path) -> None:
    for code, card in workspace.cards.items():
        texts = [workspace.texts[i] for i in _some(workspace.corpus.select("train", code))]
        setting = f"sentencepiece.vocab_size of languages/{code}.yaml"
        train_sentencepiece(texts, card.sentencepiece, folder / f"{code}.model", workspace.recipe.seed, setting)


def _train_teacher_pieces(workspace: Workspace, folder: Path) -> None:
    """Pieces of all languages together, as many as the text tower of a teacher trained here has ids for."""
    teacher, cards = workspace.teacher_card, workspace.cards.values()
    coverage = min(card.sentencepiece.character_coverage for card in cards)
    joint = SentencePieceCard(vocab_size=teacher.pieces, character_coverage=coverage)
    texts = [workspace.texts[i] for i in _some(workspace.corpus.select("train"))]
    setting = f"config.text_cfg.vocab_size of teacher '{teacher.name}', which is {MARKS} more"
    train_sentencepiece(texts, joint, folder / "teacher.model", workspace.recipe.seed, setting)


def _some(rows: np.ndarray) -> np.ndarray:
    """At most `CAPTIONS_READ` of the rows, evenly spaced: more captions teach SentencePiece nothing, and take hours."""
    return rows[:: -(-len(rows) // CAPTIONS_READ)] if len(rows) else rows


# ---- what is made of every recording or picture -------------------------------------------------------------


def _build_features(workspace: Workspace, team: Team) -> None:
    total, features = len(workspace.corpus), backbone_class(workspace.recipe.encoder.backbone).cached_features

    def fill(partial: Path) -> None:
        tasks = make_tasks(extract_features, workspace.corpus.folder, range(total), partial, features)
        team.each("hearing the recordings", "recordings", total, make_part, tasks)

    def join(partial: Path) -> None:
        Ragged.write(partial, pieces_of(partial), lengths_of(partial))
        remove_parts(partial)

    team.build(workspace.prepared["features"], fill, join)


def _build_pixels(workspace: Workspace, team: Team) -> None:
    size = workspace.recipe.corpus.size
    rows = workspace.corpus.image_index[1].tolist()

    def fill(partial: Path) -> None:
        tasks = make_tasks(load_images, workspace.corpus.folder, rows, partial, size)
        team.each("seeing the pictures", "pictures", len(rows), make_part, tasks)

    def join(partial: Path) -> None:
        values = new_array(partial / "values.npy", np.uint8, (len(rows), size, size, 3))
        for number, part in enumerate(parts_of(partial)):
            seen = np.load(part, mmap_mode="r")
            values[number * ITEMS_PER_PART : number * ITEMS_PER_PART + len(seen)] = seen
        values.flush()
        remove_parts(partial)

    team.build(workspace.prepared["pixels"], fill, join)
