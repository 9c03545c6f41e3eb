"""Transformer parts against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sta.distributed import sharding
from sta.models import layers
from sta.models.layers import (
    Attention,
    TransformerLayer,
    drop,
    feed_forward,
    length_mask,
    masked_mean,
    similarity_distillation,
    sinusoids,
)
from tests.conftest import scatter


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_is_that_of_torch(
    masked: bool, fused: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, and as on a GPU."""
    assert not layers._fuses_attention(torch.device("cpu"))
    assert layers._fuses_attention(torch.device("cuda"))
    monkeypatch.setattr(layers, "_fuses_attention", lambda device: fused)
    attention = Attention(8, 2)
    query = torch.randn(3, 4, 8, generator=generator)
    memory = torch.randn(3, 5, 8, generator=generator)
    mask = length_mask(torch.tensor([5, 1, 3]), 5) if masked else None
    keys, values = attention.to_memory(memory).chunk(2, -1)
    heads = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (attention.to_query(query), keys, values)]
    mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], None if mask is None else mask[:, None, None])
    wanted = attention.out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(query, memory, mask), wanted, atol=1e-5, rtol=1e-5)


def test_attention_needs_whole_heads() -> None:
    with pytest.raises(ValueError, match="width 6 is not a multiple of heads 4"):
        Attention(6, 4)


def test_masked_frames_change_nothing(generator: torch.Generator) -> None:
    layer = scatter(TransformerLayer(8, 2)).eval()
    x = torch.randn(1, 6, 8, generator=generator)
    other = x.clone()
    other[:, 4:] = 100
    mask = length_mask(torch.tensor([4]), 6)
    torch.testing.assert_close(layer(x, mask)[:, :4], layer(other, mask)[:, :4])
    torch.testing.assert_close(layer(x[:, :4])[:, :4], layer(x, mask)[:, :4])
    assert not layer(x)[:, :4].allclose(layer(other)[:, :4])


def test_masks_and_means(generator: torch.Generator) -> None:
    mask = length_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]
    x = torch.randn(3, 3, 2, generator=generator)
    mean = masked_mean(x, mask)
    assert mean[0].tolist() == [0, 0]
    torch.testing.assert_close(mean[1], x[1, :2].mean(0))
    torch.testing.assert_close(mean[2], x[2].mean(0))


def test_sinusoids() -> None:
    embedded = sinusoids(torch.tensor([0.0, 1.0, 50.0]), 8)
    assert embedded.shape == (3, 8)
    assert embedded[0].tolist() == [0] * 4 + [1] * 4
    torch.testing.assert_close(embedded[1, 0], torch.tensor(1.0).sin())
    torch.testing.assert_close(embedded[2, 3], torch.tensor(50 / 10_000**0.75).sin())
    torch.testing.assert_close(embedded.pow(2).sum(1), torch.full((3,), 4.0))


def test_dropout_only_where_asked() -> None:
    assert isinstance(drop(0.0), nn.Identity)
    assert isinstance(drop(0.1), sharding.Dropout)
    assert any(isinstance(m, sharding.Dropout) for m in feed_forward(4, dropout=0.2))
    assert not any(isinstance(m, sharding.Dropout) for m in feed_forward(4))


# --- similarity distillation ------------------------------------------------------------------------------------


def test_with_one_hot_targets_it_is_cross_entropy(generator: torch.Generator) -> None:
    """Target and bank are orthogonal, so the target's own similarity stands alone; the batch's others do not count."""
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    target, bank = basis[:3], basis[3:]
    student = F.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    loss = similarity_distillation(student, target, bank, 0.03)
    logits = torch.cat([(student * target).sum(-1, keepdim=True), student @ bank.T], -1) / 0.03
    first = torch.zeros(3, dtype=torch.long)
    torch.testing.assert_close(loss, F.cross_entropy(logits, first, reduction="none"), atol=1e-4, rtol=1e-4)


def test_a_perfect_student_has_the_least_loss(generator: torch.Generator) -> None:
    target, bank, other = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (4, 16, 4))
    perfect = similarity_distillation(target, target, bank, 0.2)
    assert (perfect < similarity_distillation(other, target, bank, 0.2)).all()
    student = target.clone().requires_grad_()
    similarity_distillation(F.normalize(student, dim=-1), target, bank, 0.2).sum().backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-5


def test_two_half_batches_are_one_batch_given_the_bank(generator: torch.Generator) -> None:
    student, target, bank = (F.normalize(torch.randn(n, 8, generator=generator), dim=-1) for n in (6, 6, 16))
    whole = similarity_distillation(student, target, bank, 0.1)
    halves = [similarity_distillation(student[part], target[part], bank, 0.1) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(whole, torch.cat(halves))
