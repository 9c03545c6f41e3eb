"""What reads pictures: each rank its share, on the pipeline's device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sta.data.corpora.garden.attributes import GardenAttributes
from sta.data.language import FULL_WORLD
from sta.evaluation.extractors import (
    AttributeClassifierFeatures,
    Judge,
    KindAndColour,
    features_of,
    fid_extractor,
    load_judge,
)
from sta.models.attribute_classifier import AttributeClassifier
from tests.conftest import scatter
from tests.distributed.test_ranks import on_ranks

SIZE = 16
ATTRIBUTES = GardenAttributes(FULL_WORLD, {}, 1.0, 0.1)
SLOTS = {"kind": ["bird", "flower"], "head": ["red", "blue"], "petals": ["red", "blue"]}


def _reader() -> AttributeClassifier:
    torch.manual_seed(0)
    return scatter(AttributeClassifier(SLOTS, SIZE, width=4)).eval()  # type: ignore[return-value]


def _read_seven() -> Any:
    """What is read of seven pictures, in batches of two, and how many of them this process was asked."""
    reader, asked = _reader(), [0]
    reader.trunk.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    pictures = torch.rand(7, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    read = Judge(reader, ATTRIBUTES, batch=2).predict(pictures)
    seen = [
        features_of(extractor, (pictures * 127).abs().byte(), batch=2).tolist()
        for extractor in (AttributeClassifierFeatures(reader), KindAndColour(reader))
    ]
    return {"read": read, "seen": seen, "asked": sum(asked)}


def test_any_number_of_ranks_reads_the_same(tmp_path: Path) -> None:
    first, second = on_ranks(_read_seven, tmp_path)
    alone = _read_seven()
    assert len(alone["read"]) == len(alone["seen"][0]) == 7
    for what in ("read", "seen"):
        assert first[what] == second[what] == alone[what]
    assert (first["asked"], second["asked"], alone["asked"]) == (12, 9, 21), "once for each of three purposes"


def test_the_classifier_is_where_the_pipeline_is(tmp_path: Path) -> None:
    _reader().save_pretrained(tmp_path / "classifier")
    judge = load_judge(tmp_path / "classifier", ATTRIBUTES, torch.device("meta"))
    assert judge.classifier.device.type == "meta"


def test_the_teacher_is_where_the_pipeline_is() -> None:
    extractor = fid_extractor(None, lambda: torch.nn.Linear(2, 2), torch.device("meta"))  # type: ignore[arg-type, return-value]
    assert {p.device.type for p in extractor.parameters()} == {"meta"}
    judge = Judge(_reader(), ATTRIBUTES)
    assert isinstance(fid_extractor(judge, lambda: pytest.fail("no teacher"), judge.classifier.device), nn.Module)


def test_pictures_are_read_where_the_reader_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []

    def to(pictures: torch.Tensor, device: torch.device) -> torch.Tensor:
        seen.append(device)
        return pictures

    reader = _reader()
    monkeypatch.setattr(torch.Tensor, "to", to)
    reader.predict(torch.zeros(2, 3, SIZE, SIZE))
    assert seen == [reader.device]
