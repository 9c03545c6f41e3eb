"""A linear probe of what the speech tokens hold of the attributes, whatever the decoder makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def probe(
    train: Tensor, references: Sequence[Mapping[str, str]], test: Tensor, slots: Mapping[str, Sequence[str]],
    ridge: float = 0.1,
) -> list[dict[str, str]]:  # fmt: skip
    """Fit one linear classifier per slot on training tokens (ridge regression on one-hot values) and apply it.

    Args:
        train: [n, K, C]; test: [m, K, C].
        references: slot -> value of each training item; a slot that an item lacks is not fitted on it.
        slots: slot -> its values.
        ridge: weight decay as a share of the number of items.

    Returns:
        slot -> value for each test item, every slot answered.
    """
    mean, deviation = train.flatten(1).mean(0), train.flatten(1).std(0) + 1e-4
    x, y = (F.pad((part.flatten(1) - mean) / deviation, (0, 1), value=1.0).double() for part in (train, test))
    predictions: list[dict[str, str]] = [{} for _ in range(len(test))]
    for slot, values in slots.items():
        labels = torch.tensor([values.index(s[slot]) if slot in s else -1 for s in references])
        known = x[labels >= 0]
        wanted = F.one_hot(labels[labels >= 0], len(values)).double()
        decay = ridge * max(1, len(known)) * torch.eye(x.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(known.T @ known + decay, known.T @ wanted)  # [K * C + 1, values]
        for item, best in enumerate((y @ weights).argmax(-1).tolist()):
            predictions[item][slot] = values[best]
    return predictions
