"""Bytes on disk: the corpus, what frozen networks make of it, checkpoints, what each stage leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sta.config.cards import load_teacher
from sta.config.limits import SAMPLE_RATE
from sta.config.recipe import Recipe
from sta.models.backbones import backbone_class, backbone_of
from sta.models.backbones.pretrained import FRAMES_PER_SECOND, frame_width
from sta.plan.networks import Parameters
from sta.training.checkpoint import KEEP
from sta.training.examples import frames_read
from sta.training.stages import settings_of
from sta.training.task import CorpusFacts
from sta.training.tasks.decoder import kinds_of_frames, kinds_of_pictures

F32, F16, I64 = 4, 2, 8
WAV_HEADER = 44
ROW = 260  # bytes of a row's other columns; Garden has 250 to 280 with its text
TRUTH = 270  # bytes of what attributes.jsonl says of a row, which is kept twice


@dataclass(frozen=True)
class Item:
    """Something on disk: `size` bytes below the runs; temporary if it goes again when its stage is done."""

    name: str
    where: str
    size: float
    temporary: bool = False


def of_corpus(recipe: Recipe, facts: CorpusFacts) -> list[Item]:
    """List what the prepare stage writes."""
    backbone = backbone_class(recipe.encoder.backbone)
    row = backbone.example_features(np.random.default_rng(0), 1, 1.0).nbytes
    speech = facts.recordings * facts.seconds + facts.others * facts.full  # others are full captions only
    features = speech * backbone.features_per_second * row + facts.rows * I64
    wav = speech * facts.raw / facts.seconds * SAMPLE_RATE * 2 + facts.rows * WAV_HEADER
    card = load_teacher(recipe.teacher)
    sides = {recipe.corpus.size, card.pixels or recipe.corpus.size}
    truths = 2 * TRUTH * facts.rows if recipe.corpus.knows_attributes else 0
    return [
        Item("audio", "cache/*/corpus" if facts.holds_audio else "corpus.root", wav),
        Item("pictures' files", "cache/*/corpus", facts.rows * facts.picture_bytes),
        Item("captions and other columns", "cache/*/corpus", facts.rows * ROW + truths),
        Item("speech features", "cache/*/features-*", features),
        Item("parts of them, until joined", "cache/*/features-*", features, temporary=True),
        Item("pixels", "cache/*/pixels-*", facts.pictures * 3 * sum(side * side for side in sides)),
    ]


def of_frozen(recipe: Recipe, facts: CorpusFacts) -> list[Item]:
    """List what the stages cache of frozen networks."""
    width, side = load_teacher(recipe.teacher).embedding_width, recipe.corpus.size // recipe.tokenizer.factor
    teacher = F32 * width * (facts.rows + facts.pictures)
    frames = facts.recordings * (F16 * recipe.encoder.width * frames_read(recipe, facts, facts.seconds) + I64)
    kinds = len(kinds_of_frames(recipe))
    item = {"codes": I64, "latents": F16 * recipe.tokenizer.code_width}
    items = [Item("teacher's features", "cache/*/teacher-*", teacher)]
    for target in kinds_of_pictures(recipe):
        items.append(Item(f"pictures' {target}", f"cache/*/{target}-*", facts.pictures * side * side * item[target]))
    if recipe.encoder.cache_frames:
        rate = FRAMES_PER_SECOND / recipe.encoder.frame_pooling * F16 * frame_width(backbone_of(recipe.encoder))
        once = facts.recordings * facts.seconds * rate * recipe.encoder.frame_copies
        items.append(Item("frozen backbone's frames", "cache/*/backbone-*", once))
        items.append(Item("parts of them, until joined", "cache/*/backbone-*", once, temporary=True))
    items.append(Item("encoders' frames" + ", clean and disturbed" * (kinds == 2), "cache/*/*frames-*", kinds * frames))
    items.append(Item("parts of them, until joined", "cache/*/*frames-*", frames, temporary=True))
    return items


def checkpoint(size: Parameters, averaged: bool) -> int:
    """Compute the bytes of one checkpoint: weights, AdamW's two moments, the average of the weights."""
    return F32 * (size.trainable + size.frozen) * (1 + averaged) + 2 * F32 * size.trainable


def of_training(recipe: Recipe, sizes: Mapping[str, tuple[Parameters, int]]) -> list[Item]:
    """List the largest stage's checkpoints, and what every stage leaves, of (parameters, how many alike) by stage."""
    largest = max(checkpoint(size, bool(settings_of(recipe, name).ema)) for name, (size, _) in sizes.items())
    left = {name: F32 * size.trainable * like for name, (size, like) in sizes.items()}
    released = sum(size for name, size in left.items() if name != "teacher")
    in_words, width = {"half": ("half precision", F16), "int8": ("int8 for the most part", 1)}[recipe.release.weights]
    return [
        Item(f"checkpoints: {KEEP}, best, in writing", "<run>/<stage>/checkpoints", (KEEP + 2) * largest, True),
        Item("what the stages leave", "<run>/<stage>/final", sum(left.values())),
        Item(f"release, in {in_words}", "<run>/release", released / F32 * width),
    ]
