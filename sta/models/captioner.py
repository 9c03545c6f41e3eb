"""The captioner: words read back from speech tokens, so that training keeps which colour belongs to which part.

A contrastive loss on one vector is content with a bag of words; predicting the caption word by word from the
tokens is not (CoCa, Yu et al. 2022). It serves training only and is not released.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from sta.distributed import sharding
from sta.models.layers import sinusoid_table

BLANK = 0  # starts and ends a caption


class Captioner(nn.Module):
    """Next-piece prediction of a caption that reads K tokens [B, K, C].

    Args:
        vocabulary: P, pieces of every language and the blank, which starts and ends a caption.
        token_width: C.
    """

    def __init__(self, vocabulary: int, token_width: int, width: int = 128, heads: int = 4, layers: int = 1):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.token_proj = nn.Linear(token_width, width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor, pieces: Tensor) -> Tensor:
        """Compute the mean cross-entropy in nats per piece: scalar.

        Args:
            tokens: [B, K, C].
            pieces: int64 [B, L], of `pad_captions`.
        """
        said = F.pad(pieces[:, :-1].clamp_min(BLANK), (1, 0), value=BLANK)
        x = self.embed(said) + sinusoid_table(said.shape[1], self.embed.embedding_dim, said.device)
        memory = self.token_proj(tokens.to(x.dtype))
        causal = nn.Transformer.generate_square_subsequent_mask(said.shape[1], device=said.device)
        for layer in self.layers:
            x = layer(x, memory, tgt_mask=causal, tgt_is_causal=True)
        return sharding.cross_entropy(self.out(self.norm(x)).float().flatten(0, 1), pieces.flatten())


def pad_captions(captions: Sequence[Sequence[int]], known: np.ndarray) -> np.ndarray:
    """Return captions as rows of pieces and the blank that ends them: int64 [B, L], `IGNORE_INDEX` beyond.

    Args:
        captions: piece ids. known: bool [B], False where there is no caption, whose whole row is `IGNORE_INDEX`.
    """
    padded = np.full((len(captions), 1 + max(map(len, captions), default=0)), sharding.IGNORE_INDEX, np.int64)
    for row in np.flatnonzero(known).tolist():
        padded[row, : len(captions[row]) + 1] = [*captions[row], BLANK]
    return padded
