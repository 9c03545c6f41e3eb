"""The prepare stage: corpus, SentencePiece pieces, speech features and pictures, on all cores of all ranks, resumable.

What takes long is done in tasks, which are shared out among the ranks and whose results are files of their own; an
interrupted preparation goes on with the tasks whose files are not there, on any number of ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sta.config.cards import MARKS, SentencePieceCard
from sta.config.recipe import Recipe
from sta.data import parts
from sta.data.cache import write_json
from sta.data.corpora.base import CorpusShard
from sta.data.store import Ragged, new_array
from sta.data.text import Pieces, train_sentencepiece
from sta.data.unreadable import REPORT, read_report, rows_lost
from sta.distributed.team import Team
from sta.errors import CorpusError
from sta.models.backbones import backbone_class
from sta.training.losses.base import reads_pieces
from sta.training.workspace import Workspace

SUMMARY = "prepare.json"
MIN_SURVIVAL, CAPTIONS_READ = 0.99, 1_000_000


def prepare(workspace: Workspace, team: Team | None = None) -> Path:
    """Build whatever of the corpus is not there yet, every rank its share; returns `prepare/final`."""
    team = team or Team()
    folders = workspace.prepared
    _build_corpus(workspace, team, folders["corpus"])
    team.on_first(lambda: check_captions(workspace))
    team.build(folders["pieces"], _nothing, lambda partial: train_pieces(workspace, partial))
    if "teacher's pieces" in folders:
        team.build(folders["teacher's pieces"], _nothing, lambda partial: _train_teacher_pieces(workspace, partial))
    _build_features(workspace, team)
    for what in [what for what in folders if "pixels" in what]:
        _build_pixels(workspace, team, folders[what])
    final = workspace.stage("prepare") / "final"
    team.on_first(lambda: write_json(final / SUMMARY, _summary(workspace)))  # there may be one, of an older corpus
    return final


def prepare_tests(workspace: Workspace, team: Team | None = None) -> None:
    """Build rows and pictures of a corpus that a run is only measured on, every rank its share."""
    team = team or Team()
    _build_corpus(workspace, team, workspace.prepared["corpus"])
    team.on_first(lambda: _rows_lost(workspace))
    _build_pixels(workspace, team, workspace.prepared["pixels"])


def _nothing(partial: Path) -> None:
    """Do nothing, as a rank does for a folder that the first makes alone."""


def is_prepared(workspace: Workspace) -> bool:
    """Return whether the run and its cache hold all that `prepare` makes."""
    summary = workspace.stage("prepare") / "final" / SUMMARY
    return all(path.exists() for path in (summary, *workspace.prepared.values()))


def _summary(workspace: Workspace) -> dict[str, object]:
    """Return where the corpus is, its rows, and how many of it could not be read."""
    rows = {str(split): count for split, count in sorted(workspace.corpus.column("split").counts().items())}
    return {"cache": str(workspace.cache), "rows": rows, "unreadable": _rows_lost(workspace)}


def _rows_lost(workspace: Workspace) -> int:
    """Return how many samples of the corpus could not be read, and say so if any."""
    cache, corpus = workspace.cache, workspace.corpus
    lost = rows_lost(read_report(cache / "corpus"), len(corpus), corpus.shards)
    if lost:
        report = cache / "corpus" / REPORT
        print(f"{lost} of {lost + len(corpus)} samples cannot be read and are set aside: {report}", file=sys.stderr)
    return lost


def _build_corpus(workspace: Workspace, team: Team, final: Path) -> None:
    source = workspace.source

    def fill(partial: Path) -> None:
        shards = source.spoken_shards()
        tasks = [(shard, number, partial) for number, shard in enumerate(shards)]
        team.each(f"corpus {workspace.recipe.corpus.name}", "rows", sum(map(len, shards)), CorpusShard.write, tasks)

    team.build(final, fill, source.finish)


def check_captions(workspace: Workspace) -> None:
    """Refuse a language without captions where something is to learn from them, and a normaliser that empties them."""
    corpus, readers = workspace.corpus, text_readers(workspace.recipe)
    if workspace.teacher_class.trained_here and not corpus.has_text[corpus.select("train")].any():
        raise CorpusError(
            f"{workspace.cache}: no row has a text, so teacher '{workspace.teacher_card.name}' cannot be trained here; "
            "name a published one, such as teacher=vit-b-32"
        )
    for code, card in workspace.cards.items():
        rows = corpus.select("train", code)
        rows = _some(rows[corpus.has_text[rows]])
        if not len(rows):
            if readers:
                raise CorpusError(
                    f"{workspace.cache}: no training row in language '{code}' has a text; add some, or set "
                    f"{' and '.join(readers)} to 0 and train on what the pictures show"
                )
            continue
        alive = sum(bool(workspace.texts[i].strip()) for i in rows) / len(rows)
        if alive < MIN_SURVIVAL:
            raise CorpusError(
                f"language card '{code}': the normaliser {list(card.normaliser)} leaves {alive:.0%} of the captions; "
                f"at least {MIN_SURVIVAL:.0%} must survive"
            )


def text_readers(recipe: Recipe) -> list[str]:
    """Return the settings by which a recipe learns from texts: its losses on them, and captions read as speech."""
    found = [
        f"stages.{stage}.losses.{loss}"
        for stage, losses in (("distill", ("ctc", "caption", "text")), ("decoder", ("caption", "text")))
        for loss in losses
        if getattr(recipe.stages, stage).losses.get(loss)
    ]
    if not recipe.stages.distill.losses.get("ctc"):
        return found  # no caption enters in the place of what a CTC head reads
    return found + [f"stages.{n}.text_ratio" for n in ("distill", "decoder") if getattr(recipe.stages, n).text_ratio]


def train_pieces(workspace: Workspace, folder: Path) -> None:
    """Train the pieces of each language on its captions; one without any has none, and where nothing reads them all."""
    is_read = reads_pieces(workspace.recipe)
    for code, card in workspace.cards.items():
        rows = workspace.corpus.select("train", code)
        rows = _some(rows[workspace.corpus.has_text[rows]])
        if not len(rows) or not is_read:
            (folder / f"{code}.model").write_bytes(Pieces().serialized())
            continue
        own = workspace.recipe.encoder.pieces
        setting = "encoder.pieces" if own else f"sentencepiece.vocab_size of language card '{code}'"
        texts, path = [workspace.spellings[i] for i in rows], folder / f"{code}.model"
        train_sentencepiece(texts, workspace.recipe.sentencepiece_of(card), path, workspace.recipe.seed, setting)


def _train_teacher_pieces(workspace: Workspace, folder: Path) -> None:
    """Return pieces of all languages together, as many as the text tower of a teacher trained here has ids for."""
    teacher, cards = workspace.teacher_card, workspace.cards.values()
    assert teacher.pieces is not None
    coverage = min(card.sentencepiece.character_coverage for card in cards)
    joint = SentencePieceCard(vocab_size=teacher.pieces, character_coverage=coverage)
    texts = [workspace.texts[i] for i in _some(workspace.corpus.select("train"))]
    setting = f"config.text_cfg.vocab_size of teacher '{teacher.name}', which is {MARKS} more"
    train_sentencepiece(texts, joint, folder / "teacher.model", workspace.recipe.seed, setting)


def _some(rows: np.ndarray) -> np.ndarray:
    """Return at most `CAPTIONS_READ` of the rows, evenly spaced: more teach SentencePiece nothing, and take hours."""
    return rows[:: -(-len(rows) // CAPTIONS_READ)] if len(rows) else rows


# ---- what is made of every recording or picture -------------------------------------------------------------


def _build_features(workspace: Workspace, team: Team) -> None:
    total, features = len(workspace.corpus), backbone_class(workspace.recipe.encoder.backbone).cached_features

    def fill(partial: Path) -> None:
        tasks = parts.make_tasks(parts.extract_features, workspace.corpus.folder, range(total), partial, features)
        team.each("extracting features", "recordings", total, parts.make_part, tasks)

    def join(partial: Path) -> None:
        Ragged.write(partial, parts.pieces_of(partial), parts.lengths_of(partial))
        parts.remove_parts(partial)

    team.build(workspace.prepared["features"], fill, join)


def _build_pixels(workspace: Workspace, team: Team, folder: Path) -> None:
    """Make the pictures at the size that the folder's name says."""
    size = int(folder.name.rpartition("-")[2])
    rows = workspace.corpus.image_index[1].tolist()

    def fill(partial: Path) -> None:
        tasks = parts.make_tasks(parts.load_images, workspace.corpus.folder, rows, partial, size)
        team.each("seeing the pictures", "pictures", len(rows), parts.make_part, tasks)

    def join(partial: Path) -> None:
        values = new_array(partial / "values.npy", np.uint8, (len(rows), size, size, 3))
        for number, part in enumerate(parts.parts_of(partial)):
            seen = np.load(part, mmap_mode="r")
            values[number * parts.ITEMS_PER_PART : number * parts.ITEMS_PER_PART + len(seen)] = seen
        values.flush()
        parts.remove_parts(partial)

    team.build(folder, fill, join)
