"""What reads pictures: each rank its share, on the pipeline's device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import sta.evaluation.evaluator
from sta.config.recipe import load_recipe
from sta.data.corpora.base import open_source
from sta.data.corpora.garden.attributes import GardenAttributes
from sta.data.language import FULL_WORLD
from sta.evaluation import extractors
from sta.evaluation.evaluator import Evaluator
from sta.evaluation.extractors import AttributeClassifierFeatures, Judge, KindAndColour, features_of
from sta.models.attribute_classifier import AttributeClassifier
from tests.conftest import scatter
from tests.distributed.test_ranks import on_ranks

SIZE = 16
SLOTS = {"kind": ["bird", "flower"], "head": ["red", "blue"], "petals": ["red", "blue"]}


def _reader() -> AttributeClassifier:
    torch.manual_seed(0)
    return scatter(AttributeClassifier(SLOTS, SIZE, width=4)).eval()  # type: ignore[return-value]


def _read_seven() -> Any:
    """What is read of seven pictures, in batches of two, and how many of them this process was asked."""
    extractors.READ_AT_ONCE = extractors.SEEN_AT_ONCE = 2
    reader, asked = _reader(), [0]
    reader.trunk.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    pictures = torch.rand(7, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    read = Judge(reader, GardenAttributes(FULL_WORLD, {}, 1.0, 0.1)).predict(pictures)
    seen = [
        features_of(extractor, (pictures * 127).abs().byte()).tolist()
        for extractor in (AttributeClassifierFeatures(reader), KindAndColour(reader))
    ]
    return {"read": read, "seen": seen, "asked": sum(asked)}


def test_any_number_of_ranks_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("READ_AT_ONCE", "SEEN_AT_ONCE"):
        monkeypatch.setattr(extractors, name, 2)  # so that what `_read_seven` sets is put back
    first, second = on_ranks(_read_seven, tmp_path)
    alone = _read_seven()
    assert len(alone["read"]) == len(alone["seen"][0]) == 7
    for what in ("read", "seen"):
        assert first[what] == second[what] == alone[what]
    assert (first["asked"], second["asked"], alone["asked"]) == (12, 9, 21), "once for each of three purposes"


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    """Of a pipeline that is on another device than what is loaded."""
    _reader().save_pretrained(tmp_path / "classifier")
    evaluator = Evaluator.__new__(Evaluator)
    recipe = load_recipe("garden-mini")
    source = open_source(recipe.corpus, {}, recipe.seed)
    workspace: Any = SimpleNamespace(recipe=recipe, source=source, final=lambda stage: tmp_path)
    pipe: Any = SimpleNamespace(device=torch.device("meta"))
    evaluator.workspace, evaluator.pipe = workspace, pipe
    return evaluator


def test_the_reader_is_where_the_pipeline_is(evaluator: Evaluator) -> None:
    judge = evaluator._judge()
    assert judge is not None
    assert judge.classifier.device.type == "meta"


def test_pictures_are_read_where_the_reader_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []

    def to(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
        seen.append(device)
        return pictures

    reader = _reader()
    monkeypatch.setattr(torch.Tensor, "to", to)
    reader.predict(torch.zeros(2, 3, SIZE, SIZE))
    assert seen == [reader.device]


def test_the_teacher_is_where_the_pipeline_is(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def extract(extractor: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
        seen.append(next(extractor.parameters()).device.type)
        return torch.eye(2)

    monkeypatch.setattr(sta.evaluation.evaluator, "load_teacher_of", lambda workspace: torch.nn.Linear(2, 2))
    monkeypatch.setattr(sta.evaluation.evaluator, "features_of", extract)
    monkeypatch.setattr(sta.evaluation.evaluator.fidelity, "extractor_meta", lambda extractor, real: {})
    monkeypatch.setattr(sta.evaluation.evaluator.fidelity, "fid_rows", lambda *_, **__: [])
    monkeypatch.setattr(evaluator, "real_images", lambda rows: torch.zeros(2, 3, SIZE, SIZE), raising=False)
    evaluator.judge, evaluator.seed, evaluator.extractor = None, 0, {}
    evaluator.fidelity(torch.zeros(2, 3, SIZE, SIZE), np.arange(2), {})  # type: ignore[typeddict-item]
    assert seen == ["meta", "meta"]
