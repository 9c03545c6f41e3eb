"""Flow matching: the path, its velocity, and that diffusers' scheduler walks it back."""

from __future__ import annotations

import pytest
import torch

from sta.config.recipe import Sampling
from sta.models.flow import TIMESTEPS, flow_loss, interpolate, sample_noise_levels
from tests.release_fixtures import tiny_objective

SHAPE = (3, 2, 4, 4)


def pair(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_ends_of_the_path(generator: torch.Generator) -> None:
    x0, noise = pair(generator)
    assert interpolate(x0, noise, torch.zeros(3)).equal(x0)
    assert interpolate(x0, noise, torch.ones(3)).equal(noise)


def test_the_loss_is_of_the_derivative(generator: torch.Generator) -> None:
    x0, noise = pair(generator)
    t, h = torch.full((3,), 0.3), 1e-3
    derivative = (interpolate(x0, noise, t + h) - interpolate(x0, noise, t - h)) / (2 * h)
    assert flow_loss(derivative, x0, noise) < 1e-6
    assert flow_loss(derivative + 1, x0, noise) == pytest.approx(1, abs=1e-3)


def test_shares_are_logit_normal() -> None:
    torch.manual_seed(0)
    logits = sample_noise_levels(20_000, torch.device("cpu")).logit()
    assert logits.mean() == pytest.approx(0.5, abs=0.03)
    assert logits.std() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_the_true_velocity_leads_back_to_the_picture(generator: torch.Generator, steps: int) -> None:
    x0, noise = pair(generator)
    decoder = tiny_objective("latent-diffusion")[0].decoder
    scheduler = decoder.build_scheduler(None, Sampling())
    decoder.set_timesteps(scheduler, steps, torch.device("cpu"))
    assert len(scheduler.timesteps) == steps
    assert scheduler.timesteps[0] == TIMESTEPS
    x = noise
    for number, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(x, interpolate(x0, noise, (t / TIMESTEPS).expand(3)), atol=1e-4, rtol=1e-4)
        x = scheduler.step(noise - x0, t, x, return_dict=False)[0]
        assert number < steps
    torch.testing.assert_close(x, x0, atol=1e-5, rtol=1e-4)
