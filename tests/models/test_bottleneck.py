"""The information bottleneck: its rate is a KL, its tokens are noisy only in training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sta.models.bottleneck import SpeechBottleneck, gaussian_kl
from sta.models.encoder import pieces_to_frames
from tests.conftest import scatter, tiny_encoder

FRAMES = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(9) < torch.tensor([9, 5, 2])[:, None]
LANGUAGE = torch.tensor([0, 1, 0])


@pytest.fixture
def bottleneck() -> SpeechBottleneck:
    torch.manual_seed(0)
    return scatter(SpeechBottleneck(16, 6, tokens=3, width=4, layers=2, heads=2)).eval()  # type: ignore[return-value]


def test_kl_is_that_of_torch(generator: torch.Generator) -> None:
    mean, log_variance = torch.randn(2, 5, 3, 4, generator=generator).unbind()
    wanted = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum((1, 2))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), wanted)
    assert gaussian_kl(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]


def test_shapes_units_and_bits(bottleneck: SpeechBottleneck) -> None:
    out = bottleneck(FRAMES, MASK, LANGUAGE)
    assert out.tokens.shape == (3, 3, 4)
    assert out.embedding.shape == (3, 6)
    torch.testing.assert_close(out.embedding.norm(dim=1), torch.ones(3))
    assert out.kl.shape == (3,)
    assert (out.kl > 0).all()
    torch.testing.assert_close(out.bits, out.kl / math.log(2))


def test_evaluation_takes_the_means_and_training_samples(bottleneck: SpeechBottleneck) -> None:
    mean = bottleneck(FRAMES, MASK, LANGUAGE).tokens
    assert bottleneck(FRAMES, MASK, LANGUAGE).tokens.equal(mean)
    bottleneck.train()
    torch.manual_seed(0)
    with torch.no_grad():
        samples = torch.stack([bottleneck(FRAMES, MASK, LANGUAGE).tokens for _ in range(800)])
        kl = bottleneck(FRAMES, MASK, LANGUAGE).kl
    assert not samples[0].equal(samples[1])
    spread = samples.std(0)
    assert (spread > 0).all()
    assert ((samples.mean(0) - mean).abs() < 6 * spread / 800**0.5).all()
    recovered = gaussian_kl(mean, 2 * spread.log())  # the noise is that of the rate
    torch.testing.assert_close(recovered, kl, rtol=0.05, atol=0.05)


def test_hidden_frames_change_nothing(bottleneck: SpeechBottleneck) -> None:
    other = FRAMES.masked_fill(~MASK[..., None], 99.0)
    torch.testing.assert_close(bottleneck(other, MASK, LANGUAGE).tokens, bottleneck(FRAMES, MASK, LANGUAGE).tokens)
    alone = bottleneck(FRAMES[1:2, :5], MASK[1:2, :5], LANGUAGE[1:2])
    torch.testing.assert_close(alone.tokens[0], bottleneck(FRAMES, MASK, LANGUAGE).tokens[1], atol=1e-5, rtol=1e-5)
    assert (
        not bottleneck(other, torch.ones_like(MASK), LANGUAGE)
        .tokens[1]
        .allclose(bottleneck(FRAMES, MASK, LANGUAGE).tokens[1])
    )


@pytest.mark.parametrize("teller", ["positions", "convolution"])
@torch.no_grad()
def test_order_of_frames_matters(bottleneck: SpeechBottleneck, teller: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bottleneck reads a set: positions and the convolutions of the encoder each tell it the order."""
    encoder: Any = tiny_encoder()
    if teller == "positions":
        for layer in encoder.context:
            layer.convolution.weight.zero_()
    else:
        monkeypatch.setattr("sta.models.encoder.POSITION_SCALE", 0.0)
    written = encoder.encode_text(*pieces_to_frames([[3, 9, 4, 5], [4, 9, 3, 5]]), LANGUAGE[:2])
    one, two = bottleneck(written.frames, written.mask, LANGUAGE[:2]).tokens
    assert not one.allclose(two, atol=1e-3)


def test_gradient_reaches_every_parameter(bottleneck: SpeechBottleneck) -> None:
    out = bottleneck.train()(FRAMES, MASK, LANGUAGE)
    (out.kl.mean() + out.embedding[:, 0].sum() + out.tokens.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in bottleneck.parameters())


def test_it_starts_with_little_noise() -> None:
    torch.manual_seed(0)
    fresh = SpeechBottleneck(16, 6, tokens=3, width=4)
    with torch.no_grad():
        means = fresh.eval()(FRAMES, MASK, LANGUAGE).tokens
        assert float((fresh.train()(FRAMES, MASK, LANGUAGE).tokens - means).std()) < 0.4


def test_saved_and_loaded_it_is_the_same(tmp_path: Path, bottleneck: SpeechBottleneck) -> None:
    bottleneck.save_pretrained(tmp_path)
    again = SpeechBottleneck.from_pretrained(tmp_path).eval()
    one, two = bottleneck(FRAMES, MASK, LANGUAGE), again(FRAMES, MASK, LANGUAGE)
    assert one.tokens.equal(two.tokens)
    assert one.embedding.equal(two.embedding)
    assert one.kl.equal(two.kl)


# ---- detectors in the place of queries -----------------------------------------------------------------------------


@pytest.fixture
def pooled() -> SpeechBottleneck:
    torch.manual_seed(0)
    made = SpeechBottleneck(16, 6, tokens=3, width=4, detectors=32)
    return scatter(made).eval()  # type: ignore[return-value]


def test_detectors_give_the_same_kinds_of_things(pooled: SpeechBottleneck) -> None:
    out = pooled(FRAMES, MASK, LANGUAGE)
    assert (out.tokens.shape, out.embedding.shape, out.kl.shape) == ((3, 3, 4), (3, 6), (3,))
    assert not [name for name, _ in pooled.named_parameters() if "quer" in name]
    pooled.train()
    assert not pooled(FRAMES, MASK, LANGUAGE).tokens.equal(out.tokens)


def test_detectors_see_no_padding_and_find_a_window_wherever_it_stands(pooled: SpeechBottleneck) -> None:
    other = torch.where(MASK[..., None], FRAMES, 9.0)
    torch.testing.assert_close(pooled(other, MASK, LANGUAGE).tokens, pooled(FRAMES, MASK, LANGUAGE).tokens)
    early, late = torch.zeros(2, 1, 20, 16)
    early[:, 3:6], late[:, 11:14] = FRAMES[:1, :3], FRAMES[:1, :3]
    mask = torch.ones(1, 20, dtype=torch.bool)
    torch.testing.assert_close(pooled(early, mask, LANGUAGE[:1]).tokens, pooled(late, mask, LANGUAGE[:1]).tokens)


def test_detectors_are_saved_and_loaded(pooled: SpeechBottleneck, tmp_path: Path) -> None:
    pooled.save_pretrained(tmp_path)
    again = SpeechBottleneck.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(FRAMES, MASK, LANGUAGE).tokens, pooled(FRAMES, MASK, LANGUAGE).tokens)


def test_detectors_learn_words_of_letters_in_few_steps() -> None:
    torch.manual_seed(0)
    letters, words = torch.randn(12, 16), torch.randint(12, (40, 6))
    targets = torch.nn.functional.normalize(torch.randn(40, 24), dim=-1)

    def right(detectors: int) -> float:
        torch.manual_seed(0)
        made = SpeechBottleneck(16, 24, tokens=3, width=16, layers=1, heads=2, detectors=detectors)
        optimizer, mask = torch.optim.Adam(made.parameters(), 3e-3), torch.ones(40, 6, dtype=torch.bool)
        for _ in range(60):
            out = made(letters[words], mask, torch.zeros(40, dtype=torch.long))
            loss = torch.nn.functional.cross_entropy(out.embedding @ targets.T / 0.05, torch.arange(40))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = made.eval()(letters[words], mask, torch.zeros(40, dtype=torch.long)).embedding @ targets.T
        return float((found.argmax(1) == torch.arange(40)).float().mean())

    assert right(detectors=256) > 0.95
    assert right(detectors=0) < 0.9
