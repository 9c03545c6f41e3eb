"""Any published model of open_clip, by its name there or from a folder or file on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sta.config.cards import OpenClipCard, TeacherCard
from sta.data.checksums import file_hash
from sta.errors import WeightsError, first_line
from sta.models.teachers._towers import without_mask
from sta.models.teachers.base import Preprocessing, Teacher


class OpenClipTeacher(Teacher):
    """An open_clip model.

    Args:
        model: with `encode_image` and `encode_text`.
        tokenize: captions to ids [B, L].
        card: its card.
        preprocessing: of its pictures.
    """

    Settings: ClassVar[type[TeacherCard]] = OpenClipCard

    def __init__(self, model: Any, tokenize: Any, card: TeacherCard, preprocessing: Preprocessing):
        super().__init__(card, preprocessing)
        self.model, self.tokenize = model, tokenize
        self.freeze()

    @classmethod
    def load(cls, card: Any, folder: Path | None = None) -> OpenClipTeacher:
        """Load the model that a card names, from disk or the Hub's cache."""
        _check_file(card)
        try:
            model = open_clip.create_model(
                card.architecture, pretrained=card.pretrained, require_pretrained=card.pretrained is not None
            )
            teacher = cls(model, open_clip.get_tokenizer(card.architecture), card, _preprocessing_of(model))
        except Exception as error:  # open_clip and the Hub raise RuntimeError, OSError, ValueError and HTTP errors here
            raise WeightsError(
                f"teacher '{card.name}': open_clip cannot load {card.architecture} with weights '{card.pretrained}' "
                f"({first_line(error)}); put the weights on disk and name their path in the card's `pretrained`"
            ) from error
        _check_sizes(teacher, card)
        return teacher

    @classmethod
    def version(cls, card: Any) -> object:
        """Return path, size and time of change of each file on disk.

        A file whose hash the card says needs none of it, nor does what open_clip fetches.
        """
        kind, _, folder = card.architecture.partition(":")
        if kind == "local-dir":  # of open_clip: configuration and weights are in this folder
            paths = sorted(Path(folder).rglob("*"))
        else:
            paths = [Path(card.pretrained)] if card.pretrained and card.sha256 is None else []
        return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths if p.is_file()] or None

    @classmethod
    def outline(cls, card: Any) -> tuple[nn.Module, int]:
        """Build the network on torch's meta device."""
        towers = {"pretrained_image": False, "pretrained_text": False}
        try:
            with torch.device("meta"):
                model = open_clip.create_model(card.architecture, device="meta", **towers)
        except (OSError, RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise WeightsError(f"teacher '{card.name}': {card.architecture} cannot be built ({reason})") from error
        return without_mask(model), getattr(model, "context_length", 77)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return unit vectors [B, E] of pictures uint8 [B, H, W, 3]."""
        return F.normalize(self.model.encode_image(self.preprocessing.normalise(pixels)).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [B, E] of captions."""
        ids = self.tokenize(list(texts)).to(next(self.model.parameters()).device)
        return F.normalize(self.model.encode_text(ids).float(), dim=-1)


def _check_file(card: OpenClipCard) -> None:
    """Refuse weights on disk that are not the card's; what open_clip downloads it checks itself."""
    if card.sha256 is None or card.pretrained is None or not Path(card.pretrained).is_file():
        return
    found = file_hash(card.pretrained)
    if found != card.sha256:
        raise WeightsError(
            f"teacher '{card.name}': {card.pretrained} has the SHA-256 {found}, and its card says {card.sha256}; take "
            f"the file from {card.source}, or correct the card"
        )


def _preprocessing_of(model: Any) -> Preprocessing:
    """Return what the model's own configuration says."""
    found = open_clip.get_model_preprocess_cfg(model)
    size = found["size"] if isinstance(found["size"], int) else found["size"][0]
    resize = found.get("resize_mode") or "shortest"
    return Preprocessing(size, tuple(found["mean"]), tuple(found["std"]), found["interpolation"], resize)


def _check_sizes(teacher: OpenClipTeacher, card: OpenClipCard) -> None:
    side = teacher.preprocessing.size
    width = teacher.encode_images(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[-1]
    for key, said, found in (("image_size", card.image_size, side), ("embedding_width", card.embedding_width, width)):
        if said != found:
            raise WeightsError(
                f"teacher '{card.name}': its card says {key} {said}, and {card.architecture} has {found}"
            )
