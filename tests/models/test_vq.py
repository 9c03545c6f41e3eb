"""The VQ tokenizer: shapes, inverse pairs, and a codebook that no entry leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sta.models.vq import Codebook, VQTokenizer, to_pixels, to_unit_range
from tests.conftest import scatter


def tokenizer(factor: int = 4, size: int = 16) -> VQTokenizer:
    torch.manual_seed(0)
    made = VQTokenizer(size=size, codes=12, code_width=4, width=16, factor=factor)
    return scatter(made, by=0.05).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shapes(factor: int, generator: torch.Generator) -> None:
    made, pictures = tokenizer(factor), torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1
    side = 16 // factor
    assert made.side == side
    drawn, quantized = made(pictures)
    assert drawn.shape == pictures.shape
    assert quantized.latents.shape == (3, 4, side, side)
    assert quantized.codes.shape == (3, side * side)
    assert quantized.commit.shape == ()
    codes = made.encode(pictures)
    assert codes.equal(quantized.codes)
    assert made.decode(codes).shape == pictures.shape


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_codes_to_pixels_and_back(factor: int, generator: torch.Generator) -> None:
    made, pictures = tokenizer(factor), torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    drawn, quantized = made(pictures)
    assert len(quantized.codes.unique()) > 1
    torch.testing.assert_close(made.decode(quantized.codes), drawn.clamp(-1, 1), atol=1e-5, rtol=1e-4)


def test_codes_stand_in_rows_of_the_picture() -> None:
    """Code n lies at row n // side and column n % side."""
    made: Any = tokenizer()
    seen: list[torch.Tensor] = []
    made.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made.decode((torch.arange(16) % 12)[None])
    for n in range(16):
        torch.testing.assert_close(seen[0][0, :, n // 4, n % 4], made.codebook.vectors[n % 12])


def test_pixels_and_unit_range_are_inverse() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    pictures = to_unit_range(pixels)
    assert pictures.shape == (1, 3, 16, 16)
    assert (pictures.min(), pictures.max()) == (-1, 1)
    assert to_pixels(pictures).equal(pixels)
    assert to_pixels(torch.full((1, 3, 1, 1), 9.0)).flatten().tolist() == [255] * 3
    wide = torch.zeros(1, 2, 5, 3, dtype=torch.uint8)
    assert to_unit_range(wide).shape == (1, 3, 2, 5)


def test_gradient_goes_straight_through(generator: torch.Generator) -> None:
    book: Any = Codebook(12, 4).eval()
    latents = torch.randn(2, 4, 3, 3, generator=generator, requires_grad=True)
    weights = torch.randn(2, 4, 3, 3, generator=generator)
    (book(latents).latents * weights).sum().backward()
    through = latents.grad
    free = latents.detach().clone().requires_grad_()
    (F.normalize(free, dim=1) * weights).sum().backward()
    torch.testing.assert_close(through, free.grad)


def test_latents_are_the_nearest_vectors_of_the_sphere(generator: torch.Generator) -> None:
    book: Any = Codebook(12, 4).eval()
    latents = 7 * torch.randn(2, 4, 3, 3, generator=generator)
    out = book(latents)
    flat = F.normalize(latents.permute(0, 2, 3, 1).reshape(-1, 4), dim=-1)
    nearest = torch.cdist(flat, book.vectors).argmin(1)
    assert out.codes.flatten().equal(nearest)
    torch.testing.assert_close(out.latents.permute(0, 2, 3, 1).reshape(-1, 4), book.vectors[nearest])
    torch.testing.assert_close(out.commit, F.mse_loss(flat, book.vectors[nearest]))
    torch.testing.assert_close(book.vectors.norm(dim=1), torch.ones(12))


def test_only_training_moves_the_codebook(generator: torch.Generator) -> None:
    book: Any = Codebook(12, 4)
    latents = torch.randn(2, 4, 3, 3, generator=generator)
    before = book.vectors.clone()
    book.eval()(latents)
    assert book.vectors.equal(before)
    book.train()(latents)
    assert not book.vectors.equal(before)
    torch.testing.assert_close(book.vectors.norm(dim=1), torch.ones(12))


def test_the_codebook_follows_its_codes() -> None:
    torch.manual_seed(0)
    book: Any = Codebook(2, 3, dead_below=0.0)
    book.vectors.copy_(F.normalize(torch.tensor([[1.0, 0.3, 0], [0, 0.3, 1.0]]), dim=1))
    book.sums.copy_(book.vectors)
    latents = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).T.reshape(1, 3, 1, 2)
    for _ in range(300):
        out = book(latents)
    torch.testing.assert_close(book.vectors, torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), atol=1e-2, rtol=0)
    assert out.codes.tolist() == [[0, 1]]
    assert float(out.commit) < 1e-4


def test_dead_codes_are_put_where_pictures_are() -> None:
    torch.manual_seed(0)
    centres = F.normalize(torch.tensor([[1.0, 0.1, 0], [1.0, -0.1, 0], [1.0, 0, 0.1]]), dim=1)
    book: Any = Codebook(6, 3)
    book.vectors.copy_(-F.normalize(centres.repeat(2, 1) + 0.01 * torch.randn(6, 3), dim=1))
    book.vectors[0] = centres[0]
    book.sums.copy_(book.vectors)
    for _ in range(400):
        latents = centres[torch.randint(3, (48,))] + 0.01 * torch.randn(48, 3)
        book(latents.T.reshape(1, 3, 6, 8))
    assert (book.vectors @ centres.T).amax(1).min() > 0.99, "an entry stays where nothing is"
    last = book.eval()(centres.T.reshape(1, 3, 1, 3))
    assert len(last.codes.unique()) == 3
    assert float(last.commit) < 1e-3
    assert book.counts.min() > 0.02 * book.counts.mean() * 0.5


def test_saved_and_loaded_it_is_the_same(tmp_path: Path, generator: torch.Generator) -> None:
    made, pictures = tokenizer(), torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    made.train()(pictures)  # the codebook has moved
    made.eval().save_pretrained(tmp_path)
    again = VQTokenizer.from_pretrained(tmp_path).eval()
    assert again.encode(pictures).equal(made.encode(pictures))
    assert again.decode(made.encode(pictures)).equal(made.decode(made.encode(pictures)))
    assert again.codebook.counts.equal(made.codebook.counts)


def test_a_share_of_the_pictures_skips_the_codebook(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    made = tokenizer()
    pictures = torch.rand(40, 3, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        by_code, by_latent = made.decode(made.encode(pictures)), made.decode_latents(made.latents(pictures))
        mixed = made(pictures, 0.5)[0].clamp(-1, 1)
    to_code, to_latent = ((mixed - x).abs().flatten(1).amax(1) for x in (by_code, by_latent))
    quantised = to_code < 1e-5
    assert 10 < quantised.sum() < 30
    assert (to_latent[~quantised] < to_code[~quantised]).all()
    assert (to_latent[~quantised] > 1e-5).all(), "latents that skip the codebook carry some noise"
    with torch.no_grad():
        torch.testing.assert_close(made(pictures)[0].clamp(-1, 1), by_code)


def test_latents_have_unit_variance(generator: torch.Generator) -> None:
    made = tokenizer()
    latents = made.latents(torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1)
    assert latents.shape == (4, 4, 4, 4)
    torch.testing.assert_close(latents.square().mean(1), torch.ones(4, 4, 4))
