"""Augmentation of log-mel features."""

from __future__ import annotations

import pytest
import torch

from sta.config.recipe import DistillStage
from sta.models.augment import (
    E_FOLD,
    FULL,
    LEVEL,
    LOUDEST,
    QUIETEST,
    SILENT,
    SYLLABLE,
    TELEPHONE_BANDS,
    _smear,
    _warp,
    augment,
    augment_mel,
    change_level,
    change_speed,
    noise_mel,
    noise_samples,
)  # fmt: skip
from sta.models.layers import length_mask


@pytest.fixture
def mel(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(4, 192, 80, generator=generator)


LENGTHS = torch.tensor([192, 150, 64, 20])


def test_strength_zero_changes_nothing(mel: torch.Tensor) -> None:
    changed, lengths = augment_mel(mel, LENGTHS, 0)
    assert changed is mel
    assert lengths is LENGTHS


@pytest.mark.parametrize("strength", [0.1, 1.0, 2.0])
def test_lengths_fit_the_batch(mel: torch.Tensor, strength: float) -> None:
    torch.manual_seed(0)
    for _ in range(10):
        changed, lengths = augment_mel(mel, LENGTHS, strength)
        assert changed.shape[0::2] == (4, 80)
        assert changed.shape[1] % 64 == 0
        assert int(lengths.min()) > 0
        assert int(lengths.max()) <= changed.shape[1]
        assert changed.isfinite().all()
        ratio = lengths / LENGTHS
        assert (ratio >= 1 / (1 + 0.05 * strength) - 0.06).all()
        assert (ratio <= 1 / (1 - 0.05 * strength) + 0.01).all()
    assert not lengths.equal(LENGTHS)


def test_each_item_is_changed_on_its_own_and_by_the_seed() -> None:
    same = torch.randn(1, 128, 80, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1)
    lengths = torch.full((3,), 128)
    torch.manual_seed(0)
    one, one_lengths = augment_mel(same, lengths, 1.0)
    assert not one[0].equal(one[1])
    torch.manual_seed(0)
    two, two_lengths = augment_mel(same, lengths, 1.0)
    assert one.equal(two)
    assert one_lengths.equal(two_lengths)


def test_what_is_said_stays_within_the_length() -> None:
    """Valid frames hold one, padding holds zero: after the warp the same is true but for the last frame or two."""
    torch.manual_seed(0)
    mask = length_mask(LENGTHS, 192)
    mel = mask[..., None].float().expand(4, 192, 80)
    for _ in range(10):
        warped, lengths = _warp(mel, LENGTHS, 0.08, 0.05, 0.3)
        valid = length_mask(lengths, warped.shape[1])
        for row in range(4):
            n = int(lengths[row])
            assert warped[row, : n - 2].min() > 0.99
            if row:
                assert warped[row, n + 2 :].abs().max() < 0.01
        assert valid.sum(1).equal(lengths)


def test_time_runs_forward() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(128.0)[None, :, None].expand(2, 128, 80)
    warped, lengths = _warp(ramp, torch.tensor([128, 128]), 0.0, 0.05, 0.0)
    for row in range(2):
        n = int(lengths[row])
        pace = warped[row, :n, 0].diff()
        assert abs(float(pace[2:-2].mean()) - 128 / n) < 0.02
        assert float(warped[row, 0, 0]) < 1


def test_rhythm_changes_within_an_utterance_and_never_runs_backward() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(256.0)[None, :, None].expand(4, 256, 80)
    warped, lengths = _warp(ramp, torch.full((4,), 256), 0.0, 0.0, 0.3)
    assert lengths.tolist() == [256] * 4
    pace = warped[:, :, 0].diff()[:, 2:-2]
    assert pace.min() > 0.4
    assert pace.max() < 1.9
    assert (pace.std(1) > 0.1).all()
    assert (warped[:, -1, 0] > 254).all(), "the whole is neither cut nor stretched"


def test_an_accent_moves_the_bands_of_each_syllable_and_not_the_time() -> None:
    torch.manual_seed(0)
    bands = torch.arange(80.0).expand(4, 256, 80)
    warped, lengths = _warp(bands, torch.full((4,), 256), 0.0, 0.0, 0.0, 0.1)
    assert lengths.tolist() == [256] * 4
    factor = warped[:, :, 40] / 40
    assert (factor - 1).abs().max() < 0.11
    assert (factor.std(1) > 0.02).all(), "it changes within an utterance"
    assert factor.diff().abs().max() < 2 * 0.1 / SYLLABLE + 1e-3, "slowly"
    torch.testing.assert_close(warped[:, :, 20] * 2, warped[:, :, 40], atol=0.6, rtol=0)


def test_an_accent_alone_leaves_length_and_loudness() -> None:
    torch.manual_seed(0)
    flat = torch.ones(4, 192, 80)
    heard, lengths = augment_mel(flat, torch.full((4,), 192), 0.0, 0.1)
    assert lengths.tolist() == [192] * 4
    torch.testing.assert_close(heard, flat)


def test_smearing_blurs_half_the_utterances_and_keeps_their_level() -> None:
    torch.manual_seed(0)
    mel = torch.randn(400, 8, 80)
    heard = _smear(mel, 0.3)
    same = (heard == mel).flatten(1).all(1)
    assert same.float().mean() == pytest.approx(0.5, abs=0.08)
    assert heard[~same].std() < mel[~same].std()
    torch.testing.assert_close(heard.mean(), mel.mean(), atol=0.002, rtol=0)


def test_no_share_is_disturbed(mel: torch.Tensor) -> None:
    assert noise_mel(mel, LENGTHS, 0) is mel


def test_about_the_share_asked_for_is_disturbed() -> None:
    torch.manual_seed(0)
    mel, lengths = torch.randn(1000, 8, 80), torch.full((1000,), 8)
    changed = (noise_mel(mel, lengths, 0.3) != mel).flatten(1)
    assert changed.any(1).float().mean() == pytest.approx(0.3, abs=0.05)
    assert (changed.any(1) == changed.float().mean(1).gt(0.5)).all(), "an utterance is disturbed whole or not at all"


def test_noise_fills_the_pauses_and_leaves_the_level() -> None:
    """Speech is loud in one half of the frames, with almost nothing in the other."""
    torch.manual_seed(0)
    mel = torch.full((500, 64, 80), E_FOLD * 10.0)
    mel[:, 32:] = -E_FOLD * 10.0
    heard = noise_mel(mel, torch.full((500,), 64), 1.0)[..., TELEPHONE_BANDS[0] : TELEPHONE_BANDS[1]] / E_FOLD
    speech, pause = heard[:, :32].mean((1, 2)), heard[:, 32:].mean((1, 2))
    assert (pause > -10).all()
    assert speech.mean() == pytest.approx(10, abs=1.5)
    assert (speech > pause - 2).all()
    ratios = speech - pause
    assert ratios.min() < 1, "some noise is as loud as the speech"
    assert ratios.max() > 7, "some is far below"


def test_what_is_padding_does_not_set_the_level() -> None:
    mel = torch.zeros(2, 64, 80)
    mel[1, 32:] = 50.0
    lengths = torch.tensor([32, 32])
    heard = []
    for row in (0, 1):
        torch.manual_seed(0)
        heard.append(noise_mel(mel[[row]], lengths[[row]], 1.0)[:, :32])
    torch.testing.assert_close(*heard)


def test_one_in_five_comes_by_telephone() -> None:
    torch.manual_seed(0)
    heard = noise_mel(torch.randn(1000, 16, 80), torch.full((1000,), 16), 1.0)
    silent = heard[..., TELEPHONE_BANDS[1] + 1 :].flatten(1).std(1) < 1e-6
    assert silent.float().mean() == pytest.approx(0.2, abs=0.05)


TEN_DECIBELS = 2.302585  # natural log of a power


def test_a_level_shifts_what_is_heard_and_no_silence() -> None:
    torch.manual_seed(0)
    mel = torch.zeros(500, 6, 80)
    mel[:, 4:] = SILENT  # padding, and what lies below what the features hold
    heard = change_level(mel, 10.0, is_mel=True)
    assert (heard[:, 4:] == SILENT).all()
    assert (heard[:, :4] == heard[:, :1, :1]).all(), "one level a recording"
    levels = heard[:, 0, 0] / E_FOLD
    assert levels.abs().max() <= TEN_DECIBELS
    assert levels.std() == pytest.approx(2 * TEN_DECIBELS / 12**0.5, rel=0.1)
    assert levels.mean() == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(("mel", "end"), [(SILENT + 0.01, SILENT), (FULL - 0.01, FULL)])
def test_a_level_stays_within_what_the_features_hold(mel: float, end: float) -> None:
    torch.manual_seed(0)
    heard = change_level(torch.full((50, 2, 80), mel), 12.0, is_mel=True)
    assert (heard == end).any()
    assert (heard >= SILENT).all()
    assert (heard <= FULL).all()


def test_samples_are_multiplied() -> None:
    torch.manual_seed(0)
    wave = torch.linspace(-0.9, 0.9, 32)[None, :, None].expand(50, 32, 1)
    stage = DistillStage(steps=1, batch=50, gain=6.0, augment=0.0)
    heard, lengths = augment(wave, torch.full((50,), 32), stage, "samples")
    assert lengths.tolist() == [32] * 50
    factors = heard[:, 16] / wave[:, 16]
    assert factors.min() == pytest.approx(0.5, abs=0.05)
    assert factors.max() == pytest.approx(2.0, abs=0.2)
    torch.testing.assert_close(heard, (wave * factors[:, None]).clamp(-1, 1))


def test_without_a_gain_the_level_is_left_alone(mel: torch.Tensor) -> None:
    assert change_level(mel, 0.0, is_mel=True) is mel


def test_channels_of_frames_move_by_a_level_of_their_own_in_each_recording() -> None:
    frames, deviation, stage = (
        torch.randn(64, 5, 3),
        torch.tensor([0.1, 1.0, 50.0]),
        DistillStage(steps=1, batch=1, augment=1.0),
    )
    lengths = torch.full((64,), 5)
    moved, same = augment(frames, lengths, stage, "frames", deviation)
    shift = moved - frames
    assert same is lengths
    torch.testing.assert_close(shift, shift[:, :1].expand(-1, 5, -1), atol=1e-4, rtol=1e-3)
    assert (shift[:, 0].std(0) / deviation / LEVEL - 1).abs().max() < 0.4
    assert augment(frames, lengths, DistillStage(steps=1, batch=1, augment=0.0), "frames", deviation)[0] is frames
    assert augment(frames, lengths, stage, "frames")[0] is frames


def test_speed_changes_samples_and_their_lengths_alike() -> None:
    """A slow tone has the pitch that its new length says, and nothing comes from behind its end."""
    torch.manual_seed(0)
    lengths = torch.tensor([4_000, 3_000, 2_000])
    time = torch.arange(4_000) / 4_000
    wave = torch.sin(2 * torch.pi * 20 * time).expand(3, -1).clone()
    wave[~length_mask(lengths, 4_000)] = 5.0
    changed, sizes = change_speed(wave[..., None], lengths, 0.2)
    assert changed.shape == (3, int(sizes.max()), 1)
    ratio = sizes / lengths
    assert (ratio - 1).abs().max() > 0.02
    assert ((ratio > 1 / 1.21) & (ratio < 1 / 0.79)).all()
    for row, n in enumerate(sizes.tolist()):
        place = torch.linspace(0, (int(lengths[row]) - 1) / 4_000, n)
        step = 2 * torch.pi * 20 / 4_000  # a length is a whole number of samples
        torch.testing.assert_close(changed[row, :n, 0], torch.sin(2 * torch.pi * 20 * place), atol=step, rtol=0)
    assert change_speed(wave[..., None], lengths, 0.0)[1] is lengths


def test_noise_is_added_to_a_share_of_the_samples_at_levels_about_their_own() -> None:
    torch.manual_seed(0)
    lengths = torch.full((400,), 1_600)
    wave = 0.05 * torch.randn(400, 2_000, 1)
    heard = noise_samples(wave, lengths, 0.5)
    moved = (heard != wave).flatten(1).any(1)
    assert 0.4 < moved.float().mean() < 0.6
    error = (heard - wave)[moved, :1_600].square().mean((1, 2))
    ratio = (error / wave[moved, :1_600].square().mean((1, 2))).log()
    assert ratio.min() > QUIETEST - 0.5
    assert ratio.max() < LOUDEST + 0.7, "a telephone takes from the recording too"
    assert ratio.std() > 1
    assert noise_samples(wave, lengths, 0.0) is wave


def test_a_telephone_lets_its_band_through() -> None:
    torch.manual_seed(0)
    wave = 0.05 * torch.randn(200, 4_000, 1)
    power = torch.fft.rfft(noise_samples(wave, torch.full((200,), 4_000), 1.0).squeeze(-1)).abs().square()
    above = power[:, 900:].mean(1) / power[:, 100:800].mean(1)  # 4 Hz apart
    assert 0.1 < (above < 1e-3).float().mean() < 0.3, "one in five"
