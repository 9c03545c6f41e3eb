"""The VQ-Diffusion decoder: a transformer over a picture's codes that reads the speech tokens.

Cross-attention to the tokens, adaptive norm from time and the global embedding (one table shared by all
layers, as in PixArt-alpha), learned null condition for guidance. Squares of `group` x `group` codes share a
position, so that the transformer works on group^2 times fewer positions.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from sta.models.layers import Attention, feed_forward, sinusoids


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.among = Attention(width, heads)
        self.reading = Attention(width, heads)
        self.forward_net = feed_forward(width, 4, dropout)
        self.table = nn.Parameter(torch.zeros(9, width))

    def forward(self, x: Tensor, tokens: Tensor, modulation: Tensor) -> Tensor:
        """x [B, P, D], tokens [B, K, D], modulation [B, 9, D]."""
        shift_a, scale_a, gate_a, shift_c, scale_c, gate_c, shift_f, scale_f, gate_f = (
            (modulation + self.table).to(x.dtype)[:, :, None].unbind(1)
        )  # [B, 1, D] each
        y = self.norms[0](x) * (1 + scale_a) + shift_a
        x = x + (1 + gate_a) * self.among(y, y)
        x = x + (1 + gate_c) * self.reading(self.norms[1](x) * (1 + scale_c) + shift_c, tokens)
        return x + (1 + gate_f) * self.forward_net(self.norms[2](x) * (1 + scale_f) + shift_f)


class CodeDecoder(ModelMixin, ConfigMixin):
    """Belief in a picture's codes x_0 given noisy codes x_t, time, speech tokens and global embedding.

    Args:
        side: codes along a side of the picture; N = side * side.
        codebook: V; the mask's id is V.
        group: side of the square of codes that shares a position.
        token_width: C. embedding_width: E. tokens: K.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        side: int,
        codebook: int,
        tokens: int,
        token_width: int,
        embedding_width: int,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        group: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        if side % group:
            raise ValueError(f"side {side} is not a multiple of group {group}")
        members, positions = group * group, (side // group) ** 2
        self.embed = nn.Embedding(codebook + 1, width // members)
        self.join = nn.Linear(width // members * members, width)
        self.place = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.read_tokens = nn.Linear(token_width, width)
        self.token_role = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.null_tokens = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.read_embedding = nn.Linear(embedding_width, width)
        self.null_embedding = nn.Parameter(torch.zeros(width))
        self.read_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        modulate = nn.Linear(width, 9 * width)
        self.modulate = nn.Sequential(nn.SiLU(), modulate)
        self.blocks = nn.ModuleList(DecoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, members * width // 2)
        self.classify = nn.Linear(width // 2, codebook)
        nn.init.zeros_(modulate.weight)
        nn.init.zeros_(modulate.bias)

    @property
    def codes(self) -> int:
        """N."""
        return int(self.config.side**2)

    def forward(
        self, codes: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor, drop: Tensor | None = None
    ) -> Tensor:
        """Logits of x_0.

        Args:
            codes: [B, N] in 0..V, x_t.
            t: [B], time as a share of T in [0, 1].
            tokens: [B, K, C]; embedding: [B, E].
            drop: [B] bool, True where the null condition stands in.

        Returns:
            [B, N, V].
        """
        memory = self.read_tokens(tokens) + self.token_role
        condition = self.read_embedding(embedding)
        if drop is not None:
            memory = torch.where(drop[:, None, None], self.null_tokens.to(memory.dtype), memory)
            condition = torch.where(drop[:, None], self.null_embedding.to(condition.dtype), condition)
        time = self.read_time(sinusoids(t * 1000, self.config.width).to(condition.dtype))
        modulation = self.modulate(time + condition).unflatten(-1, (9, -1))
        x = self.join(self._fold(self.embed(codes))) + self.place
        for layer in self.blocks:
            x = layer(x, memory, modulation)
        logits: Tensor = self.classify(self._unfold(self.out(self.norm(x))))
        return logits

    def _fold(self, x: Tensor) -> Tensor:
        """[B, N, d] in rows of the picture to [B, positions, group * group * d]."""
        g, s = self.config.group, self.config.side
        x = x.view(len(x), s // g, g, s // g, g, -1).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(len(x), (s // g) ** 2, -1)

    def _unfold(self, x: Tensor) -> Tensor:
        """The inverse of `_fold`."""
        g, s = self.config.group, self.config.side
        x = x.view(len(x), s // g, s // g, g, g, -1).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(len(x), s * s, -1)
