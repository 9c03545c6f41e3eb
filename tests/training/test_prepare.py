"""Preparation of a damaged corpus of Parquet shards: it ends well and lists each loss, or stops with one sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from sta.config.recipe import load_recipe
from sta.data.unreadable import read_report
from sta.distributed.sharding import BatchShard
from sta.distributed.team import Team
from sta.errors import CorpusError, TrainingError
from sta.training.prepare import prepare
from sta.training.sampler import ShardedSampler, ShuffledSampler
from sta.training.speech_features import caption_pieces
from sta.training.stages import open_run, run_stage
from sta.training.tasks.distill import DistillTask, GroupCorpus, written_captions
from sta.training.tasks.tokenizer import TokenizerTask
from sta.training.workspace import Workspace
from tests.parquet_fixtures import cut, sample, write_parquet
from tests.test_launch import finish, launch

SHARDS, ROWS = 10, 40
SMALL = ("languages=[en]", "precision=fp32", "tokenizer.codes=16", "tokenizer.width=16", "stages.tokenizer.steps=2")
pytestmark = pytest.mark.slow
BAD_SOUND, BAD_PICTURE, TORN = {17, 103, 214, 365}, {58, 59, 131, 338}, 7  # 1 % each of 400, and a shard


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten shards of forty samples, of which some cannot be read."""
    root = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        rows = [sample(number) for number in range(shard * ROWS, (shard + 1) * ROWS)]
        for number, row in enumerate(rows, shard * ROWS):
            if number in BAD_SOUND:
                row["audio"] = {"bytes": row["audio"]["bytes"][:2000], "path": None}
            if number in BAD_PICTURE:
                row["image"] = {"bytes": row["image"]["bytes"][:300], "path": None}
        write_parquet(root / f"{shard:02d}.parquet", rows)
    cut(root / f"{TORN:02d}.parquet")
    return root


def settings(shards: Path, unreadable: float, *changes: str) -> list[str]:
    corpus = f"corpus={{name: parquet, shards: {shards}, size: 16, max_unreadable: {unreadable}, by_shards: true}}"
    return [*SMALL, corpus, *changes]


def workspace(shards: Path, out: Path, unreadable: float, *changes: str) -> Workspace:
    return open_run(load_recipe("garden-tiny", settings(shards, unreadable, *changes)), out)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared(made: Workspace) -> dict[str, bytes]:
    """What the prepare stage left of the cache."""
    others = ("codes", "latents")
    return {name: data for name, data in files(made.cache).items() if not name.startswith(others)}


@pytest.fixture(scope="module")
def ready(damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = workspace(damaged, tmp_path_factory.mktemp("runs"), 0.2)
    prepare(made)
    return made


def test_a_damaged_corpus_ends_well_and_the_report_lists_each(ready: Workspace) -> None:
    entries = read_report(ready.cache / "corpus")
    lost = {int(entry.id[1:]) for entry in entries if entry.id is not None}
    assert lost == BAD_SOUND | BAD_PICTURE
    (torn,) = [entry for entry in entries if entry.id is None]
    assert torn.shard == f"{TORN:02d}.parquet"
    assert all(entry.sha256 and entry.reason for entry in entries)
    assert all(entry.shard == f"{int(entry.id[1:]) // ROWS:02d}.parquet" for entry in entries if entry.id)
    there = [n for n in range(SHARDS * ROWS) if n not in lost and n // ROWS != TORN]
    assert list(ready.corpus.column("id")) == [f"s{n:04d}" for n in there]
    assert len(ready.features) == len(there)
    assert len(ready.pixels) == len({n // 2 for n in there})


def test_the_summary_counts_what_was_set_aside(ready: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((ready.final("prepare") / "prepare.json").read_text())
    assert sum(summary["rows"].values()) == len(ready.corpus)
    assert summary["unreadable"] == 8 + 40, "the torn shard counts as the mean of the others"
    again = Workspace(ready.recipe.model_copy(update={"name": "again"}), ready.out)
    prepare(again)
    said = capsys.readouterr().err
    assert "48 of 400 samples cannot be read and are set aside: " in said
    assert str(ready.cache / "corpus" / "unreadable.jsonl") in said


def test_the_summary_is_of_the_corpus_that_was_prepared_last(
    ready: Workspace, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A changed shard makes another corpus of the same run."""
    out, shards = tmp_path / "runs", tmp_path / "shards"
    shutil.copytree(ready.out, out)
    shutil.copytree(damaged, shards)
    changed = ready.recipe.corpus.model_copy(update={"shards": str(shards)})
    made = Workspace(ready.recipe.model_copy(update={"corpus": changed}), out)
    (shards / "00.parquet").unlink()
    prepare(made)
    summary = json.loads((made.final("prepare") / "prepare.json").read_text())
    assert summary["cache"] == str(made.cache)
    assert sum(summary["rows"].values()) == len(made.corpus) < len(ready.corpus)
    assert str(made.cache / "corpus" / "unreadable.jsonl") in capsys.readouterr().err


def test_above_the_limit_it_stops_with_one_sentence(damaged: Path, tmp_path: Path) -> None:
    made = workspace(damaged, tmp_path, 0.05)
    with pytest.raises(CorpusError) as error:
        prepare(made)
    assert "\n" not in str(error.value)
    assert "48 of 400 samples cannot be read, more than corpus.max_unreadable 0.05 allows" in str(error.value)
    left = files(made.cache)
    assert list(left) == ["unreadable.jsonl"], "nothing else is left"
    assert len(left["unreadable.jsonl"].splitlines()) == 9
    assert str(made.cache / "unreadable.jsonl") in str(error.value)
    assert not (made.folder / "prepare").exists()


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state per process; a test must not find the precision of another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerator")
def test_stages_train_on_what_is_left(ready: Workspace) -> None:
    final = run_stage(ready, "tokenizer")
    assert list(final.rglob("*.safetensors"))


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("what", ["corpus", "pieces", "features", "pixels"])
def test_what_the_cache_has_lost_is_said_and_made_again(ready: Workspace, what: str) -> None:
    """As where a cache was cleared, or features are kept otherwise since the run was prepared."""
    before = prepared(ready)
    shutil.rmtree(ready.prepared[what])
    looked_at_anew = Workspace(ready.recipe, ready.out)
    with pytest.raises(CorpusError, match=f"{re.escape(str(ready.prepared[what]))}: not there; stage 'prepare' makes"):
        looked_at_anew.made(what)
    assert run_stage(looked_at_anew, "prepare") == ready.stage("prepare") / "final"
    assert prepared(ready) == before
    assert len(looked_at_anew.features) == len(looked_at_anew.corpus)


def test_pictures_are_read_in_lanes(ready: Workspace) -> None:
    task = TokenizerTask(ready)
    assert isinstance(task.order, ShardedSampler)
    seen = [task.items(step) for step in range(40)]
    epoch = [name for names in seen for name in names][: len(task.order.items)]
    assert len(set(epoch)) == len(epoch)
    whole = task.batch(3, BatchShard()).pixels
    parts = [task.batch(3, BatchShard(rank, 2)).pixels for rank in range(2)]
    assert all((whole[rank::2] == part).all() for rank, part in enumerate(parts))


def test_the_text_branch_reads_captions_of_like_length(ready: Workspace) -> None:
    task = DistillTask(ready, "pooled", unseen(ready), torch.device("cpu"))
    count = written_captions(task.stage)
    texts = ready.corpus.column("text")
    lengths = np.array([[len(texts[row] or "") for row in task.written.take(i * count, count)] for i in range(8)])
    assert np.ptp(lengths, axis=1).mean() < np.ptp(lengths) / 2


def test_pieces_of_captions_are_found_once(ready: Workspace) -> None:
    task = DistillTask(ready, "pooled", unseen(ready), torch.device("cpu"))
    rows = task.rows[:3]
    first = task.corpus.captions(rows)
    assert first == caption_pieces(ready, task.encoder, rows)
    assert task.corpus.captions(task.rows[1:5])[:2] == first[1:]
    assert all(one is two for one, two in zip(task.corpus.captions(rows), first, strict=True))


def test_the_ctc_head_warms_up_for_its_share_of_the_steps(ready: Workspace) -> None:
    stages = ready.recipe.stages
    warm = stages.distill.model_copy(update={"ctc_warmup": 0.5})
    workspace = Workspace(
        ready.recipe.model_copy(update={"stages": stages.model_copy(update={"distill": warm})}), ready.out
    )
    workspace.cache = ready.cache
    task = DistillTask(workspace, "pooled", unseen(workspace), torch.device("cpu"))
    last = int(0.5 * warm.steps) - 1
    asked = [set(task.batch(step, BatchShard()).targets) for step in (0, last, last + 1)]
    assert asked[:2] == [{"ctc"}, {"ctc"}]
    assert {"ctc", "kl"} < asked[2]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_recordings_are_heard_once_an_epoch_and_by_the_rank_of_their_lane(ready: Workspace, world: int) -> None:
    """Long ones and short ones alike; of nine shards, each rank reads those of its lanes."""
    task = DistillTask(ready, "pooled", unseen(ready), torch.device("cpu"))
    train, shard_of = ready.corpus.select("train"), ready.corpus.shard_of
    size = task.stage.batch
    heard, read = [], [set[int]() for _ in range(world)]
    for step in range(len(train) // size):
        batch = task._rows_of(step)
        heard += batch.tolist()
        for rank in range(world):
            read[rank] |= set(shard_of[BatchShard(rank, world).of(batch)].tolist())
    assert len(set(heard)) == len(heard)
    assert set(heard) <= set(train.tolist())
    assert sum(map(len, read)) <= len(np.unique(shard_of)) + size - 1
    assert len(task.mixed.items) == len(train)


def unseen(ready: Workspace, kind: type[GroupCorpus] = GroupCorpus) -> GroupCorpus:
    """The corpus with features of a teacher that sees and reads nothing."""
    pictures, rows = (np.zeros((len(of), 8), np.float32) for of in (ready.pixels, ready.corpus))
    return kind(ready, "pooled", pictures, rows)


@pytest.fixture
def distilling(ready: Workspace) -> Callable[[float], DistillTask]:
    """The distill task that hears no more than some seconds."""

    def task(longest: float) -> DistillTask:
        stages = ready.recipe.stages
        stages = stages.model_copy(update={"distill": stages.distill.model_copy(update={"max_seconds": longest})})
        workspace = Workspace(ready.recipe.model_copy(update={"stages": stages}), ready.out)
        workspace.cache = ready.cache
        return DistillTask(workspace, "pooled", unseen(workspace), torch.device("cpu"))

    return task


def test_longer_recordings_are_left_out_and_counted(
    ready: Workspace, distilling: Callable[[float], DistillTask], capsys: pytest.CaptureFixture[str]
) -> None:
    train = ready.corpus.select("train")
    lengths = ready.features.lengths[train]
    middle = int(np.sort(lengths)[len(lengths) // 2])
    task, fits = distilling(middle / 100), lengths <= middle
    assert 0 < fits.sum() < len(train)
    assert sorted(task.mixed.items) == sorted(train[fits])
    assert sorted(task.written.items) == sorted(train), "what they say is read all the same"
    for step in range(4):
        batch = task.batch(step, BatchShard())
        assert batch.lengths.tolist() == ready.features.lengths[task._rows_of(step)].tolist(), "one was cut"
    said = f"{len(train) - fits.sum()} of {len(train)} recordings hold more than {middle / 100:g} s of speech"
    assert capsys.readouterr().err == (
        f"sta: stage distill-pooled: {said} (stages.distill.max_seconds) and are left out\n"
    )
    distilling(12.0)
    assert capsys.readouterr().err == ""


def test_none_that_is_short_enough_is_said(distilling: Callable[[float], DistillTask]) -> None:
    with pytest.raises(
        TrainingError, match=r"more than 0\.01 s of speech \(stages.distill.max_seconds\), and no whole"
    ) as error:
        distilling(0.01)
    assert "\n" not in str(error.value)


def test_captions_without_a_piece_are_whole_numbers_too(ready: Workspace) -> None:
    """A normaliser may leave nothing of them."""

    class Wordless(GroupCorpus):
        def captions(self, rows: np.ndarray) -> list[list[int]]:
            return [[] for _ in rows]

    task = DistillTask(ready, "pooled", unseen(ready, Wordless), torch.device("cpu"))
    batch = task.batch(0, BatchShard())
    assert batch.targets["ctc"]["pieces"].dtype == batch.targets["caption"]["pieces"].dtype == torch.long
    assert all(value.isfinite() for value in task.module(batch).values())


def test_without_the_setting_the_order_is_plain(ready: Workspace) -> None:
    corpus = ready.recipe.corpus.model_copy(update={"by_shards": False})
    plain = Workspace(ready.recipe.model_copy(update={"corpus": corpus}), ready.out)
    plain.cache = ready.cache
    assert type(TokenizerTask(plain).order) is ShuffledSampler


def test_an_interrupted_preparation_reads_on_where_it_stopped(ready: Workspace, damaged: Path, tmp_path: Path) -> None:
    """One of three ranks has done its share; the next start, of one rank, does the rest: the same, byte for byte."""
    made = workspace(damaged, tmp_path, 0.2)

    def stop(said: object) -> list[object]:
        if said is False:  # whether it is there
            return [said] * 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(made, Team(BatchShard(1, 3), gather=stop))
    shards = made.cache / "corpus.partial" / "shards"
    before = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert sorted(before) == ["00001.arrow", "00004.arrow", "00007.arrow"]
    prepare(made)
    after = made.cache / "corpus" / "shards"
    assert {name: (after / name).stat().st_mtime_ns for name in before} == before, "a finished shard was read again"
    assert files(made.cache) == prepared(ready)


def test_two_ranks_prepare_what_one_does(ready: Workspace, damaged: Path, tmp_path: Path) -> None:
    recipe = ["garden-tiny", *settings(damaged, 0.2), "--stage", "prepare", "--out", str(tmp_path)]
    finish([*launch("cpu-2"), *recipe], tmp_path / "log")
    (cache,) = (tmp_path / "cache").iterdir()
    assert cache.name == ready.cache.name
    assert files(cache) == prepared(ready)
    assert (tmp_path / "log").read_text().count("cannot be read and are set aside") == 1


def test_two_ranks_stop_above_the_limit(damaged: Path, tmp_path: Path) -> None:
    recipe = ["garden-tiny", *settings(damaged, 0.05), "--stage", "prepare", "--out", str(tmp_path)]
    with pytest.raises(AssertionError):
        finish([*launch("cpu-2"), *recipe], tmp_path / "log")
    assert "sta: 48 of 400 samples cannot be read" in (tmp_path / "log").read_text()
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["unreadable.jsonl"]
