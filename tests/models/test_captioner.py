"""The captioner: it learns from tokens what words alone do not tell, and padding of a caption costs nothing."""

from __future__ import annotations

import torch

from sta.models.captioner import Captioner


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    captioner, tokens = Captioner(9, 4, width=16, heads=2), torch.randn(2, 3, 4)
    both = captioner(tokens, torch.tensor([3, 4, 5, 6, 7]), torch.tensor([4, 1]))
    first = captioner(tokens[:1], torch.tensor([3, 4, 5, 6]), torch.tensor([4]))
    second = captioner(tokens[1:], torch.tensor([7]), torch.tensor([1]))
    torch.testing.assert_close(both, (5 * first + 2 * second) / 7)  # each caption's pieces and its end


def test_it_does_not_see_the_piece_it_predicts() -> None:
    torch.manual_seed(0)
    captioner, tokens = Captioner(9, 4, width=16, heads=2), torch.randn(1, 3, 4)
    seen: list[torch.Tensor] = []
    captioner.out.register_forward_hook(lambda module, given, out: seen.append(out))
    for last in (3, 8):
        captioner(tokens, torch.tensor([1, 2, last]), torch.tensor([3]))
    torch.testing.assert_close(seen[0][0, :3], seen[1][0, :3])
    assert not seen[0][0, 3].allclose(seen[1][0, 3])


def test_words_are_learnt_from_the_tokens() -> None:
    """Two captions that differ in one word only can be told apart by their tokens alone."""
    torch.manual_seed(0)
    captioner, tokens = Captioner(9, 4, width=16, heads=2), torch.randn(2, 3, 4)
    optimizer = torch.optim.Adam(captioner.parameters(), 1e-2)
    pieces, counts = torch.tensor([1, 2, 3, 1, 4, 3]), torch.tensor([3, 3])
    for _ in range(60):
        loss = captioner(tokens, pieces, counts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert captioner(tokens, pieces, counts) < 0.05
        assert captioner(tokens.flip(0), pieces, counts) > 0.5
