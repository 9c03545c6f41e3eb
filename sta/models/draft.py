"""The draft: what the speech tokens alone say of each place of the picture, before there is any noise.

A denoiser has to look at its tokens only where noise hides nearly everything, so it learns slowly to read them. The
draft learns it by a direct route: the positions of the picture read the tokens and predict the tokenizer's latents, and
the denoiser starts from there. Speech synthesis gives its diffusion a mean to start from in the same way (Grad-TTS,
Popov et al. 2021, section 3). Its loss also shapes the tokens themselves.

Its loss may dwell on what matters: places that differ from their neighbours, which is where the subject is, count for
more than an even ground. (The denoiser's may not: weights that depend on x_0 would draw the velocity away from its
conditional mean.) Less so where drawing starts from the draft, whose noise on an even ground would be seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.models.layers import Attention, LayerNorm, feed_forward
from sta.models.patchify import num_patches, unpatchify

EVEN = 0.25  # weight of a place without any detail, as a share of a mean one's
EVEN_DIRECT = 3.0  # the same of a direct draft: looked at, its plain areas are cleaner (recipes/LOG.md)


class Draft(nn.Module, ABC):
    """What is known of the positions of a picture [B, P, D] before there is noise.

    Args:
        side: latents along a side of the picture. channels: d of a latent.
        patch_size: side of the square of latents that shares a position.
        width: D.

    Attributes:
        even: weight of a place without any detail.
    """

    even = EVEN

    def __init__(self, side: int, channels: int, patch_size: int, width: int):
        super().__init__()
        self.side, self.patch_size, self.width = side, patch_size, width

    @abstractmethod
    def forward(self, tokens: Tensor, style: Tensor | None = None, embedding: Tensor | None = None) -> Tensor:
        """Draft tokens [B, K, C] and embedding [B, E] in a style [B] as positions [B, P, D]."""

    @abstractmethod
    def patches(self, drafted: Tensor) -> Tensor:
        """Return the latents of each position's patch [B, P, p * p * d] that a draft [B, P, D] predicts."""

    def loss(self, drafted: Tensor, latents: Tensor) -> Tensor:
        """Compute the error of the latents [B, d, h, w] that a draft [B, P, D] predicts, weighted by detail: scalar."""
        errors = (self.predicted(drafted) - latents.float()).square()
        return (detail(latents.float(), self.even) * errors).mean()

    def predicted(self, drafted: Tensor) -> Tensor:
        """Compute the latents [B, d, h, w] that a draft [B, P, D] predicts."""
        cells = unpatchify(self.patches(drafted).float(), self.side, self.patch_size)
        return cells.transpose(1, 2).unflatten(2, (self.side, self.side))


def any_style(styles: nn.Embedding, style: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Return how each style looks, [B, D]; the last of the table is that of any style."""
    numbers = torch.full((batch,), styles.num_embeddings - 1, device=device) if style is None else style
    looks: Tensor = styles(numbers)
    return looks


class _DraftLayer(nn.Module):
    """Positions [B, P, D] read the tokens [B, K, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_cross_attention, self.norm_forward = LayerNorm(width), LayerNorm(width)
        self.cross_attention, self.feed_forward = Attention(width, heads), feed_forward(width)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        x = x + self.cross_attention(self.norm_cross_attention(x), tokens)
        return x + self.feed_forward(self.norm_forward(x))


class AttentionDraft(Draft):
    """The positions of the picture read the tokens.

    Args:
        tokens: K. token_width: C.
        styles: how many styles a picture may be asked for in.
        embedding_width: E, of the global embedding if that is read too; 0: it is not.
    """

    def __init__(
        self, side: int, channels: int, patch_size: int, tokens: int, token_width: int, width: int, layers: int,
        heads: int, styles: int = 0, embedding_width: int = 0,
    ):  # fmt: skip
        super().__init__(side, channels, patch_size, width)
        self.style_embedding = nn.Embedding(styles + 1, width) if styles else None
        self.embedding_proj = nn.Linear(embedding_width, width) if embedding_width else None
        self.position_embedding = nn.Parameter(torch.randn(num_patches(side, patch_size), width) * 0.5)
        self.token_proj = nn.Linear(token_width, width)
        self.token_embedding = nn.Parameter(torch.randn(tokens, width) * 0.3)
        self.layers = nn.ModuleList(_DraftLayer(width, heads) for _ in range(layers))
        self.norm = LayerNorm(width)
        self.out = nn.Linear(width, patch_size * patch_size * channels)

    def forward(self, tokens: Tensor, style: Tensor | None = None, embedding: Tensor | None = None) -> Tensor:
        memory = self.token_proj(tokens)
        memory = memory + self.token_embedding.to(memory.dtype)
        if self.style_embedding is not None:
            looks = any_style(self.style_embedding, style, len(tokens), tokens.device)[:, None]
            memory = torch.cat([memory, looks.to(memory.dtype)], 1)
        if self.embedding_proj is not None:
            assert embedding is not None
            memory = torch.cat([memory, self.embedding_proj(embedding.to(tokens.dtype))[:, None].to(memory.dtype)], 1)
        x = self.position_embedding.to(memory.dtype).expand(len(tokens), -1, -1)
        for layer in self.layers:
            x = layer(x, memory)
        drafted: Tensor = self.norm(x)
        return drafted

    def patches(self, drafted: Tensor) -> Tensor:
        found: Tensor = self.out(drafted)
        return found


class Memory(nn.Module):
    """Keys like embeddings [B, E], and what each means [B, hidden]: the mean of the values, by how near the keys are.

    A key-value memory (Miller et al. 2016). It tells apart what is near in the teacher's space in fewer steps than a
    linear layer, if its keys start as the teacher's views.
    """

    def __init__(self, keys: int, embedding_width: int, hidden: int):
        super().__init__()
        self.keys = nn.Parameter(F.normalize(torch.randn(keys, embedding_width), dim=-1))
        self.sharpness = nn.Parameter(torch.tensor(3.0))  # natural logarithm of what cosines are multiplied with
        self.values = nn.Linear(keys, hidden)
        nn.init.normal_(self.values.weight)

    def forward(self, embedding: Tensor) -> Tensor:
        near = embedding @ self.keys.to(embedding.dtype).T * self.sharpness.exp()
        return self.values(near.softmax(-1))  # type: ignore[no-any-return]


class DirectDraft(Draft):
    """Fully connected layers from the global embedding to all latents at once.

    Each hidden unit has a picture of its own, so that many pictures are learnt in few steps, where attention has to
    learn what goes where first (recipes/LOG.md).

    Args:
        embedding_width: E. hidden: width of the layers.
        styles: how many styles a picture may be asked for in.
        memory: keys of a `Memory` in the place of the first layer; 0: that layer.
    """

    even = EVEN_DIRECT

    def __init__(
        self, side: int, channels: int, patch_size: int, embedding_width: int, hidden: int, layers: int,
        styles: int = 0, memory: int = 0,
    ):  # fmt: skip
        super().__init__(side, channels, patch_size, patch_size * patch_size * channels)
        self.scale = embedding_width**0.5  # of a unit vector, to numbers about 1
        self.memory = Memory(memory, embedding_width, hidden) if memory else None
        self.embedding_proj = None if memory else nn.Linear(embedding_width, hidden)
        self.style_embedding = nn.Embedding(styles + 1, hidden) if styles else None
        self.style_scale = nn.Embedding(styles + 1, hidden) if styles and memory else None
        if self.style_scale is not None:
            nn.init.ones_(self.style_scale.weight)
        self.layers = nn.ModuleList(
            nn.Sequential(LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))
            for _ in range(layers - 1)
        )
        self.norm = LayerNorm(hidden)
        self.out = nn.Linear(hidden, num_patches(side, patch_size) * self.width)

    def forward(self, tokens: Tensor, style: Tensor | None = None, embedding: Tensor | None = None) -> Tensor:
        assert embedding is not None
        embedding = embedding.to(tokens.dtype)
        if self.memory is not None:
            x = self.memory(embedding)
        else:
            assert self.embedding_proj is not None
            x = self.embedding_proj(self.scale * embedding)
        if self.style_scale is not None:
            x = x * any_style(self.style_scale, style, len(tokens), tokens.device).to(x.dtype)
        if self.style_embedding is not None:
            x = x + any_style(self.style_embedding, style, len(tokens), tokens.device).to(x.dtype)
        x = F.gelu(x)
        for layer in self.layers:
            x = x + layer(x)
        drafted: Tensor = self.out(F.gelu(self.norm(x))).unflatten(-1, (-1, self.width))
        return drafted

    def patches(self, drafted: Tensor) -> Tensor:
        return drafted


def detail(latents: Tensor, even: float = EVEN) -> Tensor:
    """Measure how much each place differs from the mean of its neighbourhood: [B, d, h, w] -> [B, 1, h, w], mean 1."""
    around = F.avg_pool2d(latents, 3, 1, 1, count_include_pad=False)
    differs = (latents - around).square().mean(1, keepdim=True)
    differs = differs + even * differs.mean((2, 3), keepdim=True) + 1e-6
    return differs / differs.mean((2, 3), keepdim=True)
