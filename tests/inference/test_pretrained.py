"""The weights that ship: whole, small, made by the recipe that ships beside them, and still drawing what is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from sta import SpeechToImagePipeline
from sta.cli.demo import Demo, score
from sta.cli.locate import release_of
from sta.cli.main import main
from sta.config.recipe import load_recipe, makes_the_same
from sta.data.checksums import write_sums
from sta.inference.release import PRETRAINED, load_release, verify

GOLDENS = Path(__file__).parents[1] / "goldens"
MOST_MEGABYTES = 40


def test_the_release_is_whole_and_small() -> None:
    verify(PRETRAINED)
    files = [path for path in PRETRAINED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_MEGABYTES * 1e6
    for path in (path for path in files if path.suffix == ".safetensors"):
        with safe_open(path, "pt") as weights:
            kinds = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
        assert torch.float32 not in kinds, path


def test_its_recipe_is_the_one_in_the_repository() -> None:
    assert makes_the_same(load_recipe(PRETRAINED / "recipe.yaml"), load_recipe("garden"))


def test_its_card_says_how_it_was_made() -> None:
    card = ModelCard.load(PRETRAINED / "README.md")
    assert card.data.to_dict()["language"] == ["en", "ar"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.text.splitlines()]
    facts = {row[0]: row[1] for row in rows if len(row) == 2 and row[0]}
    assert facts.keys() >= {"commit", "seed", "data", "minutes of training", "machine"}
    assert not any("unknown" in fact or not fact for fact in facts.values()), facts


def test_it_is_what_is_drawn_with_where_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STA_WEIGHTS", raising=False)
    assert release_of(None) == release_of(Path("garden")) == PRETRAINED
    assert list(SpeechToImagePipeline.from_pretrained("garden").languages) == ["ar", "en"]
    assert main(["demo", "--captions", "1", "--pictures", "1"]) == 0
    assert (tmp_path / "demo" / "demo.html").exists()


@pytest.mark.parametrize("language", ["en", "ar"])
def test_the_same_recording_and_seed_draw_the_same_picture_as_ever(language: str) -> None:
    """As version 0.1 drew them (tests/goldens, made at commit 1a56c21).

    Where vectors are of another length, or sums of another order, latents differ by less than 1e-5.
    """
    golden, said = np.load(GOLDENS / "garden.npz"), GOLDENS / f"{language}.flac"
    pipe = SpeechToImagePipeline.from_pretrained("garden")
    drawn = pipe(said, language=language, generator=torch.Generator().manual_seed(0), output_type="latent")
    assert pipe.transcribe(said, language=language) == golden[f"{language}_text"].tolist()
    for name, value in (
        ("tokens", drawn.tokens.tokens),
        ("embedding", drawn.tokens.embedding),
        ("latents", drawn.images),
    ):
        np.testing.assert_allclose(value, golden[f"{language}_{name}"], atol=1e-4, rtol=0, err_msg=name)
    pixels = np.asarray(pipe.postprocess(drawn.images)[0]).astype(int)
    assert np.abs(pixels - golden[f"{language}_picture"]).max() <= 1


def test_a_release_of_version_0_1_is_loaded(tmp_path: Path) -> None:
    """Its index names modules that are gone and a default by another name, and its classifier was a reader."""
    old = Path(shutil.copytree(PRETRAINED, tmp_path / "old"))
    index = json.loads((old / "model_index.json").read_text())
    index |= {"decoder": ["sta.models.decoder", "LatentDecoder"], "num_hearings": index.pop("num_tta_samples")}
    (old / "model_index.json").write_text(json.dumps(index))
    (old / "classifier").rename(old / "reader")
    write_sums(old)
    pipe = load_release(old)
    assert pipe.config["num_tta_samples"] == 5
    classifier = Demo(old).classifier
    assert classifier is not None
    assert classifier.config.slots.keys() >= {"kind", "mood"}
    pipe.save_pretrained(tmp_path / "new")
    verify(tmp_path / "new")
    named = json.loads((tmp_path / "new" / "model_index.json").read_text())
    assert named["decoder"] == ["sta.models.decoders.latent_diffusion", "LatentDecoder"]
    assert {path.name for path in (tmp_path / "new").iterdir()} >= {"README.md", "recipe.yaml", "classifier"}
    assert not (tmp_path / "new" / "reader").exists()


@pytest.mark.parametrize("language", ["en", "ar"])
def test_it_draws_what_is_said(language: str) -> None:
    """New combinations in voices that training never heard; a break anywhere costs far more than the slack."""
    demo = Demo(PRETRAINED)
    examples = [demo.example(sentence, 1) for sentence in demo.sentences([language], seed=11, count=10)]
    right, marked = score(examples)
    assert right / marked > 0.85


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garden").mkdir()
    assert release_of(Path("garden")) == Path("garden")
