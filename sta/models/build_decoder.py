"""The decoders that a recipe can name."""

from __future__ import annotations

from typing import TypeAlias

from sta.models.decoders.transformer import CodeDecoder, LatentDecoder
from sta.models.decoders.vq_diffusion_published import PublishedDecoder

Decoder: TypeAlias = CodeDecoder | LatentDecoder | PublishedDecoder

#: what `decoder.kind` of a recipe names.
DECODERS: dict[str, type[CodeDecoder] | type[LatentDecoder] | type[PublishedDecoder]] = {
    "vq-diffusion": CodeDecoder,
    "vq-diffusion-published": PublishedDecoder,
    "latent-diffusion": LatentDecoder,
}


def build_decoder(
    kind: str, side: int, codes: int, channels: int, tokens: int, token_width: int, embedding_width: int,
    width: int, layers: int, heads: int, patch_size: int, timesteps: int, dropout: float, draft: int,
) -> Decoder:  # fmt: skip
    """A fresh decoder for a tokenizer (`side`, `codes`, `channels`) and a token space (`tokens`, the two widths)."""
    if kind == "vq-diffusion-published":
        return PublishedDecoder(
            heads, width // heads, layers, cross_attention_dim=token_width, num_vector_embeds=codes + 1,
            sample_size=side, num_embeds_ada_norm=timesteps, null_length=tokens,
        )  # fmt: skip
    space = (tokens, token_width, embedding_width, width, layers, heads, patch_size, dropout, draft)
    if kind == "latent-diffusion":
        return LatentDecoder(side, channels, *space)
    return CodeDecoder(side, codes, *space, channels)
