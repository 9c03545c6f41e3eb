"""The frozen teacher: it cannot train, it is saved whole, and published ones load from disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sta.config.cards import OpenClipCard, TrainedClipCard
from sta.data.text import Pieces
from sta.errors import StaError, WeightsError
from sta.models.teachers._towers import build_clip
from sta.models.teachers.base import Preprocessing, teacher_class
from sta.models.teachers.open_clip import OpenClipTeacher
from sta.models.teachers.trained_clip import PieceTokenizer, TrainedClipTeacher, save

CONFIG: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 10, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
TEXTS = ["a red bird", "a blue bird with white wings", ""]


COMMON = {
    "name": "tiny", "embedding_width": 8, "image_size": 16, "text_languages": ["en"], "licence": "MIT",
    "source": "here",
}  # fmt: skip


def card() -> TrainedClipCard:
    return TrainedClipCard.model_validate({**COMMON, "kind": "trained-clip", "config": CONFIG})


def load_from(folder: Path) -> TrainedClipTeacher:
    return TrainedClipTeacher.load(card(), folder)


def prepared_by(pixels: torch.Tensor, how: Preprocessing) -> torch.Tensor:
    return how.normalise(pixels)


def test_a_card_names_its_class() -> None:
    published = OpenClipCard.model_validate({**COMMON, "architecture": "RN50"})
    assert (teacher_class(card()), teacher_class(published)) == (TrainedClipTeacher, OpenClipTeacher)
    assert (TrainedClipTeacher.reads(card(), "sw"), OpenClipTeacher.reads(published, "sw")) == (True, False)
    assert OpenClipTeacher.reads(published, "en-gb")


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path, pieces_model: Path) -> Path:
    torch.manual_seed(0)
    save(build_clip(card()), card(), pieces_model, tmp_path / "teacher")
    return tmp_path / "teacher"


def test_own_teacher_comes_back_the_same(folder: Path, pieces: Pieces, pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    made = TrainedClipTeacher(build_clip(card()), PieceTokenizer(pieces, 10, 64), card(), Preprocessing(16))
    again = load_from(folder)
    assert again.card == card()
    assert again.encode_images(pixels).equal(made.encode_images(pixels))
    assert again.encode_texts(TEXTS).equal(made.encode_texts(TEXTS))
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "pieces.model"]


def test_embeddings_are_unit_vectors_that_differ(folder: Path, pixels: torch.Tensor) -> None:
    teacher = load_from(folder)
    for vectors in (teacher.encode_images(pixels), teacher.encode_texts(TEXTS)):
        assert vectors.shape == (3, 8)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        assert not vectors[0].allclose(vectors[1], atol=1e-3)


def test_a_teacher_cannot_train(folder: Path, pixels: torch.Tensor) -> None:
    teacher = load_from(folder)
    assert teacher.train() is teacher
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.encode_images(pixels).requires_grad
    assert not teacher.encode_texts(TEXTS).requires_grad
    assert not any(m.training for m in torch.nn.ModuleList([teacher]).train()[0].modules())


def test_piece_tokenizer_marks_and_cuts(pieces: Pieces) -> None:
    tokenize = PieceTokenizer(pieces, 6, 64)
    long = "a red bird with blue wings " * 3
    ids = tokenize(["a red bird", long, ""])
    assert ids.shape == (3, 6)
    assert ids.dtype == torch.long
    assert ids[:, 0].tolist() == [62] * 3
    assert ids[1, 1:5].tolist() == [i + 1 for i in pieces.encode(long)][:4]
    assert ids[2].tolist() == [62, 63, 0, 0, 0, 0]
    count = min(len(pieces.encode("a red bird")), 4)
    assert ids[0, 1 + count] == 63
    assert ids.argmax(1).tolist() == [1 + count, 5, 1]  # open_clip pools where the id is highest


def test_piece_tokenizer_needs_room_for_its_marks(pieces: Pieces) -> None:
    assert int(PieceTokenizer(pieces, 6, pieces.size + 3)(["a"]).max()) == pieces.size + 2
    with pytest.raises(WeightsError, match=rf"knows {pieces.size + 2} ids, its {pieces.size} pieces need 3 more"):
        PieceTokenizer(pieces, 6, pieces.size + 2)


def test_pixels_are_prepared_as_openai_does(pixels: torch.Tensor) -> None:
    prepared = prepared_by(pixels, Preprocessing(16))
    assert prepared.shape == (3, 3, 16, 16)
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    wanted = (pixels[1, 2, 3].float() / 255 - mean) / deviation
    torch.testing.assert_close(prepared[1, :, 2, 3], wanted)
    flat = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    torch.testing.assert_close(
        prepared_by(flat, Preprocessing(16)), ((1 - mean) / deviation)[None, :, None, None].expand(1, 3, 16, 16)
    )


def test_a_teacher_of_version_0_1_loads(folder: Path, pixels: torch.Tensor) -> None:
    saved = json.loads((folder / "config.json").read_text())
    saved |= {"architecture": None, "pretrained": None, "sha256": None, "trained_here": True}
    del saved["kind"]
    before = load_from(folder).encode_images(pixels)
    (folder / "config.json").write_text(json.dumps(saved))
    assert load_from(folder).encode_images(pixels).equal(before)


# ---- pictures at their own resolution --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 256), (200, 301), (37, 90), (16, 16), (9, 12)])
@pytest.mark.parametrize("resize", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pictures_are_scaled_and_cut_as_open_clip_does(size: tuple[int, int], resize: str, interpolation: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    how = Preprocessing(16, interpolation=interpolation, resize=resize)
    wanted = open_clip.image_transform(
        16, is_train=False, mean=how.mean, std=how.deviation, interpolation=interpolation, resize_mode=resize
    )(picture)
    fitted = torch.from_numpy(np.array(how.fit(picture)))
    torch.testing.assert_close(how.normalise(fitted[None])[0], wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pieces.model"])
def test_a_missing_file_is_said(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(StaError) as error:
        load_from(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_pieces_are_a_matter_of_weights(folder: Path) -> None:
    (folder / "pieces.model").unlink()
    with pytest.raises(WeightsError):
        load_from(folder)


@pytest.mark.parametrize("kept", [0, 20, 1000])
def test_truncated_weights_are_said(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="not a whole teacher"):
        load_from(folder)


def test_weights_of_another_teacher_are_said(folder: Path) -> None:
    wide = json.loads((folder / "config.json").read_text())
    wide["config"]["embed_dim"] = 12
    (folder / "config.json").write_text(json.dumps(wide))
    with pytest.raises(WeightsError, match="not a whole teacher") as error:
        load_from(folder)
    assert "\n" not in str(error.value)


# --- published ones -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"architecture": "ViT-Nonsense"}, {"pretrained": "/nowhere/weights.pt"}])
def test_a_card_that_points_at_nothing_is_said(changes: dict[str, str]) -> None:
    published = OpenClipCard.model_validate({**COMMON, "architecture": "RN50", **changes})
    with pytest.raises(WeightsError) as error:
        OpenClipTeacher.load(published)
    text = str(error.value)
    assert all(part in text for part in ["teacher 'tiny'", *changes.values(), "`pretrained`"])
    assert "\n" not in text


@pytest.fixture
def architecture(tmp_path: Path) -> str:
    """A tiny architecture that open_clip knows by name, as it knows its own: one JSON file."""
    folder = tmp_path / "architectures"
    folder.mkdir()
    text = CONFIG["text_cfg"] | {"context_length": 77, "vocab_size": 49408}
    (folder / "sta-tiny.json").write_text(json.dumps(CONFIG | {"text_cfg": text}))
    open_clip.add_model_config(folder)
    return "sta-tiny"


def test_published_weights_load_from_disk(architecture: str, tmp_path: Path, pixels: torch.Tensor) -> None:
    torch.manual_seed(5)
    original = open_clip.create_model(architecture).eval()
    weights = tmp_path / "weights.pt"
    torch.save(original.state_dict(), weights)
    torch.manual_seed(6)
    teacher = OpenClipTeacher.load(on_disk(architecture, weights))
    images, texts = teacher.encode_images(pixels), teacher.encode_texts(TEXTS)
    with torch.no_grad():
        wanted = original.encode_image(prepared_by(pixels, Preprocessing(16)))
        read = original.encode_text(open_clip.get_tokenizer(architecture)(TEXTS))
    torch.testing.assert_close(images, F.normalize(wanted, dim=-1))
    torch.testing.assert_close(texts, F.normalize(read, dim=-1))
    assert not any(p.requires_grad for p in teacher.train().parameters())
    assert not teacher.training


@pytest.fixture
def weights(architecture: str, tmp_path: Path) -> Path:
    torch.manual_seed(5)
    path = tmp_path / "weights.pt"
    torch.save(open_clip.create_model(architecture).state_dict(), path)
    return path


def on_disk(architecture: str, weights: Path, **changes: Any) -> OpenClipCard:
    return OpenClipCard.model_validate(COMMON | {"architecture": architecture, "pretrained": str(weights)} | changes)


def test_pictures_are_prepared_as_the_model_says(
    architecture: str, weights: Path, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SigLIP and others were not trained with OpenAI's mean and deviation."""
    plain = OpenClipTeacher.load(on_disk(architecture, weights))
    create, own = open_clip.create_model, {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear"}
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: create(*a, force_preprocess_cfg=own, **k))
    other = OpenClipTeacher.load(on_disk(architecture, weights))
    assert other.preprocessing == Preprocessing(16, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), "bilinear")
    wanted = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(own["mean"])[:, None, None]) / torch.tensor(own["std"])[
        :, None, None
    ]
    torch.testing.assert_close(other.encode_images(pixels), F.normalize(plain.model.encode_image(wanted), dim=-1))
    assert not other.encode_images(pixels).allclose(plain.encode_images(pixels), atol=1e-4)


@pytest.mark.parametrize(("key", "value"), [("embedding_width", 12), ("image_size", 32)])
def test_a_card_that_says_another_size_is_refused(architecture: str, weights: Path, key: str, value: int) -> None:
    found = {"embedding_width": 8, "image_size": 16}[key]
    with pytest.raises(WeightsError, match=f"teacher 'tiny': its card says {key} {value}, and sta-tiny has {found}"):
        OpenClipTeacher.load(on_disk(architecture, weights, **{key: value}))


def test_weights_that_are_not_the_cards_are_refused(architecture: str, weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    OpenClipTeacher.load(on_disk(architecture, weights, sha256=digest))
    with pytest.raises(WeightsError, match=f"{weights} has the SHA-256 {digest}, and its card says 0000") as error:
        OpenClipTeacher.load(on_disk(architecture, weights, sha256="0" * 64))
    assert "\n" not in str(error.value)
