"""Batches of the shapes that each stage trains on, of noise, for who has no corpus."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sta.config.cards import load_teacher
from sta.config.recipe import Recipe
from sta.models.backbones import backbone_class
from sta.models.decoders.base import PictureGrid, find_decoder
from sta.models.encoder import pieces_to_frames
from sta.plan.corpus import Facts
from sta.training.features import LENGTH_MULTIPLE
from sta.training.tasks.decoder import BANK, FRAME_MULTIPLE, kinds_of_pictures, text_mask
from sta.training.tasks.distill import written_captions

FRAMES_A_PIECE = 1.3  # stretches that the CTC head of a finished run reads per piece: 1.26 in English, 1.48 in Arabic

LIKE = 1.07  # the longest recording of a batch of like lengths against their mean; measured on Garden


def frames_read(facts: Facts, seconds: float) -> int:
    """Frames of an utterance that a trained encoder gives: one for each stretch it read, and one of prosody."""
    return round(FRAMES_A_PIECE * facts.pieces_a_second * seconds) + 1


def padded(length: float, multiple: int) -> int:
    return -(-max(1, round(length)) // multiple) * multiple


def in_batch(length: int) -> int:
    """What a recording of mean length takes with its padding: to the batch's longest, and on to a whole multiple."""
    return round(LIKE * length) + LENGTH_MULTIPLE // 2


def batch_of(recipe: Recipe, facts: Facts, stage: str, group: str, size: int, seconds: float) -> dict[str, Tensor]:
    """A batch of `size` items of `stage`, each of `seconds` of speech where it hears any."""
    draw = np.random.default_rng(0)
    if stage == "teacher":
        return _captioned_pictures(recipe, size, draw)
    if stage == "tokenizer":
        return {"pixels": _pixels(recipe, size, draw)}
    if stage == "classifier":
        return _answered_pictures(recipe, size, draw)
    if stage == "decoder":
        return _drawn(recipe, facts, group, size, seconds, draw)
    return _heard(recipe, facts, group, size, seconds, draw)


def _pixels(recipe: Recipe, size: int, draw: np.random.Generator) -> Tensor:
    side = recipe.corpus.size
    return torch.from_numpy(draw.integers(256, size=(size, side, side, 3), dtype=np.uint8))


def _captioned_pictures(recipe: Recipe, size: int, draw: np.random.Generator) -> dict[str, Tensor]:
    config = load_teacher(recipe.teacher).config
    assert config is not None
    text = config["text_cfg"]
    texts = torch.from_numpy(draw.integers(text["vocab_size"], size=(size, text["context_length"])))
    return {"pixels": _pixels(recipe, size, draw), "texts": texts}


def _answered_pictures(recipe: Recipe, size: int, draw: np.random.Generator) -> dict[str, Tensor]:
    from sta.training.tasks.classifier import attributes_of

    slots = attributes_of(recipe).slots()
    return {"pixels": _pixels(recipe, size, draw), "values": torch.zeros(size, len(slots), dtype=torch.long)}


def _units(size: int, width: int, draw: np.random.Generator) -> Tensor:
    return F.normalize(torch.from_numpy(draw.standard_normal((size, width), dtype=np.float32)), dim=-1)


def _captions(
    facts: Facts, recipe: Recipe, group: str, size: int, seconds: float, draw: np.random.Generator
) -> list[list[int]]:
    """Pieces of captions as long as the speech, of the group's joint vocabulary."""
    known = sum(facts.pieces[code] for code in recipe.groups[group])
    return draw.integers(1, 1 + known, size=(size, max(1, round(facts.pieces_a_second * seconds)))).tolist()  # type: ignore[no-any-return]


def _spoken(
    recipe: Recipe, facts: Facts, size: int, seconds: float, draw: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Speech features [B, S, F] that change as often as a caption has pieces, and their lengths."""
    backbone = backbone_class(recipe.encoder.backbone)
    length = round(min(seconds, recipe.stages.distill.max_seconds) * backbone.features_per_second)
    examples = [backbone.example_features(draw, in_batch(length), facts.pieces_a_second) for _ in range(size)]
    return torch.from_numpy(np.stack(examples)), torch.full((size,), length)


def _heard(
    recipe: Recipe, facts: Facts, group: str, size: int, seconds: float, draw: np.random.Generator
) -> dict[str, Tensor]:
    stage = recipe.stages.distill
    features, lengths = _spoken(recipe, facts, size, seconds, draw)
    width, written = (
        load_teacher(recipe.teacher).embedding_width,
        written_captions(stage.model_copy(update={"batch": size})),
    )
    bank = min(stage.negatives, facts.recordings)
    batch = {
        "features": features, "lengths": lengths, "language": torch.zeros(size, dtype=torch.long),
        "mood": torch.zeros(size, dtype=torch.long), **_said(recipe, facts, group, size, seconds, draw),
        "text_bank": _units(bank, width, draw), "image_bank": _units(bank, width, draw),
    }  # fmt: skip
    if written:
        captions = _captions(facts, recipe, group, written, seconds, draw)
        frames, lengths = pieces_to_frames(captions, range(written))
        read = _said(recipe, facts, group, written, seconds, draw) | {
            "frames": frames, "lengths": lengths, "language": torch.zeros(written, dtype=torch.long),
        }  # fmt: skip
        batch |= {f"read_{name}": value for name, value in read.items()}
    return batch


def _said(
    recipe: Recipe, facts: Facts, group: str, size: int, seconds: float, draw: np.random.Generator
) -> dict[str, Tensor]:
    captions, width = _captions(facts, recipe, group, size, seconds, draw), load_teacher(recipe.teacher).embedding_width
    named = {"attributes": torch.zeros(size, len(facts.attributes), dtype=torch.long)}
    return {
        **(named if recipe.stages.distill.losses.get("attributes") else {}),
        **_counted(captions), "full": torch.ones(size, dtype=torch.bool),
        "text": _units(size, width, draw), "image": _units(size, width, draw),
    }  # fmt: skip


def _counted(captions: list[list[int]]) -> dict[str, Tensor]:
    return {"pieces": torch.tensor(captions).flatten(), "counts": torch.tensor([len(c) for c in captions])}


def _drawn(
    recipe: Recipe, facts: Facts, group: str, size: int, seconds: float, draw: np.random.Generator
) -> dict[str, Tensor]:
    stage, width = recipe.stages.decoder, load_teacher(recipe.teacher).embedding_width
    is_written = text_mask(size, stage.text_ratio)
    heard, read = np.flatnonzero(~is_written), np.flatnonzero(is_written)
    count = frames_read(facts, seconds)
    length = padded(count, FRAME_MULTIPLE)
    frames = draw.standard_normal((len(heard), length, recipe.encoder.width)).astype(np.float16)
    captions = _captions(facts, recipe, group, size, seconds, draw)
    grid = PictureGrid.of(recipe)
    pictures = {
        "latents": torch.randn(size, grid.channels, grid.side, grid.side).half(),
        "codes": torch.randint(grid.codes, (size, grid.side**2)),
    }
    batch = {
        "group": torch.tensor(0), "language": torch.zeros(size, dtype=torch.long),
        "heard": torch.from_numpy(heard), "read": torch.from_numpy(read),
        "frames": torch.from_numpy(frames), "frames_mask": (torch.arange(length) < count).expand(len(heard), -1),
        "text": _units(size, width, draw), "text_bank": _units(min(BANK, facts.recordings), width, draw),
        "x0": pictures[kinds_of_pictures(recipe)[0]],
    }  # fmt: skip
    if find_decoder(recipe.decoder.kind).has_draft(recipe.decoder):
        batch["latents"] = pictures["latents"]
    if stage.losses.get("caption"):
        batch |= _counted(captions)
    if len(read):
        batch["text_pieces"], batch["text_lengths"] = pieces_to_frames(captions[: len(read)], range(len(read)))
    return batch
