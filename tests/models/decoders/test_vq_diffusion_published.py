"""VQ-Diffusion as published: diffusers' weights give diffusers' logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import Transformer2DModel

from sta.errors import WeightsError
from sta.models.decoders.vq_diffusion_published import ACTIVATIONS, PublishedDecoder
from sta.models.loading import load_network
from tests.conftest import scatter

SIDE, V, K, C, T = 4, 7, 3, 6, 10
SIZES = {
    "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "cross_attention_dim": C,
    "num_vector_embeds": V + 1, "sample_size": SIDE, "num_embeds_ada_norm": T, "attention_bias": True,
}  # fmt: skip


@pytest.fixture(params=sorted(ACTIVATIONS))
def theirs(request: pytest.FixtureRequest) -> Transformer2DModel:
    torch.manual_seed(0)
    made = Transformer2DModel(**SIZES, activation_fn=request.param, norm_type="ada_norm")
    return scatter(made, by=0.2).eval()


def ours(theirs: Transformer2DModel, **others: int) -> PublishedDecoder:
    made = PublishedDecoder(**SIZES, activation_fn=theirs.config.activation_fn, **others)
    made.load_state_dict(theirs.state_dict(), strict=not others)
    return made.eval()


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(V + 1, (batch, SIDE * SIDE), generator=generator)
    return codes, torch.randn(batch, K, C, generator=generator)


@pytest.mark.parametrize("t", [1, 4, T])
def test_the_same_logits_as_diffusers(theirs: Transformer2DModel, t: int) -> None:
    codes, tokens = inputs()
    with torch.no_grad():
        expected = theirs(codes, encoder_hidden_states=tokens, timestep=torch.tensor(t - 1)).sample  # [B, V, N]
        belief = ours(theirs)(codes, torch.full((2,), t / T), tokens).log_softmax(-1)
    torch.testing.assert_close(belief.transpose(1, 2), expected, atol=1e-4, rtol=0)


def test_what_diffusers_saved_is_loaded(theirs: Transformer2DModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    codes, tokens = inputs()
    with torch.no_grad():
        loaded, copied = (
            m(codes, torch.ones(2), tokens) for m in (load_network(PublishedDecoder, tmp_path), ours(theirs))
        )
    torch.testing.assert_close(loaded, copied)


def test_another_network_is_refused(tmp_path: Path) -> None:
    Transformer2DModel(2, 8, in_channels=4, num_layers=1, cross_attention_dim=C, norm_num_groups=2).save_pretrained(
        tmp_path
    )
    with pytest.raises(WeightsError, match="PublishedDecoder"):
        load_network(PublishedDecoder, tmp_path)


def test_times_of_a_batch_may_differ(theirs: Transformer2DModel) -> None:
    made, (codes, tokens) = ours(theirs), inputs()
    times = torch.tensor([0.2, 0.9])
    with torch.no_grad():
        together = made(codes, times, tokens)
        for row in range(2):
            torch.testing.assert_close(made(codes[[row]], times[[row]], tokens[[row]])[0], together[row])
    assert not made(codes, times.flip(0), tokens).allclose(together, atol=1e-3)


def test_the_null_condition_is_learnt(theirs: Transformer2DModel) -> None:
    made, (codes, tokens) = ours(theirs, null_length=K), inputs()
    drop = torch.tensor([True, False])
    mixed = made(codes, torch.ones(2), tokens, None, drop)
    mixed.sum().backward()
    assert made.null_tokens.grad is not None
    torch.testing.assert_close(mixed[1], made(codes, torch.ones(2), tokens)[1])
    torch.testing.assert_close(mixed[0], made(codes, torch.ones(2), tokens + 1, None, drop)[0])


def test_it_starts_from_all_mask(theirs: Transformer2DModel) -> None:
    assert ours(theirs).start(2, None, torch.device("cpu")).equal(torch.full((2, SIDE * SIDE), V))
