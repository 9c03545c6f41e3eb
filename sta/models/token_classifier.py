"""A linear classifier of what the speech tokens say, each thing at a place that is the same for all.

S2IGAN's distinctive loss (Wang et al. 2020) classifies one embedding by its class. Here every attribute
has a classifier of its own, over tokens whose places it has learnt. A reader that searches the tokens anew for each
utterance is content with anything it can find; this one makes the tokens say a thing plainly and always in the same
place, where the decoder's cross-attention finds it too. It serves training only and is not released.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sta.distributed import sharding

SHARPNESS = 3.0  # deviation of the first scores of the places: each slot starts with one or two tokens of its own


class TokenClassifier(nn.Module):
    """Linear classification of several slots from K tokens [B, K, C].

    Args:
        slots: slot -> number of its values.
        tokens: K. width: C.
    """

    def __init__(self, slots: Mapping[str, int], tokens: int, width: int):
        super().__init__()
        sizes, most = torch.tensor(list(slots.values())), max(slots.values())
        self.places = nn.Parameter(SHARPNESS * torch.randn(len(slots), tokens))
        self.weight = nn.Parameter(torch.randn(len(slots), width, most) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(len(slots), most))
        self.register_buffer("exists", torch.arange(most) < sizes[:, None], persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, K, C] -> logits [B, slots, values]; a slot of fewer values has -inf in the places beyond."""
        return self._by_slot(tokens).transpose(0, 1)

    def _by_slot(self, tokens: Tensor) -> Tensor:
        """Map [B, K, C] -> logits [slots, B, values]."""
        with torch.autocast(tokens.device.type, enabled=False):
            said = torch.tensordot(self.places.softmax(-1), tokens.float(), ([1], [1]))  # [slots, B, C]
            bias = self.bias.masked_fill(~self.get_buffer("exists"), -torch.inf)
            return torch.baddbmm(bias[:, None], said, self.weight)

    def loss(self, tokens: Tensor, values: Tensor) -> Tensor:
        """Compute the mean cross-entropy in nats per slot that is known: scalar, 0 where none is.

        Args:
            tokens: [B, K, C].
            values: [B, slots], numbers of values; `sharding.IGNORE_INDEX` where a slot is not asked for.
        """
        return sharding.cross_entropy(self._by_slot(tokens).flatten(0, 1), values.T.flatten())
