"""Mask-and-replace diffusion over codes (VQ-Diffusion, Gu et al. 2022), as pure functions.

Symbols of the paper: at each step a code keeps itself with probability alpha + beta, becomes any of the V codes
with probability beta each, and the mask with probability gamma; a mask stays. Bars are products over steps.
The mask's id is V. Times t run from 0 (the picture) to T (all mask).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sta.distributed import sharding


@dataclass(frozen=True, eq=False)
class Schedule:
    """Cumulative alpha-bar, beta-bar and gamma-bar, each [T+1] in float64, for a codebook of V."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    codebook: int

    @property
    def timesteps(self) -> int:
        """Return T."""
        return len(self.alpha) - 1

    @cache  # noqa: B019 - a schedule lives as long as the network that it trains or draws with
    def on(self, device: torch.device) -> Schedule:
        """Return the same schedule with its tables on a device, where they stay."""
        return Schedule(self.alpha.to(device), self.beta.to(device), self.gamma.to(device), self.codebook)

    def between(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return alpha, beta, gamma of the jump from time s to a later time t (Eq. 8 applied to a stretch of steps)."""
        alpha = self.alpha[t] / self.alpha[s]
        gamma = 1 - (1 - self.gamma[t]) / (1 - self.gamma[s])
        return alpha, (1 - alpha - gamma) / self.codebook, gamma


def linear_schedule(timesteps: int, codebook: int, replaced: float = 0.1) -> Schedule:
    """Make gamma-bar rise linearly to 1, and of what is not masked a linearly rising share be replaced.

    Args:
        replaced: share of the unmasked codes that are uniform noise just before the end, in [0, 1].

    The rows of every transition sum to one, which the tests assert.
    """
    t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    gamma = t * (1 - 1e-5)
    alpha = (1 - gamma) * (1 - replaced * t)
    return Schedule(alpha, (1 - alpha - gamma) / codebook, gamma, codebook)


def q_sample(codes: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Draw x_t from q(x_t | x_0) (Eq. 7): codes [B, N] at times t [B] -> [B, N] with the mask as V."""
    schedule = schedule.on(codes.device)
    alpha, gamma = (bar[t][:, None] for bar in (schedule.alpha, schedule.gamma))
    chance = sharding.uniform(*codes.shape, device=codes.device, dtype=torch.float64)
    noise = sharding.integers(schedule.codebook, *codes.shape, device=codes.device)
    replaced = torch.where(chance < alpha, codes, noise)
    return torch.where(chance >= 1 - gamma, torch.full_like(codes, schedule.codebook), replaced)


def sample_timesteps(count: int, timesteps: int, device: torch.device) -> Tensor:
    """Draw times 1..T [count], late ones more often: where little of the picture is left, the tokens are needed."""
    u = sharding.uniform(count, device=device)
    return (u.sqrt() * timesteps).long().clamp(0, timesteps - 1) + 1


def posterior(x0: Tensor, xt: Tensor, s: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Compute q(x_s | x_t) averaged over a belief in x_0 (Eq. 5 and 11), for any s < t.

    Args:
        x0: [B, N, V], probabilities of the codes; one-hot gives the true posterior.
        xt: [B, N], codes with the mask as V.
        s, t: [B], times with 0 <= s < t <= T.

    Returns:
        [B, N, V+1], rows sum to one.
    """
    v, schedule = schedule.codebook, schedule.on(x0.device)
    bars = (schedule.alpha, schedule.beta, schedule.gamma)
    alpha_s, beta_s, gamma_s = (b[s].to(x0.dtype)[:, None, None] for b in bars)
    alpha_t, beta_t, gamma_t = (b[t].to(x0.dtype)[:, None, None] for b in bars)
    alpha, beta, gamma = (j.to(x0.dtype)[:, None, None] for j in schedule.between(s, t))
    masked = (xt == v)[..., None]
    here = F.one_hot(xt.clamp(max=v - 1), v).to(x0.dtype)
    # w_j = p(x_0=j) / q(x_t | x_0=j)
    w = x0 / torch.where(masked, gamma_t, alpha_t * here + beta_t)
    total = w.sum(-1, keepdim=True)
    to_xt = torch.where(masked, gamma, alpha * here + beta)  # q(x_t | x_s=k), k < V
    codes = to_xt * (alpha_s * w + beta_s * total)
    mask = torch.where(masked, gamma_s * total, torch.zeros_like(total))
    joint = torch.cat([codes, mask], -1).clamp_min(0)
    return joint / joint.sum(-1, keepdim=True).clamp_min(1e-30)


def variational_loss(logits: Tensor, x0: Tensor, xt: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Compute KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in nats per code (Eq. 9 and 10): scalar.

    Args:
        logits: [B, N, V], the network's belief in x_0.
        x0, xt: [B, N]; t: [B], 1 <= t <= T.
    """
    true = posterior(F.one_hot(x0, schedule.codebook).float(), xt, t - 1, t, schedule)
    belief = posterior(logits.float().softmax(-1), xt, t - 1, t, schedule)
    return (true * (true.clamp_min(1e-30).log() - belief.clamp_min(1e-30).log())).sum(-1).mean()


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Apply classifier-free guidance on log-probabilities [..., V] (Tang et al. 2022, Eq. 6): unnormalised logits."""
    conditional, unconditional = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    return unconditional + scale * (conditional - unconditional)


def truncate(probabilities: Tensor, mass: float) -> Tensor:
    """Keep the likeliest codes that hold `mass` of the probability and renormalise: [..., V]."""
    if mass >= 1:
        return probabilities
    ordered, order = probabilities.sort(-1, descending=True)
    kept = ordered.cumsum(-1) - ordered < mass
    cut = torch.zeros_like(probabilities).scatter(-1, order, ordered * kept)
    return cut / cut.sum(-1, keepdim=True)


def sample_categorical(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw categories by inverting the distribution function: [..., V] with uniforms [...] in [0, 1) -> [...]."""
    levels = probabilities.cumsum(-1)
    return (levels <= uniforms[..., None] * levels[..., -1:]).sum(-1).clamp(max=probabilities.shape[-1] - 1)
