"""The frozen CLIP teacher: any open_clip model named by a card, or the one that a recipe trains on Garden."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sta.config.cards import MARKS, TeacherCard
from sta.data.checksums import file_hash
from sta.data.text import Pieces
from sta.errors import CorpusError, WeightsError, first_line


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


@dataclass(frozen=True)
class Preprocessing:
    """How pictures are made ready for a teacher; by default as for OpenAI's CLIP, and for one that is trained here.

    Attributes:
        size: pixels a side.
        mean, deviation: of each channel, in [0, 1].
        interpolation: how pictures of another size are scaled.
    """

    size: int
    mean: tuple[float, ...] = OPENAI_DATASET_MEAN
    deviation: tuple[float, ...] = OPENAI_DATASET_STD
    interpolation: str = "bicubic"


class Teacher(nn.Module):
    """A CLIP model that cannot train: no gradients, pinned in evaluation mode.

    Args:
        model: an open_clip model.
        tokenize: captions to ids [B, L].
        card: its card.
        preprocessing: of its pictures.
    """

    def __init__(self, model: Any, tokenize: Any, card: TeacherCard, preprocessing: Preprocessing):
        super().__init__()
        self.model, self.tokenize, self.card, self.preprocessing = model, tokenize, card, preprocessing
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode whatever `mode` is: a teacher does not change."""
        return super().train(False)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Map uint8 [B, H, W, 3] to unit vectors [B, E]."""
        return F.normalize(self.model.encode_image(prepare_pixels(pixels, self.preprocessing)).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Map captions to unit vectors [B, E]."""
        ids = self.tokenize(list(texts)).to(next(self.model.parameters()).device)
        return F.normalize(self.model.encode_text(ids).float(), dim=-1)


def prepare_pixels(pixels: Tensor, how: Preprocessing) -> Tensor:
    """Map uint8 [B, H, W, 3] to the teacher's input [B, 3, size, size], scaled and normalised as it wants them."""
    x = pixels.permute(0, 3, 1, 2).float() / 255
    if x.shape[-1] != how.size:
        x = F.interpolate(x, (how.size, how.size), mode=how.interpolation, antialias=True).clamp(0, 1)
    mean, deviation = (torch.tensor(v, device=x.device)[:, None, None] for v in (how.mean, how.deviation))
    return (x - mean) / deviation


def build_own(card: TeacherCard) -> nn.Module:
    """Return an untrained open_clip model of a card that has its own `config`."""
    assert card.config is not None
    return open_clip.model.CLIP(**card.config, output_dict=True)


def build_unfilled(card: TeacherCard) -> Any:
    """Return the network of any card on torch's meta device: its sizes, and no numbers.

    Raises:
        WeightsError: open_clip does not know it, or a tower's configuration is not on this machine.
    """
    with torch.device("meta"):
        if card.config is not None:
            return build_own(card)
        towers = {"pretrained_image": False, "pretrained_text": False}
        try:
            return open_clip.create_model(card.architecture, device="meta", **towers)
        except (OSError, RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise WeightsError(f"teacher '{card.name}': {card.architecture} cannot be built ({reason})") from error


def save_own(model: nn.Module, card: TeacherCard, pieces: Path, folder: Path) -> None:
    """Write a teacher trained here: config.json, model.safetensors, pieces.model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(card.model_dump(mode="json"), indent=2))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "pieces.model").write_bytes(pieces.read_bytes())


def load_own(folder: Path) -> Teacher:
    """Read what `save_own` wrote.

    Raises:
        WeightsError: a file is missing or does not fit.
    """
    try:
        card = TeacherCard.model_validate_json((folder / "config.json").read_text())
        model = build_own(card)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        pieces = Pieces.load(folder / "pieces.model")
    except (OSError, RuntimeError, ValueError, SafetensorError, CorpusError) as error:
        raise WeightsError(f"{folder}: not a whole teacher ({first_line(error)}); train its stage again") from error
    assert card.config is not None
    text = card.config["text_cfg"]
    tokenize = PieceTokenizer(pieces, text["context_length"], text["vocab_size"])
    return Teacher(model, tokenize, card, Preprocessing(card.image_size))


def load_published(card: TeacherCard) -> Teacher:
    """Load the published open_clip model that a card names, from disk or the Hub's cache.

    Raises:
        WeightsError: the architecture or the weights are not to be had, or are not what the card says.
    """
    _check_file(card)
    try:
        model = open_clip.create_model(
            card.architecture, pretrained=card.pretrained, require_pretrained=card.pretrained is not None
        )
        teacher = Teacher(model, open_clip.get_tokenizer(card.architecture), card, _preprocessing_of(model))
    except Exception as error:  # open_clip and the Hub raise RuntimeError, OSError, ValueError and HTTP errors here
        raise WeightsError(
            f"teacher '{card.name}': open_clip cannot load {card.architecture} with weights '{card.pretrained}' "
            f"({first_line(error)}); put the weights on disk and name their path in the card's `pretrained`"
        ) from error
    _check_sizes(teacher)
    return teacher


def version_of(card: TeacherCard) -> list[list[object]]:
    """Return what tells one state of a published teacher's files on disk from another without reading them.

    That is path, size and time of change of each. A file whose hash the card says needs none of it, nor does what
    open_clip fetches.
    """
    kind, _, folder = (card.architecture or "").partition(":")
    if kind == "local-dir":  # of open_clip: configuration and weights are in this folder
        paths = sorted(Path(folder).rglob("*"))
    else:
        paths = [Path(card.pretrained)] if card.pretrained and card.sha256 is None else []
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.is_file()]


def _check_file(card: TeacherCard) -> None:
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
    """Return what the model's own configuration says; pictures are square, so how others are cut does not matter."""
    found = open_clip.get_model_preprocess_cfg(model)
    size = found["size"] if isinstance(found["size"], int) else found["size"][0]
    return Preprocessing(size, tuple(found["mean"]), tuple(found["std"]), found["interpolation"])


def _check_sizes(teacher: Teacher) -> None:
    card, side = teacher.card, teacher.preprocessing.size
    width = teacher.encode_images(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape[-1]
    for key, said, found in (("image_size", card.image_size, side), ("embedding_width", card.embedding_width, width)):
        if said != found:
            raise WeightsError(
                f"teacher '{card.name}': its card says {key} {said}, and {card.architecture} has {found}"
            )
