"""A linear probe: what the speech tokens still hold of the attributes, whatever the decoder makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def probe(
    train: Tensor,
    train_said: Sequence[Mapping[str, str]],
    test: Tensor,
    slots: Mapping[str, Sequence[str]],
    ridge: float = 0.1,
) -> list[dict[str, str]]:
    """Fit one linear classifier per slot on training tokens (ridge regression on one-hot values) and read the test's.

    Args:
        train: [n, K, C]; test: [m, K, C].
        train_said: slot -> value of each training item; a slot an item does not say is not fitted on it.
        slots: slot -> its values.
        ridge: weight decay as a share of the number of items.

    Returns:
        slot -> value for each test item, every slot answered.
    """
    mean, deviation = train.flatten(1).mean(0), train.flatten(1).std(0) + 1e-4
    x, y = (F.pad((part.flatten(1) - mean) / deviation, (0, 1), value=1.0).double() for part in (train, test))
    readings: list[dict[str, str]] = [{} for _ in range(len(test))]
    for slot, values in slots.items():
        labels = torch.tensor([values.index(s[slot]) if slot in s else -1 for s in train_said])
        known = x[labels >= 0]
        wanted = F.one_hot(labels[labels >= 0], len(values)).double()
        decay = ridge * max(1, len(known)) * torch.eye(x.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(known.T @ known + decay, known.T @ wanted)  # [K * C + 1, values]
        for item, best in enumerate((y @ weights).argmax(-1).tolist()):
            readings[item][slot] = values[best]
    return readings
