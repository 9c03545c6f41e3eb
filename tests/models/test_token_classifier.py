"""The readout: slots of any size, at places that do not depend on what is said, and only those asked for count."""

from __future__ import annotations

import torch

from sta.distributed.sharding import IGNORE_INDEX
from sta.models.token_classifier import TokenClassifier


def readout() -> TokenClassifier:
    torch.manual_seed(0)
    return TokenClassifier({"head": 3, "size": 2}, tokens=4, width=5)


def test_values_that_a_slot_does_not_have_are_never_read() -> None:
    logits = readout()(torch.randn(6, 4, 5))
    assert logits.shape == (6, 2, 3)
    assert logits[:, 0].isfinite().all()
    assert (logits[:, 1, 2] == -torch.inf).all()
    torch.testing.assert_close(logits.softmax(-1).sum(-1), torch.ones(6, 2))


def test_the_loss_is_the_mean_over_the_slots_asked_for() -> None:
    made, tokens = readout(), torch.randn(2, 4, 5)
    values = torch.tensor([[2, IGNORE_INDEX], [0, 1]])
    chances = made(tokens).log_softmax(-1)
    wanted = -(chances[0, 0, 2] + chances[1, 0, 0] + chances[1, 1, 1]) / 3
    torch.testing.assert_close(made.loss(tokens, values), wanted)
    assert float(made.loss(tokens, torch.full((2, 2), IGNORE_INDEX))) == 0


def test_it_is_linear_and_its_places_are_fixed() -> None:
    made, a, b = readout(), torch.randn(1, 4, 5), torch.randn(1, 4, 5)
    sizes = (0, slice(None)), (1, slice(0, 2))
    for slot, values in sizes:
        one, two, both = (made(x)[0, slot, values] - made.bias[slot, values] for x in (a, b, a + b))
        torch.testing.assert_close(one + two, both)


def test_tokens_learn_to_say_several_things_at_once() -> None:
    """Free tokens under the loss: each slot is read right, and the gradient lies where the slot's places are."""
    made, tokens = readout(), torch.zeros(6, 4, 5, requires_grad=True)
    values = torch.tensor([[head, size] for head in range(3) for size in range(2)])
    optimizer = torch.optim.Adam([tokens, *made.parameters()], 0.05)
    for _ in range(100):
        loss = made.loss(tokens, values)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert made(tokens).argmax(-1).equal(values)
    for slot in range(2):
        tokens.grad = None
        only = torch.full_like(values, IGNORE_INDEX)
        only[:, slot] = values[:, slot]
        made.loss(tokens, only).backward()
        assert tokens.grad is not None
        by_token = tokens.grad.abs().sum((0, 2))  # type: ignore[unreachable, unused-ignore]
        assert int(by_token.argmax()) == int(made.places[slot].argmax())
