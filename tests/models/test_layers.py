"""Transformer parts against torch's own."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sta.distributed import sharding
from sta.distributed.ahead import ahead_everywhere, runs_ahead
from sta.models.layers import (
    Attention,
    TransformerLayer,
    drop,
    feed_forward,
    length_mask,
    masked_mean,
    sinusoids,
)
from tests.conftest import scatter


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_is_that_of_torch(masked: bool, fused: bool, generator: torch.Generator) -> None:
    """On the CPU, and as on a GPU."""
    assert runs_ahead(torch.device("cuda"))
    attention = Attention(8, 2)
    query = torch.randn(3, 4, 8, generator=generator)
    memory = torch.randn(3, 5, 8, generator=generator)
    mask = length_mask(torch.tensor([5, 1, 3]), 5) if masked else None
    keys, values = attention.to_memory(memory).chunk(2, -1)
    heads = [x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (attention.to_query(query), keys, values)]
    mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], None if mask is None else mask[:, None, None])
    wanted = attention.out(mixed.transpose(1, 2).flatten(2))
    with ahead_everywhere() if fused else nullcontext():
        assert runs_ahead(torch.device("cpu")) == fused
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
