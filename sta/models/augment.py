"""Augmentation of log-mel features: vocal tract length, accent, tempo, rhythm, blur, colour, noise floor, masks
(SpecAugment, Park 2019), and what lies between a speaker and a listener: the level and the colour of a microphone,
noise, a telephone's band. Of samples: speed (Ko et al. 2015), level, noise, a telephone's band. Of a published model's
frames: the level of each channel.

Lengths are on the host, as they decide shapes, and what decides them is drawn there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sta.config.recipe import DistillStage
from sta.data.audio import LOG_STEPS, Q_MEAN, Q_STD, SAMPLE_RATE
from sta.distributed import sharding
from sta.models.layers import length_mask

E_FOLD = LOG_STEPS / Q_STD  # a factor of e in power, in scaled log-mel
SILENT, FULL = -Q_MEAN / Q_STD, (255 - Q_MEAN) / Q_STD  # the ends of what log-mel features hold
QUIETEST, LOUDEST = -7.0, 1.0  # noise against speech, natural log of power: 30 dB below to 4 dB above
LEVEL = 0.2  # of a channel of a published model, in deviations: about as much as one synthesiser differs from another
FLICKER = 0.7  # deviation of the noise from its mean in a band of a frame, natural log of power
STEEPEST, FLATTEST = -6.0, 2.0  # how noise changes from the lowest band to the highest, natural log of power
SYLLABLE = 16  # frames between the points where rhythm and vowels change
TELEPHONE_BANDS = (7, 59)  # of 80: about 300 to 3,400 Hz
TELEPHONE_HZ = (300, 3_400)
PINKEST, LOWEST, EVEN = -0.75, 50, 4_000  # noise in samples: its amplitude's power of frequency, most, between two Hz
HOST = torch.device("cpu")


def augment(
    inputs: Tensor, lengths: Tensor, stage: DistillStage, kind: str, deviation: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Disturb recordings as the distill stage trains on them.

    Args:
        inputs: of `SpeechEncoder.inputs`.
        lengths: [B], on the host.
        kind: `feature_kind` of the backbone: `samples` [B, T, 1], `logmel` [B, S, 80] or `frames` [B, S, F]; others are
            left alone.
        deviation: [F], of frames; None leaves them alone.

    Returns:
        The changed inputs and their lengths.
    """
    if kind in ("samples", "logmel"):
        inputs = change_level(inputs, stage.gain, kind == "logmel")
    if kind == "samples":
        inputs, lengths = change_speed(inputs, lengths, 0.05 * stage.augment)
        return noise_samples(inputs, lengths, stage.noise), lengths
    if kind == "frames" and deviation is not None and stage.augment:
        moved = LEVEL * stage.augment * sharding.normal(len(inputs), 1, len(deviation), device=inputs.device)
        return inputs + moved * deviation, lengths
    if kind != "logmel":
        return inputs, lengths
    inputs, lengths = augment_mel(inputs, lengths, stage.augment, stage.accent)
    return noise_mel(inputs, lengths, stage.noise), lengths


def change_level(inputs: Tensor, most: float, is_mel: bool) -> Tensor:
    """Change each recording's level by up to `most` decibels either way, as another microphone's gain would.

    Args:
        inputs: [B, ...]. Log-mel is shifted within what its features hold, and what lies below their range stays
            there; samples are multiplied, and clipped as a sound card would.
    """
    if most == 0:
        return inputs
    decibels = most * (2 * sharding.uniform(len(inputs), 1, 1, device=inputs.device) - 1)
    if not is_mel:
        return (inputs * 10 ** (decibels / 20)).clamp(-1, 1)
    shifted = (inputs + E_FOLD * math.log(10) / 10 * decibels).clamp(SILENT, FULL)
    return torch.where(inputs > SILENT, shifted, inputs)


def change_speed(samples: Tensor, lengths: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Play recordings [B, T, 1], lengths [B] on the host, faster or slower by up to a share `most`, pitch and all."""
    if most == 0:
        return samples, lengths
    pace = 1 + most * (2 * sharding.uniform(len(samples), device=HOST) - 1)
    lengths, last = ((lengths - 1) / pace).long() + 1, lengths - 1
    longest = sharding.all_reduce_max(max(lengths.tolist()))
    pace, last = (each.to(samples.device, non_blocking=True)[:, None] for each in (pace, last))
    place = torch.minimum(torch.arange(longest, device=samples.device) * pace, last)  # [B, T']
    before, wave = place.long(), samples.squeeze(-1)
    after = torch.minimum(before + 1, last)
    return torch.lerp(wave.gather(1, before), wave.gather(1, after), place - before)[..., None], lengths


def noise_samples(samples: Tensor, lengths: Tensor, share: float) -> Tensor:
    """Add stationary coloured noise to some recordings [B, T, 1], and let a few of them come by telephone.

    Args:
        lengths: [B], on the host.
        share: chance of a recording to be disturbed; one in five of those comes by telephone.
    """
    if share == 0:
        return samples
    (b, longest, _), device = samples.shape, samples.device
    mask = length_mask(lengths.to(device, non_blocking=True), longest)
    wave = samples.squeeze(-1) * mask
    place = torch.fft.rfftfreq(longest, 1 / SAMPLE_RATE, device=device)  # [F], in Hz
    fall = sharding.uniform(b, 1, device=device) * PINKEST * (place / EVEN).clamp(LOWEST / EVEN, 1).log()
    white = torch.fft.rfft(sharding.normal_like(wave))
    noise = torch.fft.irfft(white * fall.exp() * (place > LOWEST), longest)
    level = QUIETEST + (LOUDEST - QUIETEST) * sharding.uniform(b, device=device)
    power = wave.square().sum(1) / mask.sum(1) * level.exp()
    noisy = wave + (power / noise.square().mean(1).clamp_min(1e-12)).sqrt()[:, None] * noise
    line = (place > TELEPHONE_HZ[0]) & (place < TELEPHONE_HZ[1])
    narrow = torch.fft.irfft(torch.fft.rfft(noisy) * line, longest)
    noisy = torch.where(sharding.uniform(b, 1, device=device) < 0.2, narrow, noisy).clamp(-1, 1)
    return torch.where(sharding.uniform(b, 1, 1, device=device) < share, noisy[..., None], samples)


def augment_mel(mel: Tensor, lengths: Tensor, strength: float, accent: float = 0.0) -> tuple[Tensor, Tensor]:
    """Warp and mask a batch of scaled log-mel features.

    Args:
        mel: [B, S, 80], of `SpeechEncoder.inputs`.
        lengths: [B], on the host.
        strength: 0 leaves the batch as it is, 1 is meant for synthesised speech.
        accent: share by which the bands of each syllable are stretched, most, as vowels differ between accents.

    Returns:
        The changed features [B, S', 80] and their lengths.
    """
    if strength == 0 and accent == 0:
        return mel, lengths
    mel, lengths = _warp(mel, lengths, 0.1 * strength, 0.05 * strength, 0.2 * strength, accent)
    mel = _smear(mel, 0.2 * strength) + _colour(mel, 0.5 * strength)[:, None]
    floor = mel.amin((1, 2), keepdim=True) + strength * 1.5 * sharding.uniform(len(mel), 1, 1, device=mel.device)
    mel = torch.maximum(mel, floor)
    mel = mel + 0.05 * strength * sharding.normal(len(mel), 1, 1, device=mel.device)
    return _mask(mel, lengths, strength), lengths


def noise_mel(mel: Tensor, lengths: Tensor, share: float) -> Tensor:
    """Add a coloured microphone and stationary noise to some utterances, and a telephone to a few of them.

    Args:
        mel: [B, S, 80], scaled log-mel.
        lengths: [B], on the host.
        share: chance of an utterance to be disturbed; one in five of those comes by telephone.

    Returns:
        [B, S, 80].
    """
    if share == 0:
        return mel
    b, longest, bands = mel.shape
    lengths = lengths.to(mel.device, non_blocking=True)
    chosen = sharding.uniform(b, 1, 1, device=mel.device) < share
    valid = length_mask(lengths, longest)[..., None]
    place = torch.linspace(0, 1, bands, device=mel.device)
    heard = mel + _colour(mel, 0.7)[:, None]
    level = (heard / E_FOLD).masked_fill(~valid, -torch.inf).flatten(1).logsumexp(1) - (lengths * bands).log()
    quiet, flat = sharding.uniform(b, 2, device=mel.device).unbind(1)
    loudness = level + QUIETEST + (LOUDEST - QUIETEST) * quiet
    slope = (STEEPEST + (FLATTEST - STEEPEST) * flat)[:, None] * (place - 0.5)  # [B, 80]
    mean_power = slope.logsumexp(1) - math.log(bands) + 0.5 * FLICKER**2
    spread = (slope - mean_power[:, None])[:, None] + FLICKER * sharding.normal_like(mel)  # of mean power 1
    heard = E_FOLD * torch.logaddexp(heard / E_FOLD, loudness[:, None, None] + spread)
    outside = (torch.arange(bands, device=mel.device) < TELEPHONE_BANDS[0]) | (
        torch.arange(bands, device=mel.device) > TELEPHONE_BANDS[1]
    )
    by_telephone = sharding.uniform(b, 1, 1, device=mel.device) < 0.2
    heard = torch.where(by_telephone & outside, torch.full_like(heard, SILENT), heard)
    return torch.where(chosen, heard.clamp(SILENT, FULL), mel)


def _warp(
    mel: Tensor, lengths: Tensor, tract: float, tempo: float, rhythm: float, accent: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Stretch bands by up to `tract`, the whole by up to `tempo`, parts of it against each other by `rhythm`.

    The bands of each syllable are stretched by up to `accent` besides.
    """
    b, longest, bands = mel.shape
    pace = 1 + tempo * (2 * sharding.uniform(b, device=HOST) - 1)
    new_lengths = (lengths / pace).long().clamp_min(4)
    frames = -(-sharding.all_reduce_max(max(new_lengths.tolist())) // 64) * 64
    lengths, last = (each.to(mel.device, non_blocking=True) for each in (lengths, new_lengths - 1))
    stretch = 1 + tract * (2 * sharding.uniform(b, device=mel.device) - 1)
    passed = _wander(b, frames, rhythm, mel.device).cumsum(1)
    time = (passed / passed.gather(1, last[:, None]) * lengths[:, None] - 0.5) * 2 / longest - 1
    place = torch.arange(bands, device=mel.device) * stretch[:, None, None]  # [B, 1, 80]
    if accent:
        place = place * _wander(b, frames, accent, mel.device)[..., None]
    band = (place.clamp(max=bands - 1) + 0.5) * 2 / bands - 1
    grid = torch.stack([band.expand(b, frames, bands), time[:, :, None].expand(b, frames, bands)], -1)  # [B, S', 80, 2]
    warped = F.grid_sample(mel[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    return warped, new_lengths


def _wander(count: int, frames: int, most: float, device: torch.device) -> Tensor:
    """Factors around 1 that change from syllable to syllable, up to `most` off: [count, frames]."""
    points = 1 + most * (2 * sharding.uniform(count, 1, frames // SYLLABLE + 2, device=device) - 1)
    return F.interpolate(points, frames, mode="linear", align_corners=True)[:, 0]


def _smear(mel: Tensor, most: float) -> Tensor:
    """Blur the bands of half the utterances into each other, as the vocoder of another engine would."""
    share = most * (2 * sharding.uniform(len(mel), 1, 1, device=mel.device) - 1).clamp_min(0)
    padded = F.pad(mel, (1, 1), mode="replicate")
    return mel + share * ((padded[..., :-2] + padded[..., 2:]) / 2 - mel)


def _colour(mel: Tensor, deviation: float) -> Tensor:
    """Draw what a room and a microphone do to each band [B, 80]: 0.7 is about 4 dB, 0 on average over the bands."""
    place = torch.linspace(0, 1, mel.shape[2], device=mel.device)
    waves = torch.cos(torch.pi * torch.arange(1, 4, device=mel.device)[:, None] * place)  # [3, 80]
    return deviation * E_FOLD * sharding.normal(len(mel), 3, device=mel.device) @ waves


def _mask(mel: Tensor, lengths: Tensor, strength: float) -> Tensor:
    b, longest, bands = mel.shape
    lengths = lengths.to(mel.device, non_blocking=True)
    fill = (mel * length_mask(lengths, longest)[..., None]).sum((1, 2)) / (lengths * bands)
    for axis, sizes, widest in ((1, lengths, 20 * strength), (2, torch.full_like(lengths, bands), 10 * strength)):
        width = sharding.uniform(b, device=mel.device) * (sizes * 0.15).clamp(max=widest)
        start = sharding.uniform(b, device=mel.device) * (sizes - width)
        place = torch.arange(mel.shape[axis], device=mel.device)
        hidden = (place >= start[:, None]) & (place < (start + width)[:, None])
        hidden = hidden[:, :, None] if axis == 1 else hidden[:, None, :]
        mel = torch.where(hidden, fill[:, None, None], mel)
    return mel
