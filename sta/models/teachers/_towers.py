"""CLIPs whose towers are published networks: timm's for pictures, transformers' for texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from timm.models import load_checkpoint
from torch import Tensor, nn

from sta.config.cards import HeadCard, TrainedClipCard
from sta.config.published import MODELS, locate
from sta.data.checksums import file_hash
from sta.distributed import sharding
from sta.errors import WeightsError, first_line

#: Where the networks that may be frozen are in open_clip's `CustomTextCLIP`.
TRUNKS = {"image": "visual.trunk", "text": "text.transformer"}
#: And what is trained upon them.
HEADS = {"image": "visual.head", "text": "text.proj"}


class PublishedTokenizer:
    """Texts to ids [B, L], as the published network was given them."""

    def __init__(self, name: str, prefix: str, context_length: int):
        from transformers import AutoTokenizer

        self.tokenizer, self.prefix, self.context_length = AutoTokenizer.from_pretrained(name), prefix, context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return ids int64 [B, L], padded to the longest, cut at the context length."""
        given, most = [self.prefix + text for text in texts], self.context_length
        ids = self.tokenizer(given, padding=True, truncation=True, max_length=most, return_tensors="pt")["input_ids"]
        return torch.as_tensor(ids)


class Stages(nn.Module):
    """The mean and the maximum over the picture of the last stages of a timm network, before its classes: [B, F].

    What follows the stages is made for the classes of photographs, and knows drawings worse than they do.
    """

    def __init__(self, trunk: Any, count: int):
        super().__init__()
        self.trunk, self.count, self.pretrained_cfg = trunk, count, trunk.pretrained_cfg
        self.num_features = 2 * sum(stage["num_chs"] for stage in trunk.feature_info[-count:])

    def forward(self, x: Tensor) -> Tensor:
        """Return features of pictures [B, 3, H, W]."""
        stages = self.trunk.forward_intermediates(x, indices=self.count, intermediates_only=True)
        return torch.cat([pool for stage in stages for pool in (stage.mean((2, 3)), stage.amax((2, 3)))], 1)


class Head(nn.Sequential):
    """Features [B, F] of a frozen network, each standardised over the corpus, to an embedding [B, E]."""

    def __init__(self, features: int, width: int, card: HeadCard):
        super().__init__(
            sharding.BatchNorm(features, affine=False),
            sharding.Dropout(card.dropout), nn.Linear(features, card.hidden), nn.GELU(),
            sharding.Dropout(card.dropout), nn.Linear(card.hidden, width),
        )  # fmt: skip


def build_clip(card: TrainedClipCard, weights: bool = True) -> Any:
    """Return the open_clip model of a card.

    Args:
        weights: whether published towers have theirs; else they are untrained, as all other parts are.

    Raises:
        WeightsError: a published network is not to be had, or is not what the card says.
    """
    if not card.published:
        return open_clip.model.CLIP(**card.config, output_dict=True)
    vision, text = dict(card.config["vision_cfg"]), dict(card.config["text_cfg"])
    try:
        if "image" in card.published:
            vision |= {"timm_model_name": _architecture(card.published["image"]), "timm_model_pretrained": False}
        if "text" in card.published:
            text |= {"hf_model_name": locate(card.published["text"]), "hf_model_pretrained": weights}
        model = open_clip.CustomTextCLIP(**card.config | {"vision_cfg": vision, "text_cfg": text}, output_dict=True)
        if "image" in card.published and weights:
            _load_trunk(model.visual.trunk, weights_file(card.published["image"]))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"teacher '{card.name}': its towers {' and '.join(card.published.values())} cannot be loaded "
            f"({first_line(error)}); put them in a folder by these names and set {MODELS} to it"
        ) from error
    if card.image_stages:
        model.visual.trunk = Stages(model.visual.trunk, card.image_stages)
    for tower in card.frozen:
        model.get_submodule(TRUNKS[tower]).requires_grad_(False)
    if card.head is not None:
        _put_heads(model, card, card.head)
    return model.float()


def tower_widths(model: Any, card: TrainedClipCard) -> dict[str, int]:
    """Return F of the features of each frozen tower."""
    of = {"image": lambda: model.visual.trunk.num_features, "text": lambda: model.text.transformer.config.hidden_size}
    return {tower: of[tower]() for tower in card.frozen}


def _put_heads(model: Any, card: TrainedClipCard, head: HeadCard) -> None:
    """Put a head of our own upon each frozen tower."""
    for tower, features in tower_widths(model, card).items():
        parent, _, name = HEADS[tower].partition(".")
        setattr(model.get_submodule(parent), name, Head(features, card.embedding_width, head))


def without_trunks(model: Any, frozen: Sequence[str]) -> Any:
    """Return the model without the networks that do not train: it takes their features, and has the others' weights."""
    for tower in frozen:
        parent, _, name = TRUNKS[tower].partition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
    return model


class _WithoutMask(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.network(input_ids=input_ids)


def without_mask(model: Any) -> Any:
    """Return the model with all tokens taken for valid: transformers looks at a mask, which the meta device has not."""
    if hasattr(getattr(model, "text", None), "pooler"):  # of transformers
        model.text.transformer = _WithoutMask(model.text.transformer)
    return model


def weights_file(name: str) -> Path:
    """Return where the weights of a published network are, which the Hub is asked for where they are not on disk."""
    folder = Path(locate(name))
    return folder / "model.safetensors" if folder.exists() else Path(hf_hub_download(name, "model.safetensors"))


def check_hashes(card: TrainedClipCard) -> dict[str, str]:
    """Return the SHA-256 of each published tower's weights.

    Raises:
        WeightsError: it is another one than the card says.
    """
    found = {tower: file_hash(weights_file(name)) for tower, name in card.published.items()}
    for tower, said in card.tower_sha256.items():
        if found[tower] != said:
            raise WeightsError(
                f"teacher '{card.name}': {weights_file(card.published[tower])} has the SHA-256 {found[tower]}, and the "
                f"{tower} tower it was made with has {said}; bring back those weights, or train the teacher stage again"
            )
    return found


def _architecture(name: str) -> str:
    """Return how timm calls a published network: by its folder's configuration, or by the last part of its name."""
    folder = Path(locate(name))
    return f"local-dir:{folder}" if (folder / "config.json").exists() else folder.name


def _load_trunk(trunk: nn.Module, path: Path) -> None:
    missing = load_checkpoint(trunk, str(path), strict=False).missing_keys
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}")
