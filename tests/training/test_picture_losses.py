"""The tokenizer's losses: nothing where pictures are alike, less as a blur is taken back, and what each looks at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from sta.config.recipe import load_recipe
from sta.errors import RecipeError, WeightsError
from sta.training.picture_losses import PerceptualDistance, colour_loss, edge_loss, pyramid_loss
from sta.training.tasks.tokenizer import PictureBatch, build_module

Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of timm's smallest network, untrained."""
    folder = tmp_path_factory.mktemp("weights") / "test_resnet"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(params=["edge", "pyramid", "colour", "perceptual"])
def loss(request: pytest.FixtureRequest, network: Path) -> Loss:
    plain: dict[str, Loss] = {"edge": edge_loss, "pyramid": pyramid_loss, "colour": colour_loss}
    return plain.get(request.param) or PerceptualDistance(str(network))


def squares(size: int = 64) -> Tensor:
    """A red and a violet square on white, [1, 3, H, W]."""
    picture = torch.ones(1, 3, size, size)
    picture[:, :, 10:30, 10:30] = torch.tensor([1.0, -1, -1])[:, None, None]
    picture[:, :, 35:60, 30:50] = torch.tensor([0.2, -0.6, 0.8])[:, None, None]
    return picture


def blurred(picture: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(F.pad(picture, [width // 2] * 4, mode="replicate"), width, 1)


def test_it_falls_as_a_blur_is_taken_back(loss: Loss) -> None:
    found = [float(loss(blurred(squares(), width), squares())) for width in (9, 5, 3, 1)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 1.3 * found[2] > 0
    assert found[3] == pytest.approx(0, abs=1e-6)


def test_its_gradient_reaches_what_is_drawn(loss: Loss) -> None:
    drawn = blurred(squares(), 5).requires_grad_()
    loss(drawn, squares()).backward()
    assert drawn.grad is not None
    assert drawn.grad.isfinite().all()
    assert drawn.grad.abs().max() > 0


def test_colours_count_whatever_their_brightness() -> None:
    grey = squares().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert colour_loss(squares() - 0.3, squares()) == pytest.approx(0, abs=1e-6)
    assert colour_loss(grey, squares()) > 0.1
    assert colour_loss((squares() + grey) / 2, squares()) == pytest.approx(float(colour_loss(grey, squares())) / 2)


def test_the_pyramid_weighs_detail_that_a_mean_distance_hardly_sees() -> None:
    """A checkerboard and a shift of the brightness stand in one band each; an outline stands in all of them."""
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 0.2 - 0.1
    nothing = torch.zeros(1, 3, 64, 64)
    assert F.l1_loss(nothing + board, nothing) == pytest.approx(0.1)
    assert pyramid_loss(nothing + board, nothing) == pytest.approx(0.1)
    assert pyramid_loss(nothing + 0.1, nothing) == pytest.approx(0.1)
    blob = torch.zeros(1, 3, 64, 64)
    blob[:, :, 11:43, 11:43] = 0.4  # across the borders of every halving
    assert pyramid_loss(blob, nothing) > 1.2 * F.l1_loss(blob, nothing)


def test_a_perceptual_network_is_never_trained(network: Path) -> None:
    distance = PerceptualDistance(str(network)).train()
    assert not any(module.training for module in distance.modules())
    assert not any(parameter.requires_grad for parameter in distance.parameters())


# ---- in the stage -----------------------------------------------------------------------------------------------


def losses_of(*overrides: str) -> dict[str, Tensor]:
    recipe = load_recipe("garden-tiny", [f"stages.tokenizer.{override}" for override in overrides])
    size = recipe.corpus.size
    pixels = ((squares(size) + 1) * 127.5).byte().permute(0, 2, 3, 1).expand(4, -1, -1, -1)
    found: dict[str, Tensor] = build_module(recipe)(PictureBatch(pixels))
    return found


def test_what_weighs_nothing_is_not_computed() -> None:
    assert losses_of().keys() == {"l1", "mse", "commit"}
    assert losses_of("losses.pyramid=0.5", "losses.l1=0").keys() == {"pyramid", "mse", "commit"}


def test_the_stage_trains_the_tokenizer_alone(network: Path) -> None:
    overrides = ["stages.tokenizer.losses.perceptual=0.1", f"stages.tokenizer.perceptual_network={network}"]
    module = build_module(load_recipe("garden-tiny", overrides)).train()
    assert all(name.startswith("tokenizer.") for name, p in module.named_parameters() if p.requires_grad)
    assert "perceptual" in losses_of(*(override.removeprefix("stages.tokenizer.") for override in overrides))


def test_a_perceptual_loss_needs_a_network() -> None:
    with pytest.raises(RecipeError, match=r"losses.perceptual compares in a network: name one"):
        losses_of("losses.perceptual=0.1")


def test_a_network_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"perceptual_network .*: timm cannot load it"):
        PerceptualDistance(str(tmp_path))
