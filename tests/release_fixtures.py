"""A release at toy size, made without training: real classes with random weights, real SentencePiece pieces."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch

from sta.config.cards import SentencePieceCard, load_language
from sta.config.recipe import dump_recipe, load_recipe
from sta.data.checksums import write_sums
from sta.data.corpora.garden.grammar import Grammar
from sta.data.language import FULL_WORLD
from sta.data.text import Pieces, normalise, train_sentencepiece
from sta.inference.packs import LanguagePack
from sta.inference.pipeline import SpeechToImagePipeline
from sta.models.attribute_classifier import AttributeClassifier
from sta.models.bottleneck import SpeechBottleneck
from sta.models.build_decoder import build_decoder
from sta.models.decoders.transformer import LatentDecoder
from sta.models.encoder import SpeechEncoder
from sta.models.scheduler import FlowMatchEulerDiscreteScheduler, MaskReplaceScheduler, Scheduler
from sta.models.vq import VQTokenizer
from sta.training.tasks.classifier import attributes_of
from tests.conftest import scatter

LANGUAGES = ("en", "ar")
TOKEN_SPACE = "0123456789abcdef"
SIZE, CODES, STEPS = 16, 8, 3


@cache
def tiny_pieces(language: str) -> Pieces:
    """Pieces learnt from two dozen Garden captions."""
    card, rng = load_language(language), np.random.default_rng(0)
    grammar, scenes = Grammar(card, FULL_WORLD), [FULL_WORLD.sample(rng) for _ in range(24)]
    texts = [normalise(grammar.describe(s.kind, s.attributes, rng), card.normaliser) for s in scenes]
    with TemporaryDirectory() as folder:
        return Pieces.load(train_sentencepiece(texts, SentencePieceCard(vocab_size=64), Path(folder) / "pieces.model"))


def tiny_pipeline(kind: str = "vq-diffusion") -> SpeechToImagePipeline:
    """One pooled encoder for both languages; the same weights every time."""
    torch.manual_seed(0)
    tokens, width, embedding = 3, 4, 8
    tokenizer = VQTokenizer(SIZE, codes=CODES, code_width=4, width=16, factor=4)
    decoder = build_decoder(
        kind, tokenizer.side, CODES, 4, tokens, width, embedding,
        width=16, layers=2, heads=2, patch_size=2, timesteps=20, dropout=0.0, draft=1,
    )  # fmt: skip
    scheduler: Scheduler = (
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
        if isinstance(decoder, LatentDecoder)
        else MaskReplaceScheduler(CODES, num_train_timesteps=20)
    )
    pipe = SpeechToImagePipeline(
        decoder, tokenizer, scheduler,
        token_space=TOKEN_SPACE, num_inference_steps=STEPS, guidance_scale=2.0,
    )  # fmt: skip
    encoder = SpeechEncoder(
        {code: tiny_pieces(code).size for code in LANGUAGES}, width=16, convolutions=1, layers=1, heads=2
    )
    bottleneck = SpeechBottleneck(16, embedding, tokens, width, layers=1, heads=2)
    for seed, network in enumerate((decoder, tokenizer, encoder, bottleneck)):
        scatter(network, seed, by=0.2).eval()
    for code in LANGUAGES:
        pipe.add_pack(LanguagePack(load_language(code), tiny_pieces(code), "pooled", encoder, bottleneck))
    return pipe


def write_tiny_release(folder: Path, kind: str = "vq-diffusion") -> Path:
    """`tiny_pipeline` as a release folder, with its checksums."""
    tiny_pipeline(kind).save_pretrained(folder)
    write_sums(folder)
    return folder


def wave(seconds: float = 0.8, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Something that is not silent: a glide with noise (as loud in each band at any rate), float32 [T] in [-1, 1]."""
    rng, time = np.random.default_rng(seed), np.arange(round(seconds * rate)) / rate
    glide = np.sin(2 * np.pi * (150 + 60 * seed + 200 * time) * time)
    noise = 0.05 * np.sqrt(rate / 16_000) * rng.standard_normal(len(time))
    return (0.4 * glide + noise).astype(np.float32)


def write_wave(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str | None = None) -> Path:
    """Write samples [T] or [T, channels] in the format that the file's name ends in."""
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def write_tiny_garden(folder: Path) -> Path:
    """A tiny release as a run on Garden leaves it: with the attribute classifier and the recipe."""
    recipe = load_recipe("garden-tiny")
    write_tiny_release(folder)
    torch.manual_seed(0)
    AttributeClassifier(attributes_of(recipe).slots(), SIZE, width=8).eval().save_pretrained(folder / "classifier")
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    write_sums(folder)
    return folder
