"""The decoder: shapes, the patchify of codes into positions, and what its belief depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sta.models.decoders.latent_diffusion import LatentDecoder
from sta.models.decoders.vq_diffusion import CodeDecoder
from sta.models.patchify import patchify, unpatchify
from sta.models.vq import VQTokenizer
from tests.conftest import scatter

SIDE, V, K, C, E = 4, 5, 3, 4, 6


def decoder(patch_size: int = 2) -> CodeDecoder:
    torch.manual_seed(0)
    made = CodeDecoder(SIDE, V, K, C, E, width=16, layers=2, heads=2, patch_size=patch_size)
    return scatter(made, by=0.2).eval()  # type: ignore[return-value]


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(V + 1, (batch, SIDE * SIDE), generator=generator)
    tokens = torch.randn(batch, K, C, generator=generator)
    return codes, torch.linspace(0.2, 1, batch), tokens, torch.randn(batch, E, generator=generator)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_shapes(patch_size: int) -> None:
    made = decoder(patch_size)
    assert made(*inputs()).shape == (2, SIDE * SIDE, V)
    assert made.trunk.position_embedding.shape == ((SIDE // patch_size) ** 2, 16)


def test_side_must_hold_whole_groups() -> None:
    with pytest.raises(ValueError, match="side 5 is not a multiple of patch_size 2"):
        CodeDecoder(5, V, K, C, E, width=16, heads=2)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_fold_and_unfold_are_inverse(patch_size: int, generator: torch.Generator) -> None:
    x = torch.randn(2, SIDE * SIDE, 3, generator=generator)
    folded = patchify(x, SIDE, patch_size)
    assert folded.shape == (2, (SIDE // patch_size) ** 2, patch_size * patch_size * 3)
    assert unpatchify(folded, SIDE, patch_size).equal(x)


def test_a_position_holds_a_square_of_the_picture() -> None:
    numbers = torch.arange(SIDE * SIDE)[None, :, None]
    assert patchify(numbers, SIDE, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_the_null_condition_ignores_tokens_and_embedding() -> None:
    made, (codes, t, tokens, embedding) = decoder(), inputs()
    hidden = torch.tensor([True, True])
    one = made(codes, t, tokens, embedding, hidden)
    assert one.equal(made(codes, t, tokens + 3, -embedding, hidden))
    mixed = made(codes, t, tokens, embedding, torch.tensor([True, False]))
    torch.testing.assert_close(mixed[0], one[0])
    torch.testing.assert_close(mixed[1], made(codes, t, tokens, embedding)[1])
    assert not mixed[1].allclose(one[1], atol=1e-3)


@pytest.mark.parametrize("changed", ["codes", "time", "tokens", "embedding"])
def test_the_belief_depends_on_everything_it_is_given(changed: str) -> None:
    made, (codes, t, tokens, embedding) = decoder(), inputs()
    other = {
        "codes": ((codes + 1) % (V + 1), t, tokens, embedding), "time": (codes, t / 2, tokens, embedding),
        "tokens": (codes, t, tokens.flip(1), embedding), "embedding": (codes, t, tokens, embedding.flip(1)),
    }[changed]  # fmt: skip
    assert not made(codes, t, tokens, embedding).allclose(made(*other), atol=1e-3)


def test_items_of_a_batch_do_not_see_one_another() -> None:
    made, batch = decoder(), inputs(3)
    together = made(*batch)
    for row in range(3):
        torch.testing.assert_close(made(*(x[row : row + 1] for x in batch))[0], together[row], atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_condition_and_every_parameter() -> None:
    made, (codes, t, tokens, embedding) = decoder().train(), inputs()
    tokens.requires_grad_()
    embedding.requires_grad_()
    made(codes, t, tokens, embedding, torch.tensor([True, False])).pow(2).sum().backward()
    for given in (tokens, embedding):
        assert given.grad is not None
        assert (given.grad[0] == 0).all()
        assert given.grad[1].abs().max() > 0
    unreached = [n for n, p in made.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not unreached


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    made = decoder()
    made.save_pretrained(tmp_path)
    assert CodeDecoder.from_pretrained(tmp_path).eval()(*inputs()).equal(made(*inputs()))


# ---- latent diffusion ---------------------------------------------------------------------------------------

D = 3


def latent_decoder(patch_size: int = 2) -> LatentDecoder:
    torch.manual_seed(0)
    made = LatentDecoder(SIDE, D, K, C, E, width=16, layers=2, heads=2, patch_size=patch_size)
    return scatter(made, by=0.2).eval()  # type: ignore[return-value]


def noisy(batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, t, tokens, embedding = inputs(batch)
    return torch.randn(batch, D, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), t, tokens, embedding


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_velocity_for_every_latent(patch_size: int) -> None:
    made = latent_decoder(patch_size)
    assert made(*noisy()).shape == (2, D, SIDE, SIDE)
    assert made.start(5, None, torch.device("cpu")).shape == (5, D, SIDE, SIDE)


def test_an_untrained_velocity_is_nothing() -> None:
    assert not LatentDecoder(SIDE, D, K, C, E, width=16, layers=1, heads=2)(*noisy()).any()


@pytest.mark.parametrize("changed", ["latents", "time", "tokens", "embedding"])
def test_the_velocity_depends_on_everything_it_is_given(changed: str) -> None:
    made, (x, t, tokens, embedding) = latent_decoder(), noisy()
    other = {
        "latents": (x.flip(2), t, tokens, embedding), "time": (x, t / 2, tokens, embedding),
        "tokens": (x, t, tokens.flip(1), embedding), "embedding": (x, t, tokens, embedding.flip(1)),
    }[changed]  # fmt: skip
    assert not made(x, t, tokens, embedding).allclose(made(*other), atol=1e-3)


def test_latent_gradient_reaches_the_condition_and_every_parameter() -> None:
    made, (x, t, tokens, embedding) = latent_decoder().train(), noisy()
    tokens.requires_grad_()
    made(x, t, tokens, embedding, torch.tensor([True, False])).pow(2).sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad[0] == 0).all()
    assert tokens.grad[1].abs().max() > 0
    unreached = [n for n, p in made.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not unreached


def test_guidance_of_velocities_is_linear() -> None:
    with_words, without = torch.tensor([3.0]), torch.tensor([1.0])
    for scale, guided in ((1.0, 3.0), (2.0, 5.0), (0.0, 1.0)):
        assert LatentDecoder.guide(with_words, without, scale).item() == guided


def test_what_a_decoder_draws_is_what_its_tokenizer_sees(generator: torch.Generator) -> None:
    tokenizer = VQTokenizer(16, codes=V, code_width=D, width=16, factor=4).eval()
    pictures = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        codes, latents = tokenizer.encode(pictures), tokenizer.latents(pictures)
        assert CodeDecoder.picture(codes, tokenizer).equal(CodeDecoder.reconstruct(pictures, tokenizer))
        assert LatentDecoder.picture(latents, tokenizer).equal(LatentDecoder.reconstruct(pictures, tokenizer))
        torch.testing.assert_close(
            LatentDecoder.picture(3 * latents, tokenizer), LatentDecoder.picture(latents, tokenizer)
        )
