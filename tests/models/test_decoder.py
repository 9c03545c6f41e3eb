"""The decoder: shapes, the fold of codes into positions, and what its belief depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sta.models.decoder import CodeDecoder
from tests.conftest import scatter

SIDE, V, K, C, E = 4, 5, 3, 4, 6


def decoder(group: int = 2) -> CodeDecoder:
    torch.manual_seed(0)
    made = CodeDecoder(SIDE, V, K, C, E, width=16, layers=2, heads=2, group=group)
    return scatter(made, by=0.2).eval()  # type: ignore[return-value]


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(V + 1, (batch, SIDE * SIDE), generator=generator)
    tokens = torch.randn(batch, K, C, generator=generator)
    return codes, torch.linspace(0.2, 1, batch), tokens, torch.randn(batch, E, generator=generator)


@pytest.mark.parametrize("group", [1, 2])
def test_shapes(group: int) -> None:
    made = decoder(group)
    assert made.codes == SIDE * SIDE
    assert made(*inputs()).shape == (2, SIDE * SIDE, V)
    assert made.place.shape == ((SIDE // group) ** 2, 16)


def test_side_must_hold_whole_groups() -> None:
    with pytest.raises(ValueError, match="side 5 is not a multiple of group 2"):
        CodeDecoder(5, V, K, C, E, width=16, heads=2)


@pytest.mark.parametrize("group", [1, 2])
def test_fold_and_unfold_are_inverse(group: int, generator: torch.Generator) -> None:
    made, x = decoder(group), torch.randn(2, SIDE * SIDE, 3, generator=generator)
    folded = made._fold(x)
    assert folded.shape == (2, (SIDE // group) ** 2, group * group * 3)
    assert made._unfold(folded).equal(x)


def test_a_position_holds_a_square_of_the_picture() -> None:
    numbers = torch.arange(SIDE * SIDE)[None, :, None]
    assert decoder()._fold(numbers)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


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
