"""The teacher stage: positives by label, frozen towers whose features are computed once, heads that train."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate import Accelerator
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional as F

from sta.config.published import MODELS
from sta.config.recipe import load_recipe
from sta.data.rows import Corpus, write_shard
from sta.distributed import sharding
from sta.distributed.sharding import BatchShard
from sta.errors import TrainingError
from sta.evaluation.zero_shot import zero_shot_rows
from sta.models.teachers.trained_clip import TrainedClipTeacher
from sta.plan.plan import _teacher_flops
from sta.training.loop import train
from sta.training.runtime import bf16_autocast
from sta.training.tasks.teacher import CaptionedBatch, TeacherTask, label_contrast
from sta.training.teacher_features import cache_towers, distinct_texts, teacher_features
from sta.training.workspace import Workspace
from tests.parquet_fixtures import sample
from tests.published_towers import towers_card, write_towers
from tests.training.facts import FACTS

CPU, ALONE = torch.device("cpu"), BatchShard()
NAMES = {"dog": ("dog", "chien"), "cat": ("cat", "chat")}


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), dim=-1)


# ---- positives by label ------------------------------------------------------------------------------------------


def test_without_two_alike_it_is_clips() -> None:
    image, text = unit(2, 5, 4)
    items = torch.stack([torch.full((5,), -1), torch.arange(5), torch.arange(5)], 1)
    expected = ClipLoss()(image, text, torch.tensor(7.0))
    torch.testing.assert_close(label_contrast(image, text, items, torch.tensor(7.0), ALONE), expected)


@pytest.mark.parametrize("alike", [0, 1, 2], ids=["label", "picture", "text"])
def test_items_that_are_alike_are_no_negatives_of_one_another(alike: int) -> None:
    """By brute force: of each item, the mean over its positives of how little is given to them."""
    image, text = unit(2, 4, 3)
    items = torch.arange(12).view(4, 3)
    items[2, alike] = items[0, alike]
    value, positives = 0.0, {0: [0, 2], 1: [1], 2: [0, 2], 3: [3]}
    for first, second in ((image, text), (text, image)):
        logits = (5 * first @ second.T).log_softmax(1)
        value += float(-sum(logits[i, same].mean() for i, same in positives.items())) / 4 / 2
    assert float(label_contrast(image, text, items, torch.tensor(5.0), ALONE)) == pytest.approx(value, rel=1e-5)


def contrast_of(shard: BatchShard) -> dict[str, Tensor]:
    """The loss of eight items, three of them alike, and its gradient, of which this rank holds its share."""
    whole = unit(2, 8, 4)
    items = torch.arange(16).view(8, 2)
    items[[3, 6], 0] = items[0, 0]
    held = torch.from_numpy(shard.of(np.arange(8)))
    image, text = (x[held].requires_grad_() for x in whole)
    with sharding.sharded_step(shard, 8, seed=0):
        loss = label_contrast(image, text, items[held], torch.tensor(5.0), shard)
        loss.backward()
    grad = torch.zeros(2, 8, 4)
    assert image.grad is not None
    assert text.grad is not None
    grad[:, held] = torch.stack([image.grad, text.grad]) / shard.world
    found = {"loss": loss.detach() / shard.world, "grad": grad}
    if shard.world > 1:
        for each in found.values():
            dist.all_reduce(each)
    return found


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    torch.save(contrast_of(BatchShard(rank, 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_contrast_what_one_contrasts(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    for name, value in contrast_of(ALONE).items():
        torch.testing.assert_close(torch.load(tmp_path / "0.pt")[name], value)


# ---- frozen towers -----------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Twelve pictures of two labels; each row names its own in English or French, so four texts in 24 rows."""
    monkeypatch.setenv(MODELS, str(write_towers(tmp_path / "weights")))
    card = tmp_path / "of-parts.yaml"
    card.write_text(yaml.safe_dump(json.loads(towers_card().model_dump_json())))
    recipe = load_recipe("garden-tiny", [f"teacher={card}", "stages.teacher.batch=8", "stages.teacher.steps=6"])
    stage = recipe.stages.teacher.model_copy(update={"positives": "label", "save_every": 100, "workers": 0})
    recipe = recipe.model_copy(update={"stages": recipe.stages.model_copy(update={"teacher": stage})})
    rows = []
    for number in range(24):
        label, language = ("dog", "cat")[number // 2 % 2], number % 2
        rows.append(
            sample(number, label=label, text=NAMES[label][language], language=("en", "ar")[language],
                   split="test" if number >= 20 else "train", phrase=number in (18, 19))
        )  # fmt: skip
    (tmp_path / "corpus" / "shards").mkdir(parents=True)
    write_shard(rows, tmp_path / "corpus" / "shards" / "00000.arrow")
    made = Workspace(recipe, tmp_path / "runs")
    made.corpus, made.cache = Corpus(tmp_path / "corpus"), tmp_path / "cache"
    return made


def test_each_text_is_one_item(workspace: Workspace) -> None:
    text_of, said_by = distinct_texts(workspace)
    texts = [workspace.texts[row] for row in said_by]
    assert sorted(texts) == ["cat", "chat", "chien", "dog"]
    assert [texts[number] for number in text_of] == [workspace.texts[row] for row in range(24)]
    assert [len(text) for text in texts] == [3, 3, 4, 5]


def test_frozen_towers_see_each_picture_and_text_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Counter[str]()
    images, texts = TrainedClipTeacher.frozen_images, TrainedClipTeacher.frozen_texts

    def count_images(teacher: TrainedClipTeacher, pixels: Tensor) -> Tensor:
        seen["image"] += len(pixels)
        return images(teacher, pixels)

    def count_texts(teacher: TrainedClipTeacher, given: list[str]) -> Tensor:
        seen.update(given)
        return texts(teacher, given)

    monkeypatch.setattr(TrainedClipTeacher, "frozen_images", count_images)
    monkeypatch.setattr(TrainedClipTeacher, "frozen_texts", count_texts)
    towers = cache_towers(workspace, CPU)
    assert seen == {"image": 12, "dog": 1, "cat": 1, "chat": 1, "chien": 1}
    cache_towers(workspace, CPU)
    TeacherTask.build(workspace, "teacher", CPU, ALONE)
    assert seen.total() == 16, "what is there is not computed again"
    teacher = TrainedClipTeacher.untrained(towers_card(), None)
    picture = torch.from_numpy(np.array(teacher.fit(workspace.corpus.picture(4))))[None]
    with bf16_autocast(CPU):
        one, two = teacher.frozen_images(picture), teacher.frozen_texts(["dog", "chien"])
    torch.testing.assert_close(torch.from_numpy(towers["image"][[2]]), one, rtol=0.02, atol=0.02)  # bf16: 8 bits
    torch.testing.assert_close(torch.from_numpy(towers["text"][[4, 5]]), two, rtol=0.02, atol=0.02)


def test_a_batch_is_of_features_and_of_what_is_alike(workspace: Workspace) -> None:
    task = TeacherTask.build(workspace, "teacher", CPU, ALONE)
    batch = task.batch(0, ALONE)
    assert (batch.pixels.shape, batch.texts.shape) == ((8, 2 * (48 + 64)), (8, 16))
    labels = [workspace.corpus.column("label")[row] for row in task._rows_of(0)]
    assert len(set(zip(labels, batch.items[:, 0].tolist(), strict=True))) == 2
    assert not [key for key in task.module.state_dict() if "trunk" in key or "transformer" in key]
    halves = [task.batch(0, BatchShard(rank, 2)) for rank in (0, 1)]
    assert torch.stack([half.items for half in halves], 1).flatten(0, 1).equal(batch.items)


def test_where_labels_are_alike_no_phrase_is_trained_on(workspace: Workspace) -> None:
    task = TeacherTask.build(workspace, "teacher", CPU, ALONE)
    ids = {name for step in range(9) for name in task.items(step)}
    assert ids == {f"s{number:04d}" for number in range(18)}


def test_phrases_alone_are_refused_there(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "phrases" / "shards").mkdir(parents=True)
    rows = [sample(number, label="dog", phrase=True, split="train") for number in range(4)]
    write_shard(rows, tmp_path / "phrases" / "shards" / "00000.arrow")
    workspace.corpus = Corpus(tmp_path / "phrases")
    with pytest.raises(TrainingError, match=r"all captions .* are phrases, .*; set it to pair"):
        TeacherTask(workspace, ALONE, {})


@pytest.mark.slow
def test_heads_train_and_are_the_teacher_of_what_follows(workspace: Workspace) -> None:
    task = TeacherTask.build(workspace, "teacher", CPU, ALONE)
    before = {key: value.clone() for key, value in task.module.state_dict().items()}
    stage = workspace.recipe.stages.teacher
    train(task, stage, workspace.stage("teacher"), 0, Accelerator(cpu=True))
    after = task.module.state_dict()
    assert not after["clip.visual.head.2.weight"].equal(before["clip.visual.head.2.weight"])
    assert not after["clip.text.proj.2.weight"].equal(before["clip.text.proj.2.weight"])
    image, text = teacher_features(workspace, CPU)
    teacher = TrainedClipTeacher.load(towers_card(), workspace.final("teacher"))
    seen = torch.from_numpy(np.stack([teacher.fit(workspace.corpus.picture(row)) for row in range(0, 24, 2)]))
    close: dict[str, Any] = {
        "rtol": 0.05,
        "atol": 0.05,
    }  # bfloat16 features, where the machine has it
    torch.testing.assert_close(torch.from_numpy(np.array(image)), teacher.encode_images(seen), **close)
    said = [workspace.texts[row] for row in range(24)]
    torch.testing.assert_close(torch.from_numpy(np.array(text)), teacher.encode_texts(said), **close)


def test_it_is_planned_without_weights(workspace: Workspace) -> None:
    recipe: Any = workspace.recipe
    module = TeacherTask.build_network(recipe, FACTS, "teacher")
    batch = TeacherTask.example_batch(recipe, FACTS, "teacher", 4, 0.0)
    assert isinstance(batch, CaptionedBatch)
    assert module(batch)["clip"].isfinite()
    assert _teacher_flops(recipe, FACTS) > 0


# ---- zero-shot ---------------------------------------------------------------------------------------------------


def test_zero_shot_says_which_pictures_find_their_label(workspace: Workspace) -> None:
    """Pictures 10 and 11 are of the split `test`: the one of a dog looks like itself, the cat's like a dog."""
    dog, cat = np.eye(2, dtype=np.float32)
    labels = list(workspace.corpus.column("label"))
    text = np.array([dog if label == "dog" else cat for label in labels])
    text[np.arange(24) % 2 == 1] = dog  # the second language calls all of them a dog
    image = np.tile(dog, (12, 1))
    rows = {(row.metric, row.language, row.split): row for row in zero_shot_rows(workspace, image, text)}
    assert {split for _, _, split in rows} == {"test"}
    one = rows["zero_shot1", "en", "test"]
    assert (one.value, one.n, one.chance, one.system) == (0.5, 2, 0.5, "teacher")
    assert rows["zero_shot1", "ar", "test"].value == 0.5, "two labels at one place: by chance"
    assert rows["zero_shot5", "all", "test"].value == 1.0
