"""What a frozen teacher gives of pictures and captions: of original pictures, in parts, by any number of ranks."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sta.config.cards import load_teacher
from sta.data.rows import Corpus, write_shard
from sta.distributed.sharding import BatchShard
from sta.distributed.team import Team
from sta.models.teachers.base import Preprocessing, Teacher, teacher_class
from sta.training import caching
from sta.training.teacher_features import cache_teacher, teacher_features
from tests.parquet_fixtures import sample
from tests.training.test_captions import CLIP

CPU = torch.device("cpu")
CARD = """
name: on-disk
embedding_width: {width}
image_size: {size}
text_languages: [en]
licence: MIT
source: here
"""


class Numbers(Teacher):
    """A teacher whose features say which item they are of."""

    batches: list[int] = []  # noqa: RUF012 (one for all: it is loaded anew each time)

    @classmethod
    def load(cls, card: Any, folder: Path | None = None) -> Numbers:
        return cls(card, Preprocessing(card.image_size))

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(pixels))
        return pixels[:, 0, 0, :2].float()

    def encode_texts(self, texts: Any) -> torch.Tensor:
        self.batches.append(len(texts))
        return torch.tensor([[float(text), 0.0] for text in texts])


def workspace_of(card: Path, cache: Path, corpus: Any, texts: list[str]) -> Any:
    teacher = load_teacher(card)
    return SimpleNamespace(
        teacher_card=teacher, teacher_class=teacher_class(teacher), cache=cache, corpus=corpus, texts=texts
    )


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Eleven pictures and seven captions, in batches of two and parts of four."""
    monkeypatch.setattr(caching, "BATCH", 2)
    monkeypatch.setattr(caching, "BATCHES_PER_PART", 2)
    monkeypatch.setattr(Numbers, "batches", [])
    card = tmp_path / "numbers.yaml"
    card.write_text(CARD.format(width=2, size=4) + f"kind: {__name__}:Numbers\n", encoding="utf-8")
    corpus = SimpleNamespace(
        image_index=(None, 10 * np.arange(11)), picture=lambda row: Image.new("RGB", (8, 6), (row // 10,) * 3)
    )
    return workspace_of(card, tmp_path / "cache", corpus, [str(100 + n) for n in range(7)])


@pytest.mark.parametrize("world", [1, 2, 5, 9])
def test_any_number_of_ranks_asks_the_teacher(workspace: Any, world: int) -> None:
    """In parts: three of pictures and two of captions, so of nine ranks four have nothing to do."""
    for rank in reversed(range(world)):  # rank 0 joins what the others left
        folder = cache_teacher(workspace, CPU, Team(BatchShard(rank, world)))
        assert folder.exists() == (rank == 0)
    image, text = teacher_features(workspace, CPU)
    assert image.tolist() == [[float(n), float(n)] for n in range(11)]
    assert text.tolist() == [[100.0 + n, 0.0] for n in range(7)]
    assert sorted(Numbers.batches) == [1, 1, 2, 2, 2, 2, 2, 2, 2, 2], "each item once"
    assert sorted(path.name for path in folder.iterdir()) == ["image.npy", "text.npy"]


def test_parts_that_a_stop_left_are_kept(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(teacher: Numbers, texts: list[str]) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Numbers, "encode_texts", stopping)
        with pytest.raises(KeyboardInterrupt):
            cache_teacher(workspace, CPU)
    assert Numbers.batches == [2, 2, 2, 2, 2, 1]
    Numbers.batches.clear()
    image, text = teacher_features(workspace, CPU)
    assert Numbers.batches == [2, 2, 2, 1], "pictures are not seen again"
    assert image[:, 0].tolist() == list(range(11))
    assert len(text) == 7


def test_half_a_part_is_made_again(workspace: Any) -> None:
    """What another version left is not taken for a part, nor kept."""
    folder = cache_teacher(workspace, CPU, Team(BatchShard(1, 2)))
    partial = folder.with_name(folder.name + ".partial")
    (partial / "image-0.partial").mkdir()
    (partial / "image-0.partial" / "values.npy").write_bytes(b"half")
    (partial / "image-0.npy").write_bytes(b"another version's")
    cache_teacher(workspace, CPU)
    assert teacher_features(workspace, CPU)[0][:, 0].tolist() == list(range(11))
    assert sorted(path.name for path in folder.iterdir()) == ["image.npy", "text.npy"]


def test_features_that_are_there_need_no_teacher(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_teacher(workspace, CPU)
    monkeypatch.delattr(Numbers, "load")
    assert len(teacher_features(workspace, CPU)[0]) == 11


@pytest.mark.parametrize(
    ("weights", "hashed", "sees_again"),
    [
        ("architecture: RN50\npretrained: {folder}/weights.pt", False, True),
        ("architecture: RN50\npretrained: {folder}/weights.pt", True, False),
        ("architecture: local-dir:{folder}", True, True),
        ("architecture: RN50\npretrained: openai", False, False),
    ],
    ids=["file", "file with its hash", "folder", "downloaded"],
)
def test_another_file_of_the_same_name_is_another_teacher(
    workspace: Any, tmp_path: Path, weights: str, hashed: bool, sees_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the card says its hash, its teacher refuses another one."""
    folder, path = tmp_path / "teacher", tmp_path / "on-disk.yaml"
    folder.mkdir()
    (folder / "weights.pt").write_bytes(b"these")
    said = CARD.format(width=2, size=4) + weights.format(folder=folder) + f"\nsha256: {'a' * 64}" * hashed
    path.write_text(said, encoding="utf-8")
    workspace.teacher_card = card = load_teacher(path)
    workspace.teacher_class = teacher_class(card)
    monkeypatch.setattr(workspace.teacher_class, "load", Numbers.load)
    before = cache_teacher(workspace, CPU)
    assert cache_teacher(workspace, CPU) == before
    (folder / "weights.pt").write_bytes(b"those others")
    assert (cache_teacher(workspace, CPU) != before) == sees_again


def test_the_teacher_sees_the_original_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As open_clip's own transform shows them, not those of 64 pixels that the decoder draws."""
    torch.manual_seed(0)
    clip: dict[str, Any] = dict(CLIP)
    clip["vision_cfg"], folder = {**clip["vision_cfg"], "image_size": 96}, tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": clip}))
    model = open_clip.CLIP(clip["embed_dim"], clip["vision_cfg"], clip["text_cfg"]).eval()  # type: ignore[arg-type]
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    card = tmp_path / "clip.yaml"
    card.write_text(CARD.format(width=8, size=96) + f"architecture: local-dir:{folder}\n", encoding="utf-8")
    (tmp_path / "shards").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 240, 256, 3), dtype=np.uint8)
    originals = [Image.fromarray(one) for one in pixels]
    rows = [sample(2 * n) for n in range(3)]
    for row, picture in zip(rows, originals, strict=True):
        picture.save(tmp_path / f"{row['id']}.png")
        row["image"] = {"bytes": None, "path": str(tmp_path / f"{row['id']}.png")}
    write_shard(rows, tmp_path / "shards" / "00000.arrow")
    monkeypatch.setattr("sta.training.teacher_features.bf16_autocast", lambda device: nullcontext())
    seen, _ = teacher_features(workspace_of(card, tmp_path, Corpus(tmp_path), ["a bird"] * 3), CPU)

    own = open_clip.image_transform(
        96, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    with torch.no_grad():
        wanted = model.encode_image(torch.stack([own(picture) for picture in originals]), normalize=True)
        store = np.stack([np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS)) for picture in originals])
        drawn = teacher_class(load_teacher(card)).load(load_teacher(card)).encode_images(torch.from_numpy(store))
    torch.testing.assert_close(torch.from_numpy(np.array(seen)), wanted, atol=1e-4, rtol=0)
    assert (drawn - wanted).abs().max() > 0.01
