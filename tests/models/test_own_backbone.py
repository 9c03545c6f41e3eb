"""A speech backbone of somebody else's own is one file in a package that Python can import."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sta.bench.operations import ExampleTask
from sta.config.recipe import load_recipe
from sta.models.backbones import backbone_class
from sta.models.encoder import SpeechEncoder
from sta.training import runtime
from sta.training.faults import Faults
from sta.training.step import Trainer
from sta.training.workspace import Workspace
from tests.training.facts import FACTS

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
    task = ExampleTask(recipe, FACTS, "distill-pooled", 4)
    made: Any = task.module.get_submodule("encoder.acoustics")
    before = made.out.weight.detach().clone()
    trainer = Trainer(task, recipe.stages.distill, 0, runtime.start("fp32"), Faults(), 1)
    for step in range(2):
        trainer.begin(step, [task.noise])
        task.training_step(trainer.update)
        assert trainer.end().read()[1] is None
    assert not made.out.weight.equal(before)
    encoder = task.module.encoder
    assert isinstance(encoder, SpeechEncoder)
    encoder.save_pretrained(tmp_path / "encoder")
    again: Any = SpeechEncoder.from_pretrained(tmp_path / "encoder").acoustics
    assert (type(again), again.hops) == (type(made), 4)
    assert again.out.weight.equal(made.out.weight)


def test_all_else_knows_it_by_its_name(toy: str, tmp_path: Path) -> None:
    """What is cached of a recording has a folder of its own, and is computed by other processes."""
    workspace = Workspace(load_recipe("garden-tiny", [f"encoder.backbone={toy}"]), tmp_path)
    assert workspace.prepared["features"].name.startswith("features-energy-")
    features = pickle.loads(pickle.dumps(backbone_class(toy).cached_features))
    assert features(np.ones(1_700, np.float32)).shape == (10, 1)
