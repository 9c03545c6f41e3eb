"""The captioner: it learns from tokens what words alone do not tell, and padding of a caption costs nothing."""

from __future__ import annotations

import numpy as np
import torch

from sta.distributed.sharding import IGNORE_INDEX
from sta.models.captioner import Captioner, pad_captions


def padded(*captions: list[int]) -> torch.Tensor:
    return torch.from_numpy(pad_captions(captions, np.ones(len(captions), bool)))


def test_captions_are_padded_behind_the_blank_that_ends_them() -> None:
    none = IGNORE_INDEX
    rows = pad_captions([[3, 4], [], [5], []], np.array([True, True, False, False]))
    assert rows.tolist() == [[3, 4, 0], [0, none, none], [none] * 3, [none] * 3]


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    captioner, tokens = Captioner(9, 4, width=16, heads=2), torch.randn(2, 3, 4)
    both = captioner(tokens, padded([3, 4, 5, 6], [7]))
    first, second = captioner(tokens[:1], padded([3, 4, 5, 6])), captioner(tokens[1:], padded([7]))
    torch.testing.assert_close(both, (5 * first + 2 * second) / 7)  # each caption's pieces and its end


def test_it_does_not_see_the_piece_it_predicts() -> None:
    torch.manual_seed(0)
    captioner, tokens = Captioner(9, 4, width=16, heads=2), torch.randn(1, 3, 4)
    seen: list[torch.Tensor] = []
    captioner.out.register_forward_hook(lambda module, given, out: seen.append(out))
    for last in (3, 8):
        captioner(tokens, padded([1, 2, last]))
    torch.testing.assert_close(seen[0][0, :3], seen[1][0, :3])
    assert not seen[0][0, 3].allclose(seen[1][0, 3])


def test_a_row_without_a_caption_counts_nothing() -> None:
    torch.manual_seed(0)
    captioner, tokens = Captioner(9, 4, width=16, heads=2), torch.randn(2, 3, 4)
    rows = torch.from_numpy(pad_captions([[3, 4], []], np.array([True, False])))
    torch.testing.assert_close(captioner(tokens, rows), captioner(tokens[:1], padded([3, 4])))
    assert float(captioner(tokens, torch.full_like(rows, IGNORE_INDEX))) == 0


def test_words_are_learnt_from_the_tokens() -> None:
    """Two captions that differ in one word only can be told apart by their tokens alone."""
    torch.manual_seed(0)
    captioner, tokens = Captioner(9, 4, width=16, heads=2), torch.randn(2, 3, 4)
    optimizer = torch.optim.Adam(captioner.parameters(), 1e-2)
    pieces = padded([1, 2, 3], [1, 4, 3])
    for _ in range(60):
        loss = captioner(tokens, pieces)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert captioner(tokens, pieces) < 0.05
        assert captioner(tokens.flip(0), pieces) > 0.5
