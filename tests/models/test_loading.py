"""Weights of older versions: they are loaded by the names that they have today."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sta.errors import WeightsError
from sta.inference.weights import SHIPPED
from sta.models.decoders.base import find_decoder
from sta.models.loading import RENAMED_SETTINGS, RENAMED_WEIGHTS, load_network
from sta.models.patchify import num_patches
from tests.release_fixtures import tiny_pipeline

GARDEN = SHIPPED / "garden"  # made by version 0.1
WEIGHTS = "diffusion_pytorch_model.safetensors"


def names(folder: Path) -> set[str]:
    with safe_open(folder / WEIGHTS, "pt") as weights:
        return set(weights.keys())


def test_the_weights_that_ship_have_every_old_name() -> None:
    """So that whatever is drawn with them proves the renaming."""
    shipped = {name for path in GARDEN.rglob(WEIGHTS) for name in names(path.parent)}
    for old in RENAMED_WEIGHTS:
        assert any(re.search(old, name) for name in shipped), old
    assert json.loads((GARDEN / "decoder" / "config.json").read_text()).keys() >= RENAMED_SETTINGS.keys()


def test_old_names_are_saved_as_those_of_today(tmp_path: Path) -> None:
    made = load_network(find_decoder("latent-diffusion"), GARDEN / "decoder")
    made.save_pretrained(tmp_path)
    assert names(tmp_path) == set(made.state_dict())
    assert not [name for name in names(tmp_path) for old in RENAMED_WEIGHTS if re.search(old, name)]
    again = load_network(find_decoder("latent-diffusion"), tmp_path)
    assert all(weight.equal(again.state_dict()[name]) for name, weight in made.state_dict().items())
    assert again.trunk.position_embedding.shape == (num_patches(16, 2), 256)


class Own(ModelMixin, ConfigMixin):
    """A network of somebody's own whose names are some that this package once had."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, group: int = 1):
        super().__init__()
        self.read, self.join = nn.Linear(group, 2), nn.Linear(2, group)


def test_names_that_a_network_has_are_left_alone(tmp_path: Path) -> None:
    made = Own(group=3)
    made.save_pretrained(tmp_path)
    again = load_network(Own, tmp_path)
    assert again.config.group == 3
    assert again.read.weight.equal(made.read.weight)


@pytest.mark.parametrize("changed", ["a name", "a shape", "one less"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, changed: str) -> None:
    tiny_pipeline("latent-diffusion").decoder.save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weight = weights.pop("trunk.null_embedding")
    weights |= {"a name": {"trunk.null": weight}, "a shape": {"trunk.null_embedding": weight[1:].clone()}}.get(
        changed, {}
    )
    save_file(weights, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 weights do not fit|2 weights do not fit") as caught:
        load_network(find_decoder("latent-diffusion"), tmp_path)
    assert str(tmp_path) in str(caught.value)
