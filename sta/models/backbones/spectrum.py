"""Log-mel features as published models want them, of batches and on the device: [B, T] to [B, S, bands].

Waveforms are zero in the padding. The filters are those of transformers.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sta.data.audio import FFT, FRAME, HOP, SAMPLE_RATE

KALDI_FLOOR = 1.192092955078125e-07


def whisper_mel(wave: Tensor, frames: int, bands: int) -> Tensor:
    """Return what WhisperFeatureExtractor makes of each recording with silence behind it: [B, frames, bands]."""
    with torch.autocast(wave.device.type, enabled=False):
        wave = F.pad(wave.float(), (0, max(0, frames * HOP + FRAME - wave.shape[1])))
        window = torch.hann_window(FRAME, device=wave.device)
        spectrum = torch.stft(wave, FRAME, HOP, window=window, return_complex=True)[..., :frames]
        power = torch.view_as_real(spectrum).square().sum(-1).transpose(1, 2)
        mel = (power @ _filters("slaney", bands, FRAME, wave.device)).clamp_min(1e-10).log10()
        return (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8) + 4) / 4


def kaldi_mel(wave: Tensor, lengths: Tensor, bands: int) -> tuple[Tensor, Tensor]:
    """Return what SeamlessM4TFeatureExtractor makes of recordings before it stacks: [B, S, bands] and lengths [B]."""
    with torch.autocast(wave.device.type, enabled=False):
        frames = wave.float().unfold(1, FRAME, HOP) * 2**15
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
        window = torch.hann_window(FRAME, periodic=False, device=wave.device).pow(0.85)
        power = torch.view_as_real(torch.fft.rfft((frames - 0.97 * before) * window, FFT)).square().sum(-1)
        mel = (power @ _filters("kaldi", bands, FFT, wave.device)).clamp_min(KALDI_FLOOR).log()
        count = (lengths - FRAME) // HOP + 1
        mask, n = (torch.arange(mel.shape[1], device=wave.device) < count[:, None])[..., None], count[:, None, None]
        mean = (mel * mask).sum(1, keepdim=True) / n
        variance = ((mel - mean).square() * mask).sum(1, keepdim=True) / (n - 1)
        return (mel - mean) * torch.rsqrt(variance + 1e-7) * mask, count


@lru_cache(maxsize=4)
def _filters(scale: str, bands: int, fft: int, device: torch.device) -> Tensor:
    """Triangular filters [fft / 2 + 1, bands]: Whisper's or Kaldi's."""
    from transformers.audio_utils import mel_filter_bank

    kaldi = scale == "kaldi"
    filters = mel_filter_bank(
        fft // 2 + 1, bands, 20.0 if kaldi else 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, None if kaldi else "slaney", scale,
        triangularize_in_mel_space=kaldi,
    )  # fmt: skip
    return torch.from_numpy(filters).float().to(device)
