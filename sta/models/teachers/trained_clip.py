"""A CLIP that the teacher stage trains on the corpus at hand: a small one, or heads upon published towers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sta.config.cards import MARKS, TeacherCard, TrainedClipCard
from sta.config.published import locate
from sta.data.text import Pieces
from sta.errors import CorpusError, WeightsError, first_line
from sta.models.teachers._towers import (
    HEADS,
    TRUNKS,
    PublishedTokenizer,
    build_clip,
    check_hashes,
    weights_file,
    without_mask,
)
from sta.models.teachers.base import Preprocessing
from sta.models.teachers.open_clip import OpenClipTeacher

Tokenizer = Callable[[Sequence[str]], Tensor]


class PieceTokenizer:
    """Captions to ids [B, L] for a text tower trained here: SentencePiece ids between a start and an end id.

    The end id is the highest, where open_clip's pooling looks for it.
    """

    def __init__(self, pieces: Pieces, context_length: int, vocabulary: int):
        if pieces.size + MARKS > vocabulary:
            raise WeightsError(
                f"the teacher's text tower knows {vocabulary} ids, its {pieces.size} pieces need {MARKS} more"
            )
        self.pieces, self.context_length = pieces, context_length
        self.start, self.end = vocabulary - 2, vocabulary - 1

    def __call__(self, texts: Sequence[str]) -> Tensor:
        ids = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in enumerate(texts):
            caption = [i + 1 for i in self.pieces.encode(text)][: self.context_length - 2]
            ids[row, : len(caption) + 2] = torch.tensor([self.start, *caption, self.end])
        return ids


class TrainedClipTeacher(OpenClipTeacher):
    """What the teacher stage left: an open_clip model of the card's own `config`."""

    Settings: ClassVar[type[TeacherCard]] = TrainedClipCard
    trained_here = True

    @classmethod
    def load(cls, card: TrainedClipCard, folder: Path | None = None) -> TrainedClipTeacher:
        """Load what `save` wrote; the card is the one that is there."""
        assert folder is not None
        try:
            saved = json.loads((folder / "config.json").read_text())
            saved.pop("trained_here", None)  # of version 0.1
            saved = {key: value for key, value in saved.items() if key in TrainedClipCard.model_fields}
            card = TrainedClipCard.model_validate_json(json.dumps(saved | {"kind": "trained-clip"}))
            state = load_file(folder / "model.safetensors")
            teacher = cls.untrained(card, folder / "pieces.model")
            frozen = tuple(TRUNKS[tower] for tower in card.frozen)
            there = {key: value for key, value in teacher.model.state_dict().items() if key.startswith(frozen)}
            teacher.model.load_state_dict(state | there)
        except (OSError, RuntimeError, ValueError, SafetensorError, CorpusError) as error:
            raise WeightsError(f"{folder}: not a whole teacher ({first_line(error)}); train its stage again") from error
        check_hashes(card)
        return teacher

    @classmethod
    def untrained(cls, card: TrainedClipCard, pieces: Path | None) -> TrainedClipTeacher:
        """Return the teacher before its stage: published towers have their weights, and all else has none yet."""
        model = build_clip(card)
        return cls(model, tokenizer_of(card, pieces), card, preprocessing_of(model, card))

    @classmethod
    def version(cls, card: Any) -> object:
        """Return nothing: what its stage left has a fingerprint of its own."""
        return None

    @classmethod
    def towers_version(cls, card: TrainedClipCard) -> object:
        """Return what the features of its frozen towers depend on, JSON-like."""
        files = {tower: weights_file(card.published[tower]).stat() for tower in card.frozen}
        said = {tower: card.tower_sha256.get(tower) or [at.st_size, at.st_mtime_ns] for tower, at in files.items()}
        return [
            said,
            card.image_size,
            card.image_stages,
            card.text_prefix,
            card.config["vision_cfg"],
            card.config["text_cfg"],
        ]

    @classmethod
    def outline(cls, card: TrainedClipCard) -> tuple[nn.Module, int]:
        """Build the network on torch's meta device."""
        with torch.device("meta"):
            model = without_mask(build_clip(card, weights=False))
        return model, int(card.config["text_cfg"]["context_length"])

    @classmethod
    def reads(cls, card: TeacherCard, language: str) -> bool:
        """Return true: it learns the recipe's languages."""
        return True

    def fit(self, picture: Image.Image) -> np.ndarray:
        """Return a picture at the resolution of the card, the network's may be higher; drawings are softer then."""
        return replace(self.preprocessing, size=self.card.image_size).fit(picture)

    @torch.no_grad()
    def frozen_images(self, pixels: Tensor) -> Tensor:
        """Return what the frozen image tower makes of pictures uint8 [B, H, W, 3]: [B, F]."""
        features: Tensor = self.model.visual.trunk(self.preprocessing.normalise(pixels))
        return features.float()

    @torch.no_grad()
    def frozen_texts(self, texts: Sequence[str]) -> Tensor:
        """Return what the frozen text tower makes of captions: [B, F]."""
        ids, text = self.tokenize(list(texts)).to(next(self.model.parameters()).device), self.model.text
        mask = (ids != text.config.pad_token_id).long()
        features: Tensor = text.pooler(text.transformer(input_ids=ids, attention_mask=mask), mask)
        return features.float()

    @torch.no_grad()
    def project(self, tower: str, features: Tensor) -> Tensor:
        """Return unit vectors [B, E] of what `frozen_images` or `frozen_texts` gave."""
        return F.normalize(self.model.get_submodule(HEADS[tower])(features).float(), dim=-1)


def preprocessing_of(model: Any, card: TrainedClipCard) -> Preprocessing:
    """Return how pictures are made ready: as the published tower saw them, else as OpenAI's."""
    size = card.config["vision_cfg"]["image_size"]
    if "image" not in card.published:
        return Preprocessing(size)
    trained = model.visual.trunk.pretrained_cfg
    return Preprocessing(size, tuple(trained["mean"]), tuple(trained["std"]), trained["interpolation"])


def tokenizer_of(card: TrainedClipCard, pieces: Path | None) -> Tokenizer:
    """Return what turns captions into ids: that of the published text tower, or the pieces in a file."""
    text = card.config["text_cfg"]
    if "text" in card.published:
        return PublishedTokenizer(locate(card.published["text"]), card.text_prefix, text["context_length"])
    assert pieces is not None
    return PieceTokenizer(Pieces.load(pieces), text["context_length"], text["vocab_size"])


def save(model: nn.Module, card: TrainedClipCard, pieces: Path | None, folder: Path) -> None:
    """Write a teacher: config.json, model.safetensors and, where the corpus's are its own, pieces.model.

    Frozen towers stay where they are: the configuration has their names and the SHA-256 of their weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    card = card.model_copy(update={"tower_sha256": {t: s for t, s in check_hashes(card).items() if t in card.frozen}})
    (folder / "config.json").write_text(json.dumps(card.model_dump(mode="json"), indent=2))
    frozen = tuple(TRUNKS[tower] for tower in card.frozen)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith(frozen)}
    save_file(state, folder / "model.safetensors")
    if pieces is not None:
        (folder / "pieces.model").write_bytes(pieces.read_bytes())
