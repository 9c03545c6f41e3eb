"""VQ-Diffusion (Gu et al. 2022) by this package's transformer."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from pydantic import Field
from torch import Tensor, nn

from sta.config.recipe import Positive
from sta.models.decoders._codes import CodeDiffusion
from sta.models.decoders._transformer import TransformerDecoder, TransformerSettings, Trunk
from sta.models.decoders.base import PictureGrid, TokenSpace
from sta.models.patchify import patchify, unpatchify


class _Settings(TransformerSettings):
    timesteps: Positive = Field(100, description="T of mask-and-replace")


class CodeDecoder(CodeDiffusion, TransformerDecoder):
    """VQ-Diffusion (Gu et al. 2022): belief in a picture's codes x_0 given noisy codes x_t.

    Args:
        side: codes along a side of the picture; N = side * side.
        codebook: V; the mask's id is V.
        patch_size: side of the square of codes that shares a position.
        token_width: C. embedding_width: E. tokens: K.
        draft: layers of the draft of the picture that the tokens alone give; 0: none.
        styles: names of what `SpeechCondition.style` numbers.
        channels: d of the tokenizer's latents, which the draft predicts.
        draft_embedding: whether the draft reads the global embedding, too.
        condition: `tokens`, or `embedding`, which then stands for them too.
        draft_hidden: width of a draft of fully connected layers; 0: of attention.
        draft_memory: keys of its memory; 0: none.
        embedding_tokens: how many tokens the embedding gives; 0: as many as there are speech tokens.
    """

    Settings = _Settings
    title = "VQ-Diffusion"

    @register_to_config
    def __init__(
        self, side: int, codebook: int, tokens: int, token_width: int, embedding_width: int, width: int = 256,
        layers: int = 6, heads: int = 4, patch_size: int = 2, dropout: float = 0.0, draft: int = 0, channels: int = 8,
        styles: Sequence[str] = (), draft_embedding: bool = False,
        condition: str = "tokens", draft_hidden: int = 0, embedding_tokens: int = 0,
        draft_memory: int = 0,
    ):  # fmt: skip
        super().__init__()
        members = patch_size * patch_size
        self.embed = nn.Embedding(codebook + 1, width // members)
        self.patch_embed = nn.Linear(width // members * members, width)
        self.trunk = Trunk(
            side, channels, patch_size, tokens, token_width, embedding_width, width, layers, heads, dropout, draft,
            len(styles), draft_embedding, condition, draft_hidden, embedding_tokens,
            draft_memory,
        )  # fmt: skip
        self.out = nn.Linear(width, members * width // 2)
        self.classify = nn.Linear(width // 2, codebook)

    def forward(
        self, codes: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor, drop: Tensor | None = None,
        drafted: Tensor | None = None, style: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute logits of x_0 [B, N, V] of codes [B, N] in 0..V; otherwise as of `Decoder.forward`."""
        side, patch_size = self.config.side, self.config.patch_size
        x = self.patch_embed(patchify(self.embed(codes), side, patch_size))
        x = self.trunk(x, t, tokens, embedding, drop, drafted, style)
        logits: Tensor = self.classify(unpatchify(self.out(x), side, patch_size))
        return logits

    @classmethod
    def build(cls, settings: _Settings, grid: PictureGrid, space: TokenSpace) -> CodeDecoder:
        """Make an untrained decoder."""
        return cls(grid.side, grid.codes, channels=grid.channels, **cls.sizes_of(settings, space))
