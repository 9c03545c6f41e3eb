"""Disturbances of a recording: noise, a telephone, a pause. Functions on float32 [T] at 16 kHz.

Levels are relative to the recording's own, since loudness carries mood; what goes beyond full scale is clipped.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soxr
from numpy.typing import NDArray

from sta.config.limits import SAMPLE_RATE

Wave = NDArray[np.float32]

TELEPHONE_RATE = 8_000
TELEPHONE_BAND = (300.0, 3_400.0)  # Hz, ITU-T G.712
MU = 255.0


def add_noise(wave: Wave, decibels: float, rng: np.random.Generator) -> Wave:
    """Add pink noise (power falling as 1/f, from 50 Hz up) at a signal-to-noise ratio over the whole recording."""
    frequencies = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    spectrum = rng.standard_normal(len(frequencies)) + 1j * rng.standard_normal(len(frequencies))
    spectrum *= np.where(frequencies < 50, 0, 1 / np.sqrt(np.maximum(frequencies, 50)))
    noise = np.fft.irfft(spectrum, len(wave))
    gain = np.sqrt(_power(wave) / max(_power(noise), 1e-20)) * 10 ** (-decibels / 20)
    return np.clip(wave + gain * noise, -1, 1).astype(np.float32)


def add_room(wave: Wave, seconds: float, decibels: float, rng: np.random.Generator) -> Wave:
    """Let a recording resound in a simulated room, at its length and power.

    The impulse response is the direct sound and noise that decays exponentially after it (Polack 1988).

    Args:
        seconds: in which the reverberation falls by 60 dB (RT60).
        decibels: the direct sound above the reverberation.
    """
    time = np.arange(1, round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    response = np.concatenate([[1.0], tail * 10 ** (-decibels / 20) / np.linalg.norm(tail)])
    size = 1 << (len(wave) + len(response)).bit_length()  # a power of two, several times faster
    heard = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)[: len(wave)]
    return np.clip(heard * np.sqrt(_power(wave) / max(_power(heard), 1e-20)), -1, 1).astype(np.float32)


def telephone(wave: Wave) -> Wave:
    """Through a telephone line: 300 to 3,400 Hz, sampled at 8 kHz in eight bits of mu-law (ITU-T G.711)."""
    narrow = soxr.resample(wave, SAMPLE_RATE, TELEPHONE_RATE)
    spectrum = np.fft.rfft(narrow)
    frequencies = np.fft.rfftfreq(len(narrow), 1 / TELEPHONE_RATE)
    spectrum[(frequencies < TELEPHONE_BAND[0]) | (frequencies > TELEPHONE_BAND[1])] = 0
    narrow = np.clip(np.fft.irfft(spectrum, len(narrow)), -1, 1)
    companded = np.sign(narrow) * np.log1p(MU * np.abs(narrow)) / np.log1p(MU)
    companded = np.round(companded * 127) / 127
    narrow = np.sign(companded) * np.expm1(np.abs(companded) * np.log1p(MU)) / MU
    return soxr.resample(narrow.astype(np.float32), TELEPHONE_RATE, SAMPLE_RATE).astype(np.float32, copy=False)


def leading_pause(wave: Wave, seconds: float) -> Wave:
    """Silence before the speech, as when a button is pressed too early."""
    return np.concatenate([np.zeros(round(seconds * SAMPLE_RATE), np.float32), wave])


def at_speed(wave: Wave, speed: float) -> Wave:
    """Play faster (above 1) or slower, pitch and all: speed perturbation (Ko et al. 2015)."""
    if speed == 1:
        return wave
    return soxr.resample(wave, SAMPLE_RATE * speed, SAMPLE_RATE).clip(-1, 1).astype(np.float32, copy=False)


#: condition of a report -> what it does to a waveform; `rng` draws the noise.
CORRUPTIONS: dict[str, Callable[[Wave, np.random.Generator], Wave]] = {
    "noise-20": lambda wave, rng: add_noise(wave, 20, rng),
    "noise-10": lambda wave, rng: add_noise(wave, 10, rng),
    "noise-0": lambda wave, rng: add_noise(wave, 0, rng),
    "telephone": lambda wave, rng: telephone(wave),
    "pause": lambda wave, rng: leading_pause(wave, 2.0),
}


def _power(wave: NDArray[np.floating]) -> float:
    return float(np.mean(np.square(wave, dtype=np.float64)))
