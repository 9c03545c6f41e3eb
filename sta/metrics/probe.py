"""A linear probe: what the speech tokens still hold of the attributes, whatever the decoder makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def probe(
    train: Tensor,
    train_said: Sequence[Mapping[str, str]],
    test: Tensor,
    slots: Mapping[str, Sequence[str]],
    steps: int = 300,
) -> list[dict[str, str]]:
    """Fit one linear classifier per slot on training tokens and read the test tokens with it.

    Args:
        train: [n, K, C]; test: [m, K, C].
        train_said: slot -> value of each training item; a slot an item does not say is not fitted on it.
        slots: slot -> its values.

    Returns:
        slot -> value for each test item, every slot answered.
    """
    mean, deviation = train.flatten(1).mean(0), train.flatten(1).std(0) + 1e-4
    x, y = ((part.flatten(1) - mean) / deviation for part in (train, test))
    readings: list[dict[str, str]] = [{} for _ in range(len(test))]
    for slot, values in slots.items():
        labels = torch.tensor([values.index(s[slot]) if slot in s else -1 for s in train_said])
        classifier = _fit(x[labels >= 0], labels[labels >= 0], len(values), steps)
        for item, best in enumerate((y @ classifier[:-1] + classifier[-1]).argmax(-1).tolist()):
            readings[item][slot] = values[best]
    return readings


def _fit(x: Tensor, labels: Tensor, classes: int, steps: int, decay: float = 0.003) -> Tensor:
    """Multinomial logistic regression with weight decay: [features + 1, classes], the last row the bias."""
    weights = torch.zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.01)
    with torch.enable_grad():
        for step in range(steps if len(x) else 0):
            batch = torch.from_numpy(np.random.default_rng(step).choice(len(x), min(512, len(x)), replace=False))
            loss = F.cross_entropy(x[batch] @ weights[:-1] + weights[-1], labels[batch]) + decay * weights.pow(2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weights.detach()
