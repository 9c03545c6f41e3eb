"""A release at toy size, made without training: real classes with random weights, real SentencePiece pieces."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile
import torch

from sta.config.cards import SentencePieceCard, load_language
from sta.config.recipe import DECODERS, Sampling, dump_recipe, load_recipe
from sta.config.variants import known_variants
from sta.data.checksums import write_sums
from sta.data.corpora.garden.grammar import Grammar
from sta.data.language import FULL_WORLD
from sta.data.text import Pieces, normalise, train_sentencepiece
from sta.inference.packs import LanguagePack
from sta.inference.pipeline import SpeechToImagePipeline
from sta.models.attribute_classifier import AttributeClassifier
from sta.models.bottleneck import SpeechBottleneck
from sta.models.decoders.base import Decoder, Objective, PictureGrid, TokenSpace, find_decoder
from sta.models.encoder import SpeechEncoder
from sta.models.vq import VQTokenizer
from sta.training.tasks.classifier import attributes_of
from tests.conftest import scatter

LANGUAGES = ("en", "ar")
KINDS = known_variants(DECODERS, Decoder)  # type: ignore[type-abstract]
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


def tiny_decoder(kind: str, grid: PictureGrid, space: TokenSpace, **changes: int) -> tuple[Decoder, Any]:
    """An untrained decoder, and its settings: those of `changes` and of these that its kind has."""
    sizes = {"width": 16, "layers": 2, "heads": 2, "patch_size": 2, "timesteps": 20, "draft": 1, **changes}
    made = find_decoder(kind)
    known = {name: value for name, value in sizes.items() if name in made.Settings.model_fields}
    settings = made.Settings.model_validate({"kind": kind, **known})
    return made.build(settings, grid, space), settings


def tiny_objective(kind: str, **changes: int) -> tuple[Objective, torch.Tensor]:
    """A tiny loss, and what it learns to draw: codes or latents of 4 x 4 places."""
    torch.manual_seed(0)
    made, settings = tiny_decoder(
        kind, PictureGrid(4, 8, 3), TokenSpace(2, 3, 3), **{"layers": 1, "draft": 0, **changes}
    )
    x0 = {"codes": torch.randint(8, (1, 16)).expand(16, -1), "latents": torch.randn(1, 3, 4, 4).expand(16, -1, -1, -1)}
    return made.objective(settings, {"vlb": 1.0}), x0[made.target]


def tiny_pipeline(kind: str = "vq-diffusion", styles: tuple[str, ...] = ()) -> SpeechToImagePipeline:
    """One pooled encoder for both languages; the same weights every time."""
    torch.manual_seed(0)
    tokens, width, embedding = 3, 4, 8
    tokenizer = VQTokenizer(SIZE, codes=CODES, code_width=4, width=16, factor=4)
    space = TokenSpace(tokens, width, embedding, styles)
    decoder, settings = tiny_decoder(kind, PictureGrid(tokenizer.side, CODES, 4), space)
    scheduler = decoder.build_scheduler(settings, Sampling())
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
