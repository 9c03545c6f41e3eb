"""The sampler of mask-and-replace diffusion as a diffusers scheduler: any number of steps, truncation, purity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sta.models.diffusion import Schedule, linear_schedule, posterior, sample_categorical, truncate

Generators = torch.Generator | list[torch.Generator] | None
REVEAL_ORDERS = ("posterior", "purity")


@dataclass
class MaskReplaceOutput(BaseOutput):
    """Codes after the step, [B, N] with the mask as V."""

    prev_sample: Tensor


class MaskReplaceScheduler(SchedulerMixin, ConfigMixin):
    """Steps from all mask to a picture's codes.

    Args:
        codebook: V.
        num_train_timesteps: T.
        truncation: probability mass of x_0 kept at every step, in (0, 1]; 1 keeps all (Gu et al. 2022, section 4).
        reveal: `posterior` draws every code from q(x_s | x_t); `purity` reveals a fixed number of codes a step,
            the surest first (high-quality inference of Improved VQ-Diffusion, Tang et al. 2022, section 3.3).
        purity_noise: standard deviation of the Gumbel-like jitter on the log-purity, which keeps samples varied.
    """

    config_name = "scheduler_config.json"
    order = 1

    @register_to_config
    def __init__(
        self, codebook: int, num_train_timesteps: int = 100, replaced: float = 0.1, truncation: float = 0.9,
        reveal: str = "purity", purity_noise: float = 1.0,
    ):  # fmt: skip
        if reveal not in REVEAL_ORDERS:
            raise ValueError(f"reveal '{reveal}' is not one of {', '.join(REVEAL_ORDERS)}")
        self.schedule: Schedule = linear_schedule(num_train_timesteps, codebook, replaced)
        self.timesteps = torch.arange(num_train_timesteps, 0, -1)
        self.init_noise_sigma = 1.0

    @property
    def mask_id(self) -> int:
        """Return the mask's id, V."""
        return int(self.config.codebook)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Spread `num_inference_steps` over the T training times; more steps than T are T.

        The times stay on the CPU, where the steps are decided, so that a GPU is never waited for.
        """
        total = self.config.num_train_timesteps
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps {num_inference_steps} must be at least 1")
        self.timesteps = torch.linspace(total, 0, min(num_inference_steps, total) + 1).round().long()[:-1]

    def previous(self, t: int) -> int:
        """Return the time that the step from t leads to; 0 after the last."""
        return max((time for time in self.timesteps.tolist() if time < t), default=0)

    def step(
        self, logits: Tensor, timestep: int, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> MaskReplaceOutput | tuple[Tensor]:
        """Step from x_t to the previous time of `timesteps`.

        Args:
            logits: [B, N, V], the (guided) belief in x_0.
            timestep: t.
            sample: [B, N], x_t.
        """
        s = self.previous(int(timestep))
        if self.config.reveal == "posterior":
            codes = self._draw_posterior(self._belief(logits), sample, s, int(timestep), generator)
        else:
            codes = self._reveal_surest(logits, sample, s, generator)
        return MaskReplaceOutput(prev_sample=codes) if return_dict else (codes,)

    def _belief(self, logits: Tensor) -> Tensor:
        return truncate(logits.float().softmax(-1), self.config.truncation)

    def _draw_posterior(self, belief: Tensor, sample: Tensor, s: int, t: int, generator: Generators) -> Tensor:
        uniforms = _uniforms(sample.shape, generator, sample.device)
        if s == 0:
            return sample_categorical(belief, uniforms)
        earlier, now = (torch.full((len(sample),), time, device=sample.device) for time in (s, t))
        return sample_categorical(posterior(belief, sample, earlier, now, self.schedule), uniforms)

    def _reveal_surest(self, logits: Tensor, sample: Tensor, s: int, generator: Generators) -> Tensor:
        """Draw the masked codes, then keep as many as the schedule has revealed at s, the surest ones."""
        shown = sample != self.mask_id
        # On a CPU nothing is asked about codes that are shown: the sort behind a truncation takes half of the sampler's
        # time. A GPU would have to be waited for to know how many they are.
        where: Any = ~shown if sample.device.type == "cpu" else ...
        belief = self._belief(logits[where])  # [masked codes, V]
        drawn, codes = (
            sample_categorical(belief, _uniforms(sample.shape, generator, sample.device)[where]),
            sample.clone(),
        )
        codes[where] = drawn
        codes = torch.where(shown, sample, codes)
        if s == 0:
            return codes
        purity = belief.gather(-1, drawn[..., None])[..., 0].clamp_min(1e-9).log()
        jitter = -torch.log(-torch.log(_uniforms(sample.shape, generator, sample.device).clamp(1e-6, 1 - 1e-6)))
        score = torch.full(sample.shape, float("inf"), device=sample.device)
        score[where] = purity + self.config.purity_noise * (s / self.config.num_train_timesteps) * jitter[where]
        keep = max(1, round(sample.shape[1] * (1 - float(self.schedule.gamma[s]))))
        kept = shown.sum(1, keepdim=True).clamp_min(keep)  # codes that were given are never hidden again
        rank = score.masked_fill(shown, float("inf")).argsort(-1, descending=True).argsort(-1)
        return torch.where(rank < kept, codes, torch.full_like(codes, self.mask_id))


def _uniforms(shape: torch.Size, generator: Generators, device: torch.device) -> Tensor:
    """Return uniforms in [0, 1) that a CPU generator makes the same on every device, as diffusers does for noise."""
    noise = randn_tensor(tuple(shape), generator=generator, device=device, dtype=torch.float32)
    return torch.special.ndtr(noise).clamp(0, 1 - 1e-7)
