"""A speech backbone of somebody else's own is one file in a package that Python can import."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sta.config.recipe import load_recipe
from sta.models.backbones import backbone_class, describe_backbone
from sta.models.encoder import SpeechEncoder
from sta.training.tasks.distill import build_module
from sta.training.workspace import Workspace
from tests.models.test_encoder import batch

NAME = "toy_pkg.toy:ToyBackbone"
TOY = '''
import numpy as np
import torch

from sta.models.backbones import SpeechBackbone


def energies(wave):
    """The mean power of every 10 ms."""
    return np.square(wave[: len(wave) // 160 * 160].reshape(-1, 160)).mean(1, keepdims=True)


class ToyBackbone(SpeechBackbone):
    feature_kind = "energy"
    features_per_second = 100
    cached_features = staticmethod(energies)

    def __init__(self, width, name, hops):
        super().__init__()
        self.hops, self.out = hops, torch.nn.Linear(1, width)

    @classmethod
    def describe(cls, name, frozen):
        return {"name": name, "hops": 4}

    def inputs(self, features):
        return (features + 1e-6).log()

    def forward(self, inputs, lengths):
        return self.out(inputs[:, :: self.hops]), -(-lengths // self.hops)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "toy_pkg").mkdir()
    (tmp_path / "toy_pkg" / "toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    return NAME


def test_it_trains(toy: str, tmp_path: Path) -> None:
    recipe = load_recipe("garden-tiny", [f"encoder.backbone={toy}"])
    module = build_module(recipe, {"ar": 7, "en": 5}, 6, 2, {"head": 3, "size": 2}, describe_backbone(toy, True))
    made: Any = module.encoder.acoustics
    rng = np.random.default_rng(0)
    examples = [made.example_features(rng, 128, 5.0) for _ in range(4)]
    features = {"features": torch.from_numpy(np.stack(examples))}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    before = made.out.weight.detach().clone()
    weights = recipe.stages.distill.losses
    for _ in range(2):
        losses = module(batch() | features)
        loss = torch.stack([weights[name] * value for name, value in losses.items() if name in weights]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert not made.out.weight.equal(before)
    module.encoder.save_pretrained(tmp_path / "encoder")
    again: Any = SpeechEncoder.from_pretrained(tmp_path / "encoder").acoustics
    assert (type(again), again.hops) == (type(made), 4)
    assert again.out.weight.equal(made.out.weight)


def test_all_else_knows_it_by_its_name(toy: str, tmp_path: Path) -> None:
    """What is cached of a recording has a folder of its own, and is computed by other processes."""
    workspace = Workspace(load_recipe("garden-tiny", [f"encoder.backbone={toy}"]), tmp_path)
    assert workspace.prepared["features"].name.startswith("features-energy-")
    features = pickle.loads(pickle.dumps(backbone_class(toy).cached_features))
    assert features(np.ones(1_700, np.float32)).shape == (10, 1)
