"""Small things that many tests share: a tiny Garden on disk, a random speech encoder, trained pieces."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub: no test may reach out

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from sta.config.cards import SentencePieceCard, load_language
from sta.data.corpora.base import CorpusSource
from sta.data.corpora.garden.corpus import GardenSettings, GardenSource, WorldSettings
from sta.data.rows import Corpus
from sta.data.text import Pieces, train_sentencepiece
from sta.models.encoder import SpeechEncoder

torch.set_num_threads(1)

#: No orange: "a red" becomes "an orange", which is a change of two words.
TINY_WORLD = WorldSettings(
    colours=["red", "green", "blue", "white"],
    moods=["happy", "sad"],
    slots={"size": ["large"], "background": ["meadow"], "count": ["five"], "shape": ["round"]},
)


def tiny_garden(world: WorldSettings = TINY_WORLD, seed: int = 3, **changes: float) -> GardenSource:
    """Half of the combinations are held out, so that a split that ignores it is caught at once."""
    sizes = {"size": 32, "scenes": 24, "validation": 4, "test": 10, "swaps": 6, **changes}
    settings = GardenSettings.model_validate({"name": "garden", "held_out": 0.5, "world": world, **sizes})
    return GardenSource(settings, {code: load_language(code) for code in ("en", "ar")}, seed)


def write_corpus(source: CorpusSource, folder: Path) -> Corpus:
    """Every shard of a corpus, as the prepare stage leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(source.spoken_shards()):
        shard.write(number, folder)
    source.finish(folder)
    return Corpus(folder)


def scatter(module: nn.Module, seed: int = 0, by: float = 0.3) -> nn.Module:
    """Move every parameter off its initial value, where zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return module


def tiny_encoder(pieces: dict[str, int] | None = None) -> SpeechEncoder:
    torch.manual_seed(0)
    encoder = SpeechEncoder(pieces or {"en": 5, "ar": 7}, width=16, convolutions=2, layers=1, heads=2)
    scatter(encoder)
    return encoder.eval()


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    """Reset accelerate's one state per process: a test must not find the precision of another."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def garden_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tiny_garden(), tmp_path_factory.mktemp("garden"))


@pytest.fixture(scope="session")
def encoder() -> SpeechEncoder:
    return tiny_encoder()


@pytest.fixture(scope="session")
def pieces_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    colours = ("red", "blue", "green", "white")
    texts = [f"a {a} bird with {b} wings" for a in colours for b in colours]
    card = SentencePieceCard(vocab_size=30)
    return train_sentencepiece(texts, card, tmp_path_factory.mktemp("pieces") / "pieces.model")


@pytest.fixture(scope="session")
def pieces(pieces_model: Path) -> Pieces:
    return Pieces.load(pieces_model)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
