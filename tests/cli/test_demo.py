"""The demo: what it says, draws and marks, and what it refuses."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sta.cli.demo import Captions, Demo, score
from sta.cli.main import main
from sta.config.recipe import dump_recipe, load_recipe
from sta.data.checksums import write_sums
from sta.data.corpora.garden.attributes import GardenAttributes
from sta.data.corpora.garden.world import Scene
from sta.data.synthesis.espeak import TEST_VARIANTS
from sta.inference import weights
from sta.metrics.page import Example
from tests.release_fixtures import LANGUAGES, write_tiny_garden, write_tiny_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_garden(tmp_path_factory.mktemp("tiny") / "release")


@pytest.fixture(scope="module")
def demo(release: Path) -> Demo:
    return Demo(release)


@pytest.fixture(scope="module")
def shipped(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two releases as they ship: a tiny one trained on emoji, and the one on Garden."""
    folder = tmp_path_factory.mktemp("shipped")
    emoji = write_tiny_release(folder / "picturebook", "latent-diffusion")
    recipe = load_recipe("picturebook-mini", ["languages=[en, ar]", f"corpus.root={folder}"])
    (emoji / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    write_sums(emoji)
    shutil.copytree(release, folder / "garden")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; the command's own changes of the environment are undone."""
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(environment)


def test_sentences_are_new_combinations_in_every_mood(demo: Demo) -> None:
    sentences = list(demo.sentences(LANGUAGES, seed=0, count=6))
    assert Counter(s.language for s in sentences) == dict.fromkeys(LANGUAGES, 6)
    assert {s.mood for s in sentences} == set(demo.said.moods)
    en, ar = ([s.said for s in sentences if s.language == code] for code in LANGUAGES)
    assert en == ar, "the same scenes in every language"
    assert list(demo.sentences(LANGUAGES, seed=0, count=6)) == sentences
    assert list(demo.sentences(LANGUAGES, seed=1, count=6)) != sentences
    assert isinstance(demo.said, Captions)
    attributes = demo.said.attributes
    assert isinstance(attributes, GardenAttributes)
    for sentence in sentences:
        world = attributes.world
        constant = {slot: values[0] for slot, values in world.slots.items() if len(values) == 1}
        scene = Scene(sentence.said["kind"], constant | sentence.said, sentence.mood, 0)
        assert world.held_out(scene, attributes.share)


def test_the_page_and_the_grid(release: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", str(release), "--captions", "3", "--pictures", "2"]
    assert main(["demo", *options]) == 0
    page = (here / "demo" / "demo.html").read_text(encoding="utf-8")
    assert page.count("<audio") == page.count("<article") == 6
    assert page.count("<figure>") == 12
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page needs no network"
    assert re.search(r"\d+ of \d+ attributes and moods are right", capsys.readouterr().out)
    with Image.open(here / "demo" / "demo.png") as grid:
        grid.verify()
    assert main(["demo", *options, "--out", "again"]) == 0
    assert (here / "again" / "demo.html").read_text(encoding="utf-8") == page


def test_own_words_in_every_mood(demo: Demo, release: Path, here: Path) -> None:
    assert [s.mood for s in demo.say("a red bird", "en", None, 0)] == list(demo.said.moods)
    asked = ["--say", "طائر رأسه أحمر", "--language", "ar", "--mood", "sad", "--pictures", "1"]
    assert main(["demo", "--weights", str(release), *asked]) == 0
    page = (here / "demo" / "demo.html").read_text(encoding="utf-8")
    assert page.count("<article") == 1
    assert 'dir="rtl">طائر رأسه أحمر' in page
    assert re.findall(r"</span>\s*(\w+) sad", page) == ["mood"]


def test_score_counts_attributes_and_mood() -> None:
    shown = Example(
        "a red bird", "en", "ltr", "sad", "", None, None, [Image.new("RGB", (2, 2))] * 2,
        {"kind": "bird", "head": "red"},
        [{"kind": "bird", "head": "red", "mood": "sad"}, {"kind": "flower", "head": "red", "mood": "happy"}],
    )  # fmt: skip
    assert score([shown]) == (4, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--say", "a bird"], ["--language"]),
        (["--mood", "sad"], ["--say"]),
        (["--say", "a bird", "--language", "en", "--mood", "angry"], ["'angry'", "neutral, happy, sad"]),
        (["--say", " ", "--language", "en"], ["no words"]),
        (["--say", "a red bird " * 60, "--language", "en"], ["s to say", "shorter text"]),
        (["--say", "ndege", "--language", "sw"], ["'sw'", "known: ar, en"]),
        (["--language", "sw"], ["'sw'", "known: ar, en"]),
        (["--out", "taken"], ["taken", "not a folder"]),
        (["--weights", "nowhere"], ["nowhere", "no such folder"]),
    ],
)
def test_what_is_refused(
    release: Path, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    (here / "taken").touch()
    assert main(["demo", "--weights", str(release), *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in said for word in words), said
    assert not (here / "demo").exists()


def test_a_release_that_was_not_trained_on_garden(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_garden(here / "release")
    for path in (folder / "classifier").iterdir():
        path.unlink()
    (folder / "classifier").rmdir()
    write_sums(folder)
    assert main(["demo", "--weights", str(folder)]) == 2
    assert "not trained on Garden" in capsys.readouterr().err
    bare = write_tiny_release(here / "bare")
    assert main(["demo", "--weights", str(bare)]) == 2
    assert "recipe.yaml" in capsys.readouterr().err


# ---- of named things, and of both worlds ------------------------------------------------------------------------


def test_languages_take_turns_at_the_things(shipped: Path) -> None:
    demo = Demo(shipped / "picturebook")
    sentences = list(demo.sentences(LANGUAGES, seed=0, count=2))
    assert [(s.language, s.text, s.said["kind"]) for s in sentences] == [
        ("en", "a tiger", "a tiger"), ("en", "an airplane", "an airplane"),
        ("ar", "مَوْزَةٌ", "a banana"), ("ar", "بِطْرِيقٌ", "a penguin"),
    ]  # fmt: skip
    assert Counter(s.language for s in demo.sentences(LANGUAGES, seed=0)) == {"en": 4, "ar": 4}
    assert len(list(demo.sentences(["ar"], seed=0))) == 8, "some twice, where few languages are asked for"
    assert len({(s.language, s.text) for s in demo.sentences(LANGUAGES, seed=1, count=6)}) == 12
    example = demo.example(sentences[2], 2)
    assert "+" in example.source, "a voice of espeak"
    assert example.source.rpartition("+")[2] in TEST_VARIANTS
    assert (example.gloss, example.predicted, len(example.drawn)) == ("a banana", [], 2)


@pytest.mark.parametrize(
    ("arguments", "sections", "recordings", "marked"),
    [
        ((), ["picturebook-mini, ar", "picturebook-mini, en", "garden-tiny, ar", "garden-tiny, en"], 8, True),
        (("--language", "en"), ["picturebook-mini, en", "garden-tiny, en"], 4, True),
        (("--say", "a red bird", "--language", "en"), ["picturebook-mini, en", "garden-tiny, en"], 4, True),
        (("--say", "a bird", "--language", "en", "--mood", "sad"), ["garden-tiny, en"], 1, True),
        (("--weights", "picturebook"), ["picturebook-mini, ar", "picturebook-mini, en"], 4, False),
    ],
)
def test_both_worlds_are_on_one_page(
    shipped: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], sections: list[str], recordings: int, marked: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(weights, "SHIPPED", shipped)
    monkeypatch.setattr(weights, "DEFAULT", "picturebook")
    captions = () if "--say" in arguments else ("--captions", "2")
    assert main(["demo", "--pictures", "1", *captions, *arguments]) == 0
    page = (here / "demo" / "demo.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>Pictures: (.*?)</h2>", page) == sections
    assert re.findall(r'href="#(gallery-\S+)"', page) == re.findall(r'id="(gallery-\S+)"', page) != []
    assert page.count("<article") == recordings
    assert ("attributes and moods are right" in capsys.readouterr().out) == marked


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--language", "sw"], "language 'sw' is not in this release (known: ar, en); train or add its pack"),
        (
            ["--say", "a bird", "--language", "en", "--mood", "angry"],
            "mood 'angry' is not one of this release's: neutral; moods are what the release garden knows",
        ),
    ],
)
def test_what_no_world_knows(
    shipped: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(weights, "SHIPPED", shipped)
    monkeypatch.setattr(weights, "DEFAULT", "picturebook")
    assert main(["demo", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (here / "demo").exists()


def test_a_corpus_that_names_nothing(shipped: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(shipped / "picturebook", here / "birds"))
    recipe = load_recipe("garden-tiny", [f"corpus={{name: folder, root: {here}, size: 16}}"])
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    write_sums(folder)
    assert main(["demo", "--weights", str(folder)]) == 2
    assert "was not trained on Garden or emoji, so the demo has nothing to say" in capsys.readouterr().err
