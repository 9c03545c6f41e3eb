"""A mixture of corpora: the rows of all under names of their own, drawn as often as the weights say."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sta.cli.main import main
from sta.config.cards import load_language
from sta.config.recipe import load_recipe
from sta.data.audio import write_wav
from sta.data.corpora.base import CorpusSource, open_source
from sta.data.corpora.mixture import MixtureSettings, MixtureSource
from sta.data.rows import Corpus
from sta.data.unreadable import read_report
from sta.errors import CorpusError, RecipeError
from sta.metrics.rows import Report
from sta.training.workspace import Workspace
from tests.conftest import TINY_WORLD, write_corpus

LANGUAGES = ("en", "ar")
CARDS = {code: load_language(code) for code in LANGUAGES}
GARDEN = {
    "name": "garden", "scenes": 6, "validation": 2, "test": 3, "swaps": 1, "held_out": 0.5,
    "world": TINY_WORLD.model_dump(),
}  # fmt: skip


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures: four with a recording and its transcript, four with a recording alone, four without speech."""
    root, lines = tmp_path_factory.mktemp("birds"), []
    for number in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 20), (20 * number, 0, 90)).save(buffer, "PNG")
        (root / f"{number}.png").write_bytes(buffer.getvalue())
        line = {"image": f"{number}.png", "language": "en", "split": "test" if number % 4 == 3 else "train"}
        if number < 8:
            write_wav(root / f"{number}.wav", (0.3 * np.sin(np.arange(6400) * (number + 3) / 50)).astype(np.float32))
            line["audio"] = f"{number}.wav"
        if number % 8 < 4:
            line["text"] = f"bird number {number}"
        lines.append(json.dumps(line))
    (root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


def settings(birds: Path, **changes: Any) -> MixtureSettings:
    folder = {"name": "folder", "root": str(birds), "max_unreadable": 0.1, **changes}
    parts = [{"weight": 3.0, "corpus": GARDEN}, {"weight": 1.0, "languages": ["en"], "corpus": folder}]
    return MixtureSettings.model_validate({"name": "mixture", "size": 24, "parts": parts})


def source(birds: Path, **changes: Any) -> CorpusSource:
    return open_source(settings(birds, **changes), CARDS, 3)


@pytest.fixture(scope="module")
def mixed(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(source(birds), tmp_path_factory.mktemp("mixture"))


def test_rows_of_all_parts_have_names_of_their_own(mixed: Corpus) -> None:
    ids, part_of = list(mixed.column("id")), mixed.part_of
    assert len(set(ids)) == len(ids)
    assert [int(name.partition("/")[0]) for name in ids] == part_of.tolist() == sorted(part_of)
    assert (part_of == 1).sum() == 12
    assert ids[-12:] == [f"1/{n}.wav" for n in range(8)] + [f"1/{n}.png:{n + 1}" for n in range(8, 12)]
    assert {mixed.picture(row).size for row in (0, len(ids) - 1)} == {(24, 24), (20, 20)}


def test_what_a_part_lacks_is_null(mixed: Corpus) -> None:
    garden = mixed.part_of == 0
    assert mixed.has_audio.tolist() == [True] * int(garden.sum()) + [True] * 8 + [False] * 4
    assert mixed.has_text[~garden].tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert {name in mixed.truths for name, own in zip(mixed.column("id"), garden, strict=True) if own} == {True}
    assert len(mixed.truths) == garden.sum()
    assert set(mixed.column("phrase").equal(True)[~garden]) == {False}


def test_a_mixture_has_what_its_parts_have(birds: Path) -> None:
    made = source(birds)
    assert made.settings.knows_attributes
    attributes = made.attributes()
    assert attributes is not None
    assert attributes.world.moods == ("happy", "sad")
    assert made.weights == (3.0, 1.0)
    assert pickle.loads(pickle.dumps(made.shards()[-1])).samples()
    outline = made.outline(40)
    assert outline.recordings == 6 * 2 * 2 + 6
    assert outline.seconds is not None
    assert made.card().licences == {"corpus Garden": "apache-2.0", f"corpus {birds.name}": None}


def test_the_version_is_of_rows_and_files(birds: Path, tmp_path: Path) -> None:
    before = source(birds).version()
    other = settings(birds, licence="mit")
    other = other.model_copy(update={"parts": [part.model_copy(update={"weight": 9.0}) for part in other.parts]})
    assert open_source(other, CARDS, 3).version() == before, "neither weights nor what a card says make other rows"
    copied = tmp_path / "birds"
    copied.mkdir()
    assert source(copied).version() != before


def test_each_part_may_lose_its_own_share(birds: Path, tmp_path: Path) -> None:
    root = tmp_path / "birds"
    root.mkdir()
    for path in birds.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    (root / "0.wav").write_bytes(b"no sound")
    assert [e.shard for e in read_report(write_corpus(source(root), tmp_path / "one").folder)] == [
        "1/metadata.jsonl, line 1"
    ]
    (root / "1.wav").write_bytes(b"no sound")
    with pytest.raises(CorpusError, match=r"2 of 12 samples cannot be read, more than corpus.max_unreadable 0.1"):
        write_corpus(source(root), tmp_path / "two")


def test_parts_that_know_different_attributes_are_refused(birds: Path) -> None:
    made = settings(birds)
    narrow = {**GARDEN, "world": {**GARDEN["world"], "moods": ["sad"]}}  # type: ignore[dict-item]
    parts = [part.model_dump() for part in made.parts[:1]] + [{"corpus": narrow}]
    other = MixtureSettings.model_validate({"name": "mixture", "parts": parts})
    with pytest.raises(RecipeError, match="two of them know different attributes; give both the same `world`"):
        MixtureSource(other, CARDS, 0).check()
    source(birds).check()


def test_a_part_for_a_language_that_is_not_there_is_refused(birds: Path) -> None:
    with pytest.raises(RecipeError, match=r"corpus.parts.1.languages: 'en' is not in the recipe's languages"):
        MixtureSource(settings(birds), {"ar": CARDS["ar"]}, 0).check()


@pytest.mark.slow
def test_a_mixture_runs_from_nothing_to_a_report(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder whose recordings have no transcripts in part, and whose pictures have no speech in part."""
    garden = "name: garden, scenes: 12, validation: 4, test: 4, swaps: 2"
    (tmp_path / "mixed.yaml").write_text(
        f"""
extends: garden-tiny
name: mixed
corpus:
  name: mixture
  size: 32
  parts:
    - {{weight: 2, corpus: {{{garden}, world: {{colours: [red, yellow, blue], moods: [happy, sad]}}}}}}
    - {{weight: 1, languages: [en], corpus: {{name: folder, root: {birds}}}}}
stages:
  teacher: {{steps: 2, batch: 4}}
  tokenizer: {{steps: 2, batch: 4}}
  distill: {{steps: 4, batch: 4, losses: {{attributes: 1.0}}}}
  decoder: {{steps: 4, batch: 8}}
  classifier: {{steps: 2, batch: 4}}
sampling: {{steps: 2}}
evaluation: {{items: 4, pictures: 1, samples: 1, conditions: [noise-10, slow]}}
""",
        encoding="utf-8",
    )
    command = [str(tmp_path / "mixed.yaml"), "--out", str(tmp_path / "runs")]
    assert main(["run", *command]) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "mixed"
    workspace = Workspace(load_recipe(run / "recipe.yaml"), tmp_path / "runs")
    assert (workspace.features.lengths > 0).tolist() == workspace.corpus.has_audio.tolist()
    rows = Report.read(run / "evaluation" / "report.json").rows
    assert {(r.split, r.condition) for r in rows if r.metric == "attributes"} >= {("both", "clean"), ("both", "slow")}
    of_folder = {r.metric for r in rows if r.split == "test"}
    assert of_folder > {"bits", "r1_speech_to_image"}
    assert "attributes" not in of_folder, "nobody knows what those pictures show"
