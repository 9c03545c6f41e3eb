"""Weights in int8: how near they stay, which are left alone, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sta.errors import WeightsError
from sta.models.decoders.base import find_decoder
from sta.models.loading import load_network
from sta.models.precision import FEWEST, SCALES, from_int8, in_half, in_int8
from tests.release_fixtures import tiny_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(64, 32, 16, generator=generator)
    large[3] *= 1e4  # a row that must not cost the others anything
    large[5], large[6] = 0, large[6] * 1e-9
    return {
        "large": large, "small": torch.randn(8, 8, generator=generator), "norm": torch.ones(FEWEST),
        "mask": torch.ones(200, 200, dtype=torch.bool), "huge": torch.full((2, 2), 1e6),
    }  # fmt: skip


def test_large_matrices_are_kept_to_half_a_step_of_their_row(weights: dict[str, Tensor]) -> None:
    kept = in_int8(weights)
    assert kept.keys() == {*weights, "large" + SCALES}
    assert (kept["large"].dtype, kept["large"].shape) == (torch.int8, weights["large"].shape)
    assert kept["large" + SCALES].dtype == torch.float32
    half = {name: weight.dtype for name, weight in kept.items() if "large" not in name}
    assert half == {"small": torch.half, "norm": torch.half, "mask": torch.bool, "huge": torch.float32}
    back, most = from_int8(kept), weights["large"].abs().amax((1, 2), keepdim=True)
    assert back.keys() == weights.keys()
    half_a_step, rounded = most / 127 / 2 * (1 + 1e-5), most * torch.finfo(torch.half).eps / 2
    subnormal = 2.0**-25  # half a step of half precision near zero
    assert ((back["large"].float() - weights["large"]).abs() <= half_a_step + rounded + subnormal).all()
    assert not back["large"][5].any()


def test_what_int8_left_is_the_same_in_half_precision(weights: dict[str, Tensor]) -> None:
    back = from_int8(in_int8(weights))
    assert back["large"].dtype == torch.half
    assert all(in_half(back)[name].equal(weight) for name, weight in back.items())


def test_weights_without_any_in_int8_are_left_as_they_are(weights: dict[str, Tensor]) -> None:
    assert all(weight is weights[name] for name, weight in from_int8(weights).items())


@pytest.mark.parametrize("changed", ["no weight", "no int8", "one row less"])
def test_scales_that_do_not_belong_to_a_weight_are_refused(weights: dict[str, Tensor], changed: str) -> None:
    kept = in_int8(weights)
    kept |= {"no int8": {"large": kept["large"].half()}, "one row less": {"large": kept["large"][1:]}}.get(changed, {})
    if changed == "no weight":
        del kept["large"]
    with pytest.raises(ValueError, match=f"large{SCALES} has no int8 weight 'large' of as many rows beside it"):
        from_int8(kept)


def test_a_network_is_loaded_from_them(tmp_path: Path) -> None:
    made = tiny_pipeline("latent-diffusion").decoder
    made.save_pretrained(tmp_path)
    kept = in_int8(load_file(tmp_path / WEIGHTS), fewest=64)
    save_file(kept, tmp_path / WEIGHTS, {"format": "pt"})
    again = load_network(find_decoder("latent-diffusion"), tmp_path).state_dict()
    assert {weight.dtype for weight in again.values() if weight.is_floating_point()} == {torch.float32}
    for name, weight in made.state_dict().items():
        torch.testing.assert_close(again[name], weight, rtol=0, atol=weight.abs().max().item() * (1 / 254 + 2**-11))
    (lost, *_) = sorted(name for name in kept if name.endswith(SCALES))
    del kept[lost]
    save_file(kept, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(WeightsError, match=rf"1 weights do not fit \w+ \({lost.removesuffix(SCALES)}\)"):
        load_network(find_decoder("latent-diffusion"), tmp_path)


def test_a_network_whose_scales_do_not_fit_is_one_sentence(tmp_path: Path) -> None:
    tiny_pipeline("latent-diffusion").decoder.save_pretrained(tmp_path)
    kept = in_int8(load_file(tmp_path / WEIGHTS), fewest=64)
    name = min(name for name in kept if name.endswith(SCALES))
    save_file({**kept, name: kept[name][1:].clone()}, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(WeightsError, match=f"not a whole LatentDecoder .{name} has no int8 weight") as caught:
        load_network(find_decoder("latent-diffusion"), tmp_path)
    assert "\n" not in str(caught.value)
