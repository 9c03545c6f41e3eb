"""diffusers' `VQDiffusionPipeline` on the network of a `PublishedDecoder`, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import Transformer2DModel, VQDiffusionPipeline, VQDiffusionScheduler
from torch import Tensor, nn

from sta.models.decoders.vq_diffusion_published import PublishedDecoder
from sta.models.vq import Tokenizer
from sta.private import condition_with


class _Codes(nn.Module):
    """This package's tokenizer where diffusers' pipeline wants its `VQModel`: decoding costs both the same."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer, self.quantize = tokenizer, self
        self.config = SimpleNamespace(vq_embed_dim=tokenizer.config.code_width)

    def get_codebook_entry(self, codes: Tensor, shape: Sequence[int]) -> Tensor:
        return codes

    def decode(self, codes: Tensor, force_not_quantize: bool) -> SimpleNamespace:
        return SimpleNamespace(sample=self.tokenizer.decode(codes))


class Reference(VQDiffusionPipeline):
    """diffusers' pipeline with the weights of a decoder: speech tokens stand where its text embeddings would.

    Its scheduler replaces almost no codes, where training here replaced a tenth: good for seconds, not for pictures.
    """

    def __init__(self, decoder: PublishedDecoder, tokenizer: Tokenizer):
        super().__init__(
            vqvae=None, text_encoder=None, tokenizer=None, transformer=to_diffusers(decoder),
            scheduler=VQDiffusionScheduler(
                decoder.config.num_vector_embeds, num_train_timesteps=decoder.config.num_embeds_ada_norm
            ),
            learned_classifier_free_sampling_embeddings=None,
        )  # fmt: skip
        self.vqvae, self.null = _Codes(tokenizer), decoder.null_tokens.detach()
        self.set_progress_bar_config(disable=True)

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.null.device

    def draw(self, tokens: Tensor, steps: int, guidance: float, seed: int) -> Any:
        """Draw tokens [B, K, C] as float arrays [B, H, W, 3]."""
        null = self.null.to(tokens.dtype).expand_as(tokens)
        condition_with(self, lambda guided: torch.cat([null, tokens]) if guided else tokens)
        return self(
            [""] * len(tokens), num_inference_steps=steps, guidance_scale=guidance, output_type="np",
            generator=torch.Generator(self.device).manual_seed(seed),
        ).images  # fmt: skip


def to_diffusers(decoder: PublishedDecoder) -> Transformer2DModel:
    """Make diffusers' own network with a decoder's weights."""
    config = {k: v for k, v in decoder.config.items() if not k.startswith("_") and k != "null_length"}
    network = Transformer2DModel(**config, norm_type="ada_norm")
    network.load_state_dict({k: v for k, v in decoder.state_dict().items() if k != "null_tokens"})
    return network.to(decoder.device).eval()
