"""Flow matching on straight paths (Lipman et al. 2023; rectified flow, Liu et al. 2023), as pure functions.

x_t = (1 - t) x_0 + t noise, so that t is the share of noise, as in diffusers' `FlowMatchEulerDiscreteScheduler`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sta.distributed import sharding

TIMESTEPS = 1000  # of the scheduler, whose time t is a share of it


def sample_noise_levels(count: int, device: torch.device, mean: float = 0.5, deviation: float = 1.0) -> Tensor:
    """Draw shares of noise in (0, 1), [count], logit-normal (Esser et al. 2024, 3.1); a mean > 0 favours noise."""
    return torch.sigmoid(mean + deviation * sharding.normal(count, device=device))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t on the straight path from x_0 to noise, both [B, ...], at t [B]."""
    share = t.view(-1, *[1] * (x0.ndim - 1))
    return (1 - share) * x0 + share * noise


def flow_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """Compute the mean squared error of the velocity d x_t / d t = noise - x_0: scalar."""
    return F.mse_loss(velocity.float(), noise - x0)
