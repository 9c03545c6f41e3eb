"""Teachers of published towers: they load by name, frozen parts stay where they are, heads are saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoTokenizer

from sta.config.published import MODELS
from sta.errors import WeightsError
from sta.models.teachers._towers import build_clip, check_hashes, without_trunks
from sta.models.teachers.trained_clip import TrainedClipTeacher, save
from tests.published_towers import IMAGE, TEXT, towers_card, write_towers

TEXTS = ["a red dog", "chat"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_towers(tmp_path_factory.mktemp("towers"))


@pytest.fixture(autouse=True)
def weights(towers: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MODELS, str(towers))
    return towers


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8))


def test_towers_have_the_published_weights(towers: Path) -> None:
    model = build_clip(towers_card())
    seeing, reading = (load_file(towers / name / "model.safetensors") for name in (IMAGE, TEXT))
    assert model.visual.trunk.trunk.conv_stem.weight.equal(seeing["conv_stem.weight"])
    embeddings = model.text.transformer.state_dict()["embeddings.word_embeddings.weight"]
    assert embeddings.dtype == torch.float32, "half precision is for the disk"
    assert embeddings.equal(reading["embeddings.word_embeddings.weight"].float())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.rsplit(".", 2)[0] for name in trained} == {"logit_scale", "visual.head", "text.proj"}


def test_texts_are_read_as_transformers_has_it(towers: Path) -> None:
    """The prefix before each, the mean over the tokens; what a text is padded with does not matter."""
    teacher = TrainedClipTeacher.untrained(towers_card(), None)
    tokenizer, network = AutoTokenizer.from_pretrained(towers / TEXT), AutoModel.from_pretrained(towers / TEXT).float()
    with torch.no_grad():
        for text, found in zip(TEXTS, teacher.frozen_texts(TEXTS), strict=True):
            states = network(**tokenizer("query: " + text, return_tensors="pt")).last_hidden_state
            torch.testing.assert_close(found, states[0].mean(0))


def test_features_of_pictures_are_those_of_the_last_stages(pixels: torch.Tensor) -> None:
    teacher = TrainedClipTeacher.untrained(towers_card(), None)
    found, trunk = teacher.frozen_images(pixels), teacher.model.visual.trunk.trunk
    with torch.no_grad():
        stages = trunk.forward_intermediates(teacher.preprocessing.normalise(pixels), intermediates_only=True)[-2:]
    pooled = [pool for stage in stages for pool in (stage.mean((2, 3)), stage.flatten(2).max(-1).values)]
    torch.testing.assert_close(found, torch.cat(pooled, 1))
    assert teacher.model.visual.trunk.num_features == found.shape[1] == 2 * (48 + 64)


def test_pictures_are_seen_at_the_cards_resolution_and_scaled_to_the_networks(pixels: torch.Tensor) -> None:
    teacher = TrainedClipTeacher.untrained(towers_card(image_size=16), None)
    picture = Image.fromarray(pixels[0].numpy())
    small = np.array(teacher.fit(picture))
    assert small.shape == (16, 16, 3)
    found = teacher.frozen_images(torch.from_numpy(small)[None])
    assert not found.allclose(teacher.frozen_images(pixels[:1]))
    wide = teacher.preprocessing.normalise(torch.from_numpy(small)[None])
    assert wide.shape == (1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found, teacher.model.visual.trunk(wide))


def test_frozen_features_projected_are_the_embeddings(pixels: torch.Tensor) -> None:
    teacher = TrainedClipTeacher.untrained(towers_card(), None)
    images, texts = teacher.frozen_images(pixels), teacher.frozen_texts(TEXTS)
    torch.testing.assert_close(teacher.project("image", images), teacher.encode_images(pixels))
    torch.testing.assert_close(teacher.project("text", texts), teacher.encode_texts(TEXTS))
    assert (teacher.card.pieces, teacher.card.pixels) == (None, None)


def test_saved_without_its_frozen_towers_it_comes_back_the_same(tmp_path: Path, pixels: torch.Tensor) -> None:
    teacher = TrainedClipTeacher.untrained(towers_card(), None)
    save(without_trunks(build_clip(towers_card()), ["image", "text"]), towers_card(), None, tmp_path / "untrained")
    save(teacher.model, towers_card(), None, tmp_path / "it")
    assert sorted(path.name for path in (tmp_path / "it").iterdir()) == ["config.json", "model.safetensors"]
    kept = load_file(tmp_path / "it" / "model.safetensors")
    assert not [key for key in kept if "trunk" in key or "transformer" in key]
    assert set(kept) == set(load_file(tmp_path / "untrained" / "model.safetensors"))
    again = TrainedClipTeacher.load(towers_card(), tmp_path / "it")
    assert again.encode_images(pixels).equal(teacher.encode_images(pixels))
    assert again.encode_texts(TEXTS).equal(teacher.encode_texts(TEXTS))


def test_other_weights_than_it_was_trained_with_are_refused(tmp_path: Path) -> None:
    save(build_clip(towers_card()), towers_card(), None, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["tower_sha256"] == check_hashes(towers_card())
    (tmp_path / "config.json").write_text(
        json.dumps(saved | {"tower_sha256": saved["tower_sha256"] | {"image": "0" * 64}})
    )
    with pytest.raises(
        WeightsError, match=r"the image tower it was made with has 000.*bring back those weights"
    ) as error:
        TrainedClipTeacher.load(towers_card(), tmp_path)
    assert "\n" not in str(error.value)


def test_towers_that_are_not_there_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODELS, str(tmp_path))
    monkeypatch.setattr("sta.models.teachers._towers.hf_hub_download", _offline)
    text = towers_card().config["text_cfg"] | {"hf_model_name": str(write_towers(tmp_path / "own") / TEXT)}
    card = towers_card(config=towers_card().config | {"text_cfg": text})
    with pytest.raises(
        WeightsError, match=rf"'of-parts': its towers {IMAGE} and .* cannot be loaded \(offline\)"
    ) as error:
        build_clip(card)
    assert str(error.value).endswith("put them in a folder by these names and set STA_MODELS to it")


def test_weights_that_are_cut_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_towers(tmp_path) / IMAGE / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setenv(MODELS, str(tmp_path))
    with pytest.raises(WeightsError, match=r"'of-parts': its towers .* cannot be loaded") as error:
        build_clip(towers_card())
    assert "\n" not in str(error.value)


def _offline(*args: str) -> str:
    raise OSError("offline")


def test_a_folder_says_which_network_it_holds(tmp_path: Path, towers: Path) -> None:
    """As timm writes its models: the architecture stands in config.json, and the folder is called anything."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.safetensors").write_bytes((towers / IMAGE / "model.safetensors").read_bytes())
    said = {"architecture": "test_efficientnet", "num_classes": 1000, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (mine / "config.json").write_text(json.dumps(said))
    config = towers_card().config
    vision = config["vision_cfg"] | {"timm_model_name": str(mine)}
    teacher = TrainedClipTeacher.untrained(towers_card(config=config | {"vision_cfg": vision}), None)
    assert teacher.preprocessing.mean == (0.1, 0.2, 0.3)


def test_open_clips_own_heads_where_the_card_has_none(pixels: torch.Tensor) -> None:
    config = towers_card().config
    vision, text = config["vision_cfg"] | {"timm_proj": "mlp"}, config["text_cfg"] | {"hf_proj_type": "mlp"}
    card = towers_card(head=None, image_stages=0, config=config | {"vision_cfg": vision, "text_cfg": text})
    teacher = TrainedClipTeacher.untrained(card, None)
    assert isinstance(teacher.model.text.proj, nn.Sequential)
    assert teacher.project("image", teacher.frozen_images(pixels)).shape == (3, 8)


def test_an_outline_needs_no_weights(towers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = tmp_path / TEXT
    only.mkdir(parents=True)
    (only / "config.json").write_bytes((towers / TEXT / "config.json").read_bytes())
    monkeypatch.setenv(MODELS, str(tmp_path))
    network, length = TrainedClipTeacher.outline(towers_card())
    assert (length, {parameter.device.type for parameter in network.parameters()}) == (16, {"meta"})


@pytest.mark.parametrize("changes", [{"frozen": ["text"]}, {"frozen": [], "tower_sha256": {"text": "0" * 64}}])
def test_a_tower_that_is_not_published_cannot_be_frozen(changes: dict[str, object]) -> None:
    small = {"context_length": 10, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    with pytest.raises(ValueError, match=r"the text tower is no published network; name one in config\."):
        towers_card(config=towers_card().config | {"text_cfg": small}, **changes)


def test_stages_are_for_a_head_of_our_own() -> None:
    with pytest.raises(ValueError, match="image_stages are for a head upon a frozen image tower"):
        towers_card(head=None)
