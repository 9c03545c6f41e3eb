"""A small CLIP that the teacher stage trains on the corpus at hand, for machines that cannot download one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sta.config.cards import MARKS, TeacherCard, TrainedClipCard
from sta.data.text import Pieces
from sta.errors import CorpusError, WeightsError, first_line
from sta.models.teachers.base import Preprocessing
from sta.models.teachers.open_clip import OpenClipTeacher


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
            model = build(card)
            model.load_state_dict(load_file(folder / "model.safetensors"))
            tokenize = tokenizer_of(card, folder / "pieces.model")
        except (OSError, RuntimeError, ValueError, SafetensorError, CorpusError) as error:
            raise WeightsError(f"{folder}: not a whole teacher ({first_line(error)}); train its stage again") from error
        return cls(model, tokenize, card, Preprocessing(card.image_size))

    @classmethod
    def version(cls, card: Any) -> object:
        """Return nothing: what its stage left has a fingerprint of its own."""
        return None

    @classmethod
    def outline(cls, card: TrainedClipCard) -> tuple[nn.Module, int]:
        """Build the network on torch's meta device."""
        with torch.device("meta"):
            return build(card), int(card.config["text_cfg"]["context_length"])

    @classmethod
    def reads(cls, card: TeacherCard, language: str) -> bool:
        """Return true: it learns the recipe's languages."""
        return True


def build(card: TrainedClipCard) -> nn.Module:
    """Return the untrained open_clip model of a card."""
    return open_clip.model.CLIP(**card.config, output_dict=True)


def tokenizer_of(card: TrainedClipCard, pieces: Path) -> PieceTokenizer:
    """Return what turns captions into ids, with the pieces in a file."""
    text = card.config["text_cfg"]
    return PieceTokenizer(Pieces.load(pieces), text["context_length"], text["vocab_size"])


def save(model: nn.Module, card: TrainedClipCard, pieces: Path, folder: Path) -> None:
    """Write a teacher: config.json, model.safetensors, pieces.model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(card.model_dump(mode="json"), indent=2))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "pieces.model").write_bytes(pieces.read_bytes())
