"""The weights that ship: whole, small, made by the recipe that ships beside them, and still drawing what is said."""

from __future__ import annotations

import json
import re
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from safetensors import safe_open

from sta import SpeechToImagePipeline
from sta.cli.demo import Demo, score
from sta.cli.locate import release_of
from sta.cli.main import main
from sta.config.recipe import load_recipe, makes_the_same
from sta.data.checksums import write_sums
from sta.errors import WeightsError
from sta.inference import weights
from sta.inference.release import PRETRAINED, load_release, verify
from sta.models.precision import SCALES

GOLDENS = Path(__file__).parents[1] / "goldens"
GARDEN = weights.SHIPPED / weights.GARDEN
NAMES = (weights.DEFAULT, weights.GARDEN)
MOST_MEGABYTES = 92  # both; the package's code and the languages are two more, and a wheel has at most 95


@pytest.fixture(scope="module")
def show() -> Demo:
    return Demo(PRETRAINED)


@pytest.fixture(scope="module")
def picturebook(show: Demo) -> SpeechToImagePipeline:
    return show.pipe


def test_two_releases_ship_and_are_small() -> None:
    assert [path.name for path in weights.shipped()] == ["picturebook", "garden"]
    files = [path for path in weights.SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_MEGABYTES * 1e6
    for path in (path for path in files if path.suffix == ".safetensors"):
        with safe_open(path, "pt") as found:
            kinds = {found.get_tensor(name).dtype for name in found.keys() if not name.endswith(SCALES)}  # noqa: SIM118
        assert torch.float32 not in kinds, path


@pytest.mark.parametrize("name", NAMES)
def test_a_release_is_whole(name: str) -> None:
    verify(weights.SHIPPED / name)


@pytest.mark.parametrize("name", NAMES)
def test_its_recipe_is_the_one_in_the_repository(name: str) -> None:
    path = weights.SHIPPED / name / "recipe.yaml"
    assert makes_the_same(load_recipe(path), load_recipe(name))
    assert not re.search(r": /", path.read_text(encoding="utf-8")), "a path of the machine that made it"


@pytest.mark.parametrize("name", NAMES)
def test_its_card_says_how_it_was_made(name: str) -> None:
    card = ModelCard.load(weights.SHIPPED / name / "README.md")
    assert card.data.to_dict()["language"] == load_recipe(name).languages
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.text.splitlines()]
    facts = {row[0]: row[1] for row in rows if len(row) == 2 and row[0]}
    assert facts.keys() >= {"commit", "seed", "data", "minutes of training", "machine"}
    assert not any("unknown" in fact or not fact for fact in facts.values()), facts


def test_it_is_what_is_drawn_with_where_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picturebook: SpeechToImagePipeline
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STA_WEIGHTS", raising=False)
    assert release_of(None) == release_of(Path("picturebook")) == PRETRAINED == picturebook.folder
    assert SpeechToImagePipeline.from_pretrained().folder == PRETRAINED
    assert release_of(Path("garden")) == GARDEN
    assert list(SpeechToImagePipeline.from_pretrained("garden").languages) == ["ar", "en"]
    assert main(["demo", "--captions", "1", "--pictures", "1"]) == 0
    assert (tmp_path / "demo" / "demo.html").exists()


def test_a_recording_is_drawn_with_no_more_than_its_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STA_WEIGHTS", raising=False)
    assert main(["speak", "une baleine", "--language", "fr", "--out", "hello.wav"]) == 0
    capsys.readouterr()
    assert main(["draw", "hello.wav", "--language", "fr"]) == 0
    assert capsys.readouterr() == ("drawings/hello.png\n", "")


@pytest.mark.parametrize("language", load_recipe(weights.DEFAULT).languages)
def test_it_draws_in_every_language_of_the_recipe(language: str, show: Demo) -> None:
    (sentence,) = show.said.sentences([language], 0, 1)
    wave, _ = show.said.speak(sentence)
    drawn = show.pipe(wave, language=language, num_inference_steps=1, output_type="np").images
    assert drawn.shape == (1, 128, 128, 3)
    assert 0 < drawn.std() < 1


def test_a_language_that_it_has_not(picturebook: SpeechToImagePipeline) -> None:
    known = ", ".join(sorted(load_recipe(weights.DEFAULT).languages))
    with pytest.raises(WeightsError, match=rf"language 'sw' is not in this release \(known: {known}\); train or add"):
        picturebook.pack("sw")
    with pytest.raises(WeightsError, match=r"'fr' .*\(known: ar, en\); draw with picturebook, which ships"):
        SpeechToImagePipeline.from_pretrained("garden").pack("fr")


def test_what_garden_alone_knows(picturebook: SpeechToImagePipeline) -> None:
    assert [path.name for path in weights.shipped() if weights.classifier_of(path)] == [weights.GARDEN]
    assert SpeechToImagePipeline.from_pretrained("garden").encode_text("a bird", "en").tokens.isfinite().all()
    for reads in (picturebook.transcribe, picturebook.encode_text):
        with pytest.raises(WeightsError, match=r"'fr' .*reads no text; .* take a release that reads, such as garden"):
            reads(str(GOLDENS / "en.flac"), "fr")


def test_a_name_means_the_same_in_all_languages(show: Demo, picturebook: SpeechToImagePipeline) -> None:
    """In voices that training never heard, each thing of the demo is nearest to itself in another language."""
    said = [[show.said.speak(s)[0] for s in show.said.sentences([code], 0, 6)] for code in picturebook.languages]
    embedded = [
        F.normalize(picturebook.encode_speech(waves, code).embedding, dim=-1)
        for waves, code in zip(said, picturebook.languages, strict=True)
    ]
    nearest = [(one @ other.T).argmax(1) for one, other in permutations(embedded, 2)]
    right = torch.stack(nearest).eq(torch.arange(len(said[0]))).float().mean().item()
    assert right > 0.8, right


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
    old = Path(shutil.copytree(GARDEN, tmp_path / "old"))
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
    demo = Demo(GARDEN)
    examples = [demo.example(sentence, 1) for sentence in demo.sentences([language], seed=11, count=10)]
    right, marked = score(examples)
    assert right / marked > 0.85


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garden").mkdir()
    assert release_of(Path("garden")) == Path("garden")
