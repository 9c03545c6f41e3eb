"""The tokenizer stage: pictures to codes or latents and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.config.recipe import Recipe, TokenizerStage
from sta.data.parts import ITEMS_PER_PART
from sta.distributed.sharding import BatchShard
from sta.models.autoencoder import tokenizer_class
from sta.models.vq import Tokenizer, to_unit_range
from sta.training import examples
from sta.training.batch import Batch
from sta.training.picture_losses import PerceptualDistance, colour_loss, edge_loss, pyramid_loss
from sta.training.sampler import build_sampler
from sta.training.task import CorpusFacts, Task
from sta.training.workspace import Workspace


@dataclass(frozen=True)
class PictureBatch(Batch):
    """Pictures.

    Attributes:
        pixels: uint8 [B, H, W, 3].
    """

    pixels: Tensor


STARTS_FROM = 512  # pictures by which the weights are set before training, where the tokenizer does so

TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss, "mse": F.mse_loss, "edge": edge_loss, "pyramid": pyramid_loss, "colour": colour_loss,
}  # fmt: skip


class _Reconstruction(nn.Module):
    """The tokenizer, and the losses that weigh something."""

    def __init__(self, tokenizer: Tokenizer, stage: TokenizerStage):
        super().__init__()
        self.tokenizer, self.unquantised = tokenizer, stage.unquantised
        weighed = {name for name, weight in stage.losses.items() if weight}
        self.terms = {name: term for name, term in TERMS.items() if name in weighed}
        self.perceptual = None
        if "perceptual" in weighed and stage.perceptual_network:
            self.perceptual = PerceptualDistance(stage.perceptual_network)

    def forward(self, batch: PictureBatch) -> dict[str, Tensor]:
        pictures = to_unit_range(batch.pixels)
        drawn, quantized = self.tokenizer(pictures, self.unquantised)
        drawn = drawn.float()
        losses = {name: term(drawn, pictures) for name, term in self.terms.items()} | {"commit": quantized.commit}
        return losses | ({"perceptual": self.perceptual(drawn, pictures)} if self.perceptual is not None else {})


def build_module(recipe: Recipe) -> _Reconstruction:
    """Return the untrained network of the stage."""
    torch.manual_seed(recipe.seed)
    made = tokenizer_class(recipe.tokenizer.codes)
    tokenizer = made(size=recipe.corpus.size, **recipe.tokenizer.model_dump())
    return _Reconstruction(tokenizer, recipe.stages.tokenizer)


class TokenizerTask(Task):
    """Reconstruction of the corpus's pictures through V codes (van den Oord 2017)."""

    Settings = TokenizerStage
    name = "tokenizer"

    def __init__(self, workspace: Workspace):
        stage = workspace.recipe.stages.tokenizer
        self.workspace, self.weights, self.batch_size = workspace, {k: v for k, v in stage.losses.items()}, stage.batch
        self.module = build_module(workspace.recipe)
        image_of, shown_by = workspace.corpus.image_index
        pictures = np.unique(image_of[workspace.corpus.select("train")])
        some = pictures[np.linspace(0, len(pictures) - 1, min(STARTS_FROM, len(pictures)), dtype=int)]
        self.module.tokenizer.start_from(to_unit_range(torch.from_numpy(workspace.pixels[some])))
        self.order = build_sampler(
            workspace,
            pictures,
            shown_by[pictures],
            workspace.recipe.seed,
            self.batch_size,
            shards=pictures // ITEMS_PER_PART,
        )

    @classmethod
    def build_network(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> _Reconstruction:
        return build_module(recipe)

    @classmethod
    def example_batch(cls, recipe: Recipe, facts: CorpusFacts, name: str, size: int, seconds: float) -> PictureBatch:
        """Return noise for pictures."""
        return PictureBatch(examples.pixels(size, recipe.corpus.size, np.random.default_rng(0)))

    @classmethod
    def items_of_corpus(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> float:
        """Return the pictures."""
        return facts.pictures

    def _pictures_of(self, step: int) -> np.ndarray:
        return self.order.take(step * self.batch_size, self.batch_size)

    def items(self, step: int) -> list[str]:
        """Return the numbers of the step's pictures."""
        _, shown_by = self.workspace.corpus.image_index
        return self.workspace.corpus.names(shown_by[self._pictures_of(step)])

    def batch(self, step: int, shard: BatchShard) -> PictureBatch:
        """Return this shard's pictures of the step."""
        pictures = shard.of(self._pictures_of(step))
        return PictureBatch(torch.from_numpy(np.stack([self.workspace.pixels[p] for p in pictures])))

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the tokenizer."""
        tokenizer = module.tokenizer
        assert isinstance(tokenizer, Tokenizer)
        tokenizer.save_pretrained(folder / "tokenizer")
