"""The transformer that two decoders share: the positions of a picture read the speech tokens.

Cross-attention to the tokens (or to as many that the global embedding gives, as IP-Adapter's, Ye et al. 2023, which
then is all that a picture depends on), adaptive norm from time and the global embedding (one table shared by all
layers, as in PixArt-alpha), learned null condition for guidance. Squares of `patch_size` x `patch_size` codes share a
position, so that the transformer works on patch_size^2 times fewer positions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sta.config.recipe import DecoderSettings, Positive, Recipe, Share, check_multiple
from sta.models.bottleneck import SpeechCondition
from sta.models.decoders.base import Decoder, TokenSpace
from sta.models.draft import AttentionDraft, DirectDraft, Draft
from sta.models.layers import Attention, LayerNorm, feed_forward, sinusoids
from sta.models.patchify import num_patches


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.feed_forward = feed_forward(width, 4, dropout)
        self.table = nn.Parameter(torch.zeros(9, width))

    def forward(self, x: Tensor, tokens: Tensor, modulation: Tensor) -> Tensor:
        """Compute [B, P, D] of x [B, P, D], tokens [B, K, D] and modulation [B, 9, D]."""
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
        self, side: int, channels: int, patch_size: int, tokens: int, token_width: int, embedding_width: int,
        width: int, layers: int, heads: int, dropout: float, draft: int, styles: int = 0,
        draft_embedding: bool = False, condition: str = "tokens", draft_hidden: int = 0, embedding_tokens: int = 0,
        draft_memory: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.width, self.styles, self.style_embedding = width, styles, None
        tokens = embedding_tokens or tokens
        self.draft: Draft | None = None
        self.embedding_tokens = nn.Linear(embedding_width, tokens * token_width) if condition == "embedding" else None
        if draft:
            self.draft = (
                DirectDraft(side, channels, patch_size, embedding_width, draft_hidden, draft, styles, draft_memory)
                if draft_hidden
                else AttentionDraft(
                    side, channels, patch_size, tokens, token_width, width, draft, heads, styles,
                    embedding_width if draft_embedding else 0,
                )
            )  # fmt: skip
            self.draft_proj = nn.Linear(self.draft.width, width)
        self.position_embedding = nn.Parameter(torch.randn(num_patches(side, patch_size), width) * 0.02)
        self.token_proj = nn.Linear(token_width, width)
        self.token_embedding = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.null_tokens = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.embedding_proj = nn.Linear(embedding_width, width)
        self.null_embedding = nn.Parameter(torch.zeros(width))
        self.time_mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        adaln = nn.Linear(width, 9 * width)
        self.adaln = nn.Sequential(nn.SiLU(), adaln)
        self.blocks = nn.ModuleList(DecoderLayer(width, heads, dropout) for _ in range(layers))
        self.norm = LayerNorm(width)
        nn.init.zeros_(adaln.weight)
        nn.init.zeros_(adaln.bias)
        if styles:
            self.style_embedding = nn.Embedding(styles + 1, width)  # the last is of any style
            nn.init.normal_(self.style_embedding.weight, std=0.02)

    def forward(
        self, x: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor, drop: Tensor | None, drafted: Tensor | None,
        style: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute [B, P, D] of x, drafted [B, P, D], t, style [B], tokens [B, K, C], embedding [B, E], drop [B]."""
        tokens = self.tokens_read(tokens, embedding)
        memory = self.token_proj(tokens)
        memory = memory + self.token_embedding.to(memory.dtype)
        condition = self.embedding_proj(embedding)
        if drop is not None:
            memory = torch.where(drop[:, None, None], self.null_tokens.to(memory.dtype), memory)
            condition = torch.where(drop[:, None], self.null_embedding.to(condition.dtype), condition)
        if self.style_embedding is not None:
            looks = self.style_embedding(self._style_numbers(len(x), style, drop, x.device))[:, None]  # [B, 1, D]
            memory, condition = torch.cat([memory, looks.to(memory.dtype)], 1), condition + looks[:, 0]
        time = self.time_mlp(sinusoids(t * 1000, self.width).to(condition.dtype))
        modulation = self.adaln(time + condition).unflatten(-1, (9, -1))
        x = x + self.position_embedding.to(x.dtype)  # bfloat16 under autocast, and so in all layers
        if self.draft is not None:
            known = self.draft_proj(self.draft(tokens, style, embedding) if drafted is None else drafted)
            x = x + (known if drop is None else known.masked_fill(drop[:, None, None], 0))
        for layer in self.blocks:
            x = layer(x, memory, modulation)
        normed: Tensor = self.norm(x)
        return normed

    def tokens_read(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Return the tokens [B, K, C] to be read: the speech tokens, or those that the embedding [B, E] gives."""
        if self.embedding_tokens is None:
            return tokens
        return self.embedding_tokens(embedding).unflatten(-1, (-1, tokens.shape[2]))  # type: ignore[no-any-return]

    def _style_numbers(self, batch: int, style: Tensor | None, drop: Tensor | None, device: torch.device) -> Tensor:
        """Return which embedding each picture's style has, [B]: that of any style where none is asked for."""
        style = torch.full((batch,), self.styles, device=device) if style is None else style
        return style if drop is None else style.masked_fill(drop, self.styles)


class TransformerSettings(DecoderSettings):
    """The keys of a decoder with this transformer."""

    width: Positive = 256
    layers: Positive = 6
    heads: Positive = 4
    patch_size: Literal[1, 2] = Field(2, description="side of the square of codes that shares a position")
    dropout: Share = 0.0
    styles: bool = Field(True, description="condition on the style, where the training rows name several")
    draft: Annotated[int, Field(ge=0)] = Field(
        0, description="layers of the draft that the tokens alone give, which the denoiser starts from; 0: none"
    )
    draft_hidden: Annotated[int, Field(ge=0)] = Field(
        0, description="width of a draft of fully connected layers that reads the global embedding; 0: of attention"
    )
    draft_memory: Annotated[int, Field(ge=0)] = Field(
        0,
        description="keys of a memory in which it looks the embedding up, at first the teacher's views; 0: none",
    )
    draft_embedding: bool = Field(False, description="let the draft read the global embedding beside the tokens")
    condition: Literal["tokens", "embedding"] = Field(
        "tokens", description="read the speech tokens, or tokens that the global embedding gives (as IP-Adapter does)"
    )
    embedding_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="how many the global embedding gives; 0: as many as there are speech tokens"
    )


class TransformerDecoder(Decoder):
    """A decoder with a trunk, which may hold a draft."""

    _repeated_blocks = ["DecoderLayer", "_DraftLayer"]  # noqa: RUF012 - what diffusers' `compile_repeated_blocks` compiles
    trunk: Trunk

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse patches that do not fill the picture, and widths that the trunk cannot split."""
        settings: Any = recipe.decoder
        side = recipe.corpus.size / recipe.tokenizer.factor
        if side % settings.patch_size:
            raise ValueError(
                f"corpus.size {recipe.corpus.size} / tokenizer.factor {recipe.tokenizer.factor} = {side:g} codes a "
                f"side, which decoder.patch_size {settings.patch_size} does not divide"
            )
        if settings.draft_hidden and not settings.draft:
            raise ValueError("decoder.draft_hidden is the width of a draft: give decoder.draft some layers, such as 2")
        if settings.draft_memory and not (settings.draft_hidden and recipe.stages.decoder.teacher_ratio):
            raise ValueError(
                "decoder.draft_memory is of a draft of fully connected layers, and starts as the teacher's views: set "
                "decoder.draft_hidden and stages.decoder.teacher_ratio above 0, or it to 0"
            )
        if settings.embedding_tokens and settings.condition == "tokens":
            raise ValueError("decoder.embedding_tokens are of the embedding: set decoder.condition to embedding")
        check_multiple("decoder.width", settings.width, settings.heads, "which decoder.heads is")
        check_multiple("decoder.width", settings.width, 2, "the sines and cosines that tell it the time")

    @classmethod
    def sizes_of(cls, settings: Any, space: TokenSpace) -> dict[str, Any]:
        """Return the arguments of the constructor that settings and condition give whichever decoder it is."""
        sizes = ("width", "layers", "heads", "patch_size", "dropout", "draft", "draft_embedding", "condition",
                 "draft_hidden", "embedding_tokens", "draft_memory")  # fmt: skip
        return {
            "tokens": space.tokens, "token_width": space.token_width, "embedding_width": space.embedding_width,
            "styles": space.styles if settings.styles else (), **{name: getattr(settings, name) for name in sizes},
        }  # fmt: skip

    @classmethod
    def has_draft(cls, settings: TransformerSettings) -> bool:
        """Return whether the draft has layers."""
        return settings.draft > 0

    @classmethod
    def positions(cls, settings: TransformerSettings, side: int) -> int:
        """Return how many squares of codes there are."""
        return num_patches(side, settings.patch_size)

    @property
    def views_wanted(self) -> int:
        """Count the keys of the draft's memory."""
        draft = self.trunk.draft
        return len(draft.memory.keys) if isinstance(draft, DirectDraft) and draft.memory is not None else 0

    @torch.no_grad()
    def start_from(self, views: Tensor) -> None:
        """Take the views for the keys of the draft's memory."""
        draft = self.trunk.draft
        assert isinstance(draft, DirectDraft)
        assert draft.memory is not None
        draft.memory.keys.copy_(views)

    def draft(self, condition: SpeechCondition) -> Tensor | None:
        """Compute what a condition tells of the picture [B, P, D]; None without a draft."""
        if self.trunk.draft is None:
            return None
        tokens, embedding = condition.tokens.to(self.dtype), condition.embedding.to(self.dtype)
        return self.trunk.draft(self.trunk.tokens_read(tokens, embedding), condition.style, embedding)

    def draft_loss(self, drafted: Tensor, latents: Tensor) -> Tensor:
        """Compute the weighted squared error of the latents [B, d, h, w] that a draft [B, P, D] predicts: scalar."""
        assert self.trunk.draft is not None
        return self.trunk.draft.loss(drafted, latents)
