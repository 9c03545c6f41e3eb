"""The decoders: transformers over a picture's codes, or its latents, that read the speech tokens.

Cross-attention to the tokens, adaptive norm from time and the global embedding (one table shared by all
layers, as in PixArt-alpha), learned null condition for guidance. Squares of `patch_size` x `patch_size` codes share a
position, so that the transformer works on patch_size^2 times fewer positions.

Both are driven through one interface: `start` gives x_T, `draft` what the tokens alone say of the picture, once for
all steps, `forward` what a scheduler steps with, `guide` mixes it with the unconditional one, `picture` turns x_0 into
pixels, and `reconstruct` shows what could at best be drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from sta.models.diffusion import guide
from sta.models.draft import Draft
from sta.models.layers import Attention, feed_forward, sinusoids
from sta.models.patchify import num_patches, patchify, unpatchify
from sta.models.vq import VQTokenizer


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.feed_forward = feed_forward(width, 4, dropout)
        self.table = nn.Parameter(torch.zeros(9, width))

    def forward(self, x: Tensor, tokens: Tensor, modulation: Tensor) -> Tensor:
        """x [B, P, D], tokens [B, K, D], modulation [B, 9, D]."""
        shift_a, scale_a, gate_a, shift_c, scale_c, gate_c, shift_f, scale_f, gate_f = (
            (modulation + self.table).to(x.dtype)[:, :, None].unbind(1)
        )  # [B, 1, D] each
        y = self.norms[0](x) * (1 + scale_a) + shift_a
        x = x + (1 + gate_a) * self.self_attention(y, y)
        x = x + (1 + gate_c) * self.cross_attention(self.norms[1](x) * (1 + scale_c) + shift_c, tokens)
        return x + (1 + gate_f) * self.feed_forward(self.norms[2](x) * (1 + scale_f) + shift_f)


class Trunk(nn.Module):
    """Positions of a picture [B, P, D] in the light of time, speech tokens, their draft and global embedding."""

    def __init__(
        self, positions: int, tokens: int, token_width: int, embedding_width: int,
        width: int, layers: int, heads: int, dropout: float, draft: Draft | None,
    ):  # fmt: skip
        super().__init__()
        self.width, self.draft = width, draft
        if draft is not None:
            self.draft_proj = nn.Linear(width, width)
        self.position_embedding = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.token_proj = nn.Linear(token_width, width)
        self.token_embedding = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.null_tokens = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.embedding_proj = nn.Linear(embedding_width, width)
        self.null_embedding = nn.Parameter(torch.zeros(width))
        self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        adaln = nn.Linear(width, 9 * width)
        self.adaln = nn.Sequential(nn.SiLU(), adaln)
        self.blocks = nn.ModuleList(DecoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(adaln.weight)
        nn.init.zeros_(adaln.bias)

    def drafted(self, tokens: Tensor) -> Tensor | None:
        """The draft [B, P, D] of tokens [B, K, C], where this network has one."""
        return None if self.draft is None else self.draft(tokens)

    def forward(
        self, x: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor, drop: Tensor | None, drafted: Tensor | None
    ) -> Tensor:
        """x, drafted [B, P, D], t [B], tokens [B, K, C], embedding [B, E], drop [B] bool or None -> [B, P, D]."""
        memory = self.token_proj(tokens) + self.token_embedding
        condition = self.embedding_proj(embedding)
        if drop is not None:
            memory = torch.where(drop[:, None, None], self.null_tokens.to(memory.dtype), memory)
            condition = torch.where(drop[:, None], self.null_embedding.to(condition.dtype), condition)
        time = self.time_mlp(sinusoids(t * 1000, self.width).to(condition.dtype))
        modulation = self.adaln(time + condition).unflatten(-1, (9, -1))
        x = x + self.position_embedding
        if self.draft is not None:
            known = self.draft_proj(self.draft(tokens) if drafted is None else drafted)
            x = x + (known if drop is None else known.masked_fill(drop[:, None, None], 0))
        for layer in self.blocks:
            x = layer(x, memory, modulation)
        normed: Tensor = self.norm(x)
        return normed


class Drafting(ModelMixin, ConfigMixin):
    """What both decoders have: a trunk that may hold a draft."""

    config_name = "config.json"
    _repeated_blocks = ["DecoderLayer", "_DraftLayer"]  # noqa: RUF012 - what diffusers' `compile_repeated_blocks` compiles
    trunk: Trunk

    def draft(self, tokens: Tensor) -> Tensor | None:
        """What tokens [B, K, C] alone say of the picture [B, P, D], for `forward`; None without a draft."""
        return self.trunk.drafted(tokens)

    def draft_loss(self, drafted: Tensor, latents: Tensor) -> Tensor:
        """Weighted squared error of the latents [B, d, h, w] that a draft [B, P, D] predicts: scalar."""
        assert self.trunk.draft is not None
        return self.trunk.draft.loss(drafted, latents)


class CodeDecoder(Drafting):
    """VQ-Diffusion (Gu et al. 2022): belief in a picture's codes x_0 given noisy codes x_t.

    Args:
        side: codes along a side of the picture; N = side * side.
        codebook: V; the mask's id is V.
        patch_size: side of the square of codes that shares a position.
        token_width: C. embedding_width: E. tokens: K.
        draft: layers of the draft of the picture that the tokens alone give; 0: none.
        channels: d of the tokenizer's latents, which the draft predicts.
    """

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
        patch_size: int = 2,
        dropout: float = 0.0,
        draft: int = 0,
        channels: int = 8,
    ):
        super().__init__()
        members = patch_size * patch_size
        sketch = _draft(side, channels, patch_size, tokens, token_width, width, draft, heads)
        self.embed = nn.Embedding(codebook + 1, width // members)
        self.patch_embed = nn.Linear(width // members * members, width)
        self.trunk = Trunk(
            num_patches(side, patch_size), tokens, token_width, embedding_width, width, layers, heads, dropout, sketch
        )
        self.out = nn.Linear(width, members * width // 2)
        self.classify = nn.Linear(width // 2, codebook)

    def forward(
        self, codes: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor, drop: Tensor | None = None,
        drafted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits of x_0.

        Args:
            codes: [B, N] in 0..V, x_t.
            t: [B], time as a share of T in [0, 1].
            tokens: [B, K, C]; embedding: [B, E].
            drop: [B] bool, True where the null condition stands in.
            drafted: [B, P, D], what `draft` gave for these tokens; drafted here if it is not given.

        Returns:
            [B, N, V].
        """
        side, patch_size = self.config.side, self.config.patch_size
        x = self.patch_embed(patchify(self.embed(codes), side, patch_size))
        x = self.trunk(x, t, tokens, embedding, drop, drafted)
        logits: Tensor = self.classify(unpatchify(self.out(x), side, patch_size))
        return logits

    def start(self, batch: int, generator: Any, device: torch.device) -> Tensor:
        """x_T: all mask, [B, N]."""
        return torch.full((batch, self.config.side**2), self.config.codebook, device=device)

    @staticmethod
    def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return guide(conditional.float(), unconditional.float(), scale)

    @staticmethod
    def picture(codes: Tensor, tokenizer: VQTokenizer) -> Tensor:
        """Codes [B, N] to pictures [B, 3, H, W] in [-1, 1]."""
        return tokenizer.decode(codes)

    @staticmethod
    def reconstruct(pictures: Tensor, tokenizer: VQTokenizer) -> Tensor:
        """Pictures [B, 3, H, W] as they would look if every code were drawn right."""
        return tokenizer.decode(tokenizer.encode(pictures))


class LatentDecoder(Drafting):
    """Latent diffusion by flow matching: velocity of the tokenizer's latents at x_t (Lipman et al. 2023).

    Args:
        side: latents along a side of the picture.
        channels: d of a latent.
        patch_size: side of the square of latents that shares a position.
        token_width: C. embedding_width: E. tokens: K.
        draft: layers of the draft of the picture that the tokens alone give; 0: none.
    """

    @register_to_config
    def __init__(
        self,
        side: int,
        channels: int,
        tokens: int,
        token_width: int,
        embedding_width: int,
        width: int = 256,
        layers: int = 6,
        heads: int = 4,
        patch_size: int = 2,
        dropout: float = 0.0,
        draft: int = 0,
    ):
        super().__init__()
        sketch = _draft(side, channels, patch_size, tokens, token_width, width, draft, heads)
        self.patch_embed = nn.Linear(patch_size * patch_size * channels, width)
        self.trunk = Trunk(
            num_patches(side, patch_size), tokens, token_width, embedding_width, width, layers, heads, dropout, sketch
        )
        self.out = nn.Linear(width, patch_size * patch_size * channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, latents: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor, drop: Tensor | None = None,
        drafted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Velocity noise - x_0.

        Args:
            latents: [B, d, h, w], x_t.
            t: [B], share of noise in [0, 1].
            tokens: [B, K, C]; embedding: [B, E].
            drop: [B] bool, True where the null condition stands in.
            drafted: [B, P, D], what `draft` gave for these tokens; drafted here if it is not given.

        Returns:
            [B, d, h, w].
        """
        side, patch_size = self.config.side, self.config.patch_size
        x = self.patch_embed(patchify(latents.flatten(2).transpose(1, 2).to(self.dtype), side, patch_size))
        x = unpatchify(self.out(self.trunk(x, t, tokens, embedding, drop, drafted)), side, patch_size)
        return x.transpose(1, 2).unflatten(2, (side, side))

    def start(self, batch: int, generator: Any, device: torch.device) -> Tensor:
        """x_T: noise, [B, d, h, w]."""
        shape = (batch, self.config.channels, self.config.side, self.config.side)
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

    @staticmethod
    def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022, Eq. 6)."""
        return unconditional.float() + scale * (conditional.float() - unconditional.float())

    @staticmethod
    def picture(latents: Tensor, tokenizer: VQTokenizer) -> Tensor:
        """Latents [B, d, h, w] to pictures [B, 3, H, W] in [-1, 1]."""
        return tokenizer.decode_latents(latents)

    @staticmethod
    def reconstruct(pictures: Tensor, tokenizer: VQTokenizer) -> Tensor:
        """Pictures [B, 3, H, W] as they would look if every latent were drawn right."""
        return tokenizer.decode_latents(tokenizer.latents(pictures))


def _draft(
    side: int, channels: int, patch_size: int, tokens: int, token_width: int, width: int, layers: int, heads: int
) -> Draft | None:
    return Draft(side, channels, patch_size, tokens, token_width, width, layers, heads) if layers else None
