"""What disturbances do to a recording, measured on its spectrum and level."""

from __future__ import annotations

import numpy as np
import pytest

from sta.config.limits import SAMPLE_RATE
from sta.data.corruptions import CORRUPTIONS, Wave, add_noise, add_room, at_speed, leading_pause, telephone


def tone(frequency: float, seconds: float = 1.0, level: float = 0.3) -> Wave:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def power(wave: Wave) -> float:
    return float(np.mean(np.square(wave, dtype=np.float64)))


@pytest.mark.parametrize("decibels", [20, 10, 0])
@pytest.mark.parametrize("level", [0.02, 0.3])
def test_noise_has_the_ratio_asked_for(decibels: int, level: float) -> None:
    wave = tone(440, level=level)
    noise = add_noise(wave, decibels, np.random.default_rng(0)) - wave
    assert 10 * np.log10(power(wave) / power(noise)) == pytest.approx(decibels, abs=0.2)


def test_noise_is_pink() -> None:
    noise = add_noise(tone(440, 8), 0, np.random.default_rng(0)) - tone(440, 8)
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    octaves = [spectrum[(frequencies >= f) & (frequencies < 2 * f)].sum() for f in (500, 1000, 2000, 4000)]
    np.testing.assert_allclose(octaves, np.mean(octaves), rtol=0.1)


def test_noise_leaves_loud_speech_as_loud() -> None:
    """Loudness tells angry from happy; only what goes beyond full scale is clipped."""
    loud = add_noise(tone(440, level=1.0), 10, np.random.default_rng(0))
    assert np.abs(loud).max() == 1
    assert power(loud) > 0.95 * power(tone(440, level=1.0))


@pytest.mark.parametrize(("frequency", "kept"), [(100, False), (500, True), (1000, True), (3000, True), (5000, False)])
def test_telephone_keeps_its_band(frequency: float, kept: bool) -> None:
    wave = tone(frequency)
    heard = telephone(wave)
    assert heard.shape == wave.shape
    assert heard.dtype == np.float32
    assert (power(heard) > 0.8 * power(wave)) == kept
    assert kept or power(heard) < 0.02 * power(wave)


def test_telephone_quantises() -> None:
    """Mu-law has a signal-to-noise ratio of 37 to 38 dB over its range (ITU-T G.711)."""
    wave = tone(1000)
    ratio = 10 * np.log10(power(wave) / power(telephone(wave) - wave))
    assert 25 < ratio < 45


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1])
def test_speed_moves_length_and_pitch(speed: float) -> None:
    wave = at_speed(tone(440, 2.0), speed)
    assert len(wave) == pytest.approx(2 * SAMPLE_RATE / speed, abs=1)
    assert np.abs(np.fft.rfft(wave)).argmax() * SAMPLE_RATE / len(wave) == pytest.approx(440 * speed, abs=1)
    assert np.abs(wave).max() == pytest.approx(0.3, rel=0.05)
    assert wave.dtype == np.float32


def test_as_it_is_is_untouched() -> None:
    np.testing.assert_array_equal(at_speed(tone(440), 1.0), tone(440))


def test_speed_stays_within_full_scale() -> None:
    square = np.sign(tone(100)).astype(np.float32)
    assert np.abs(at_speed(square, 0.9)).max() <= 1


def test_pause_is_silence_before_the_same_speech() -> None:
    wave = tone(440)
    late = leading_pause(wave, 2.0)
    assert not late[: 2 * SAMPLE_RATE].any()
    np.testing.assert_array_equal(late[2 * SAMPLE_RATE :], wave)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_disturbance_is_a_recording_again(name: str) -> None:
    wave = tone(440)
    once, again = (CORRUPTIONS[name](wave, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert once.dtype == np.float32
    assert np.isfinite(once).all()
    assert not np.array_equal(once, wave)


def test_a_room_keeps_length_and_level_and_resounds() -> None:
    wave = np.concatenate([tone(440, 0.5), np.zeros(8000, np.float32)])
    rooms = [add_room(wave, seconds, 5, np.random.default_rng(0)) for seconds in (0.2, 0.6)]
    assert all(len(room) == len(wave) and room.dtype == np.float32 for room in rooms)
    assert [power(room) for room in rooms] == pytest.approx([power(wave)] * 2, rel=1e-3)
    after = [power(room[8000 + 1600 : 8000 + 3200]) for room in rooms]
    assert after[1] > 10 * after[0] > 0, "a longer reverberation lasts longer"
    np.testing.assert_array_equal(rooms[0], add_room(wave, 0.2, 5, np.random.default_rng(0)))
    assert not np.array_equal(rooms[0], add_room(wave, 0.2, 5, np.random.default_rng(1)))
