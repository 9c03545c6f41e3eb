"""The captioner: words read back from speech tokens, so that training keeps which colour belongs to which part.

A contrastive loss on one vector is content with a bag of words; predicting the caption word by word from the
tokens is not (CoCa, Yu et al. 2022). It serves training only and is not released.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.distributed import sharding
from sta.models.layers import sinusoids


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

    def forward(self, tokens: Tensor, pieces: Tensor, counts: Tensor) -> Tensor:
        """Mean cross-entropy in nats per piece: scalar.

        Args:
            tokens: [B, K, C].
            pieces: the captions' piece ids, one caption after the other.
            counts: [B], pieces of each caption.
        """
        captions = nn.utils.rnn.pad_sequence(list(pieces.split(counts.tolist())), batch_first=True)  # [B, L]
        said, wanted = F.pad(captions, (1, 0)), F.pad(captions, (0, 1))
        x = self.embed(said) + sinusoids(torch.arange(said.shape[1], device=said.device), self.embed.embedding_dim)
        memory = self.token_proj(tokens.to(x.dtype))
        causal = nn.Transformer.generate_square_subsequent_mask(said.shape[1], device=said.device)
        for layer in self.layers:
            x = layer(x, memory, tgt_mask=causal, tgt_is_causal=True)
        logits = self.out(self.norm(x)).float()
        known = torch.arange(said.shape[1], device=said.device) <= counts[:, None]
        return sharding.global_mean(F.cross_entropy(logits[known], wanted[known], reduction="sum"), known.sum())
