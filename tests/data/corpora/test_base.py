"""A corpus of one's own: one file and a recipe, found by its import path, prepared and trained on by the command."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from sta.cli.main import main
from sta.config.recipe import load_recipe
from sta.config.variants import find_variant, known_variants
from sta.data.corpora.base import CorpusSource
from sta.training.workspace import Workspace

ROOT = Path(__file__).parents[3]
TOY = '''
"""Squares of one colour, each with a tone as high as it is bright."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sta.config.recipe import CorpusSettings
from sta.data.audio import wav_bytes
from sta.data.corpora.base import CorpusShard, CorpusSource
from sta.data.rows import Sample, file_column


class ToySettings(CorpusSettings):
    squares: int = 8


@dataclass(frozen=True)
class ToyShard(CorpusShard):
    numbers: range
    side: int

    def __len__(self):
        return len(self.numbers)

    def samples(self):
        for number in self.numbers:
            picture = io.BytesIO()
            Image.new("RGB", (self.side, self.side), (20 * number % 256, 0, 0)).save(picture, "PNG")
            wave = (0.3 * np.sin(np.arange(4800) * (number + 2) / 50)).astype(np.float32)
            split = ("train", "train", "validation", "test")[number % 4]
            row = {"id": f"square-{number}", "image_id": f"square-{number}", "language": "en", "split": split}
            row |= {"image": file_column(picture.getvalue()), "audio": file_column(wav_bytes(wave))}
            yield Sample(row | {"text": f"square number {number}"}, "toy")


class ToySource(CorpusSource):
    Settings = ToySettings

    def shards(self):
        return [ToyShard(range(n, n + 8), self.settings.size) for n in range(0, self.settings.squares, 8)]
'''
RECIPE = """
extends: garden-tiny
name: squares
languages: [en]
corpus: {name: "toy:ToySource", squares: 16, size: 16}
tokenizer: {codes: 16, width: 16}
stages: {tokenizer: {steps: 2, batch: 4}}
"""


@pytest.mark.slow
def test_a_corpus_is_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.py").write_text(TOY, encoding="utf-8")
    (tmp_path / "squares.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    command = [str(tmp_path / "squares.yaml"), "--out", str(tmp_path / "runs")]
    for stage in ("prepare", "tokenizer"):
        assert main(["train", *command, "--stage", stage]) == 0, capsys.readouterr().err
    workspace = Workspace(load_recipe(tmp_path / "squares.yaml"), tmp_path / "runs")
    assert workspace.cache.name.startswith("toysource-")
    assert len(workspace.corpus) == len(workspace.features) == 16
    assert workspace.texts[0] == "square number 0"
    log = (workspace.stage("tokenizer") / "log" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(log[-1])["step"] == 2
    assert main(["train", *command, "corpus.squares=many", "--stage", "prepare"]) == 2
    assert "key 'corpus.squares' is 'many'" in capsys.readouterr().err


def test_nobody_asks_which_corpus_it_is() -> None:
    """What a corpus can do is a flag or a method of its own: no `isinstance` on one outside its file."""
    package = "sta.data.corpora"
    found = [find_variant(package, name, CorpusSource, "name") for name in known_variants(package, CorpusSource)]
    corpora = {kind.__name__ for source in found for kind in (source, source.Settings)}
    assert len(corpora) == 2 * len(found) >= 8
    asked = []
    for path in (ROOT / "sta").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                asked += [path.name for name in ast.walk(node.args[1]) if getattr(name, "id", "") in corpora]
    assert asked == []
