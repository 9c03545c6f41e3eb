"""Validation of a language file: everything a recipe would need of it, before any hour is spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from sta.config import yamlfile
from sta.config.cards import LanguageCard, load_language
from sta.config.limits import SAMPLE_RATE
from sta.data.corpora.garden.grammar import Grammar
from sta.data.corpora.garden.prosody import delivery
from sta.data.corpora.garden.world import SLOTS, World
from sta.data.synthesis.base import synthesiser
from sta.data.synthesis.espeak import speakers
from sta.data.text import normalise, train_sentencepiece
from sta.errors import RecipeError

FULL_WORLD = World({slot: values for slot, (_, values) in SLOTS.items()})
SENTENCES = 200


def check(name_or_path: str) -> Iterator[str]:
    """Check a language file and yield one line per thing that holds; what does not is a StaError."""
    card, path = load_language(name_or_path), yamlfile.find(name_or_path, "languages")
    yield f"{path}: {card.name} ({card.code}), {card.native_name}, {card.script}, {card.direction}"
    text = _normalised(card, card.test_sentence, path)
    yield f"normaliser: '{card.test_sentence}' -> '{text}'"
    train, test = speakers(card.speech.voices, card.speech.test_voices)
    wave = synthesiser(card.speech.synthesiser).speak(
        card.test_sentence, test[0], delivery("neutral", np.random.default_rng(0)), card.speech.words_per_minute
    )
    seconds = len(wave) / SAMPLE_RATE
    yield f"speech: {len(train)} training and {len(test)} test speakers; the test sentence takes {seconds:.1f} s"
    if card.garden is None:
        _check_pieces(card, [text], path)
        yield "garden: no grammar, so this language trains on other corpora"
        return
    texts = list(_sentences(card, path))
    normalised = [_normalised(card, t, path) for t in texts]
    _check_pieces(card, normalised, path)
    characters = set("".join(normalised))
    yield f"garden: {len(set(texts))} of {len(texts)} sentences differ, {len(characters)} characters after normalising"
    yield from (f"  {t}" for t in texts[:3])


def _sentences(card: LanguageCard, path: Path) -> Iterator[str]:
    grammar, rng = Grammar(card, FULL_WORLD, source=str(path)), np.random.default_rng(0)
    for _ in range(SENTENCES):
        scene = FULL_WORLD.sample(rng)
        said = {s: v for s, v in scene.attributes.items() if rng.random() > 0.3}
        yield grammar.describe(scene.kind, said, rng)


def _check_pieces(card: LanguageCard, texts: Sequence[str], path: Path) -> None:
    """Refuse a `vocab_size` that is too small for the characters of normalised texts, as the prepare stage would."""
    with TemporaryDirectory() as folder:
        setting = f"sentencepiece.vocab_size of {path}"
        train_sentencepiece(texts, card.sentencepiece, Path(folder) / "pieces.model", setting=setting)


def _normalised(card: LanguageCard, text: str, path: Path) -> str:
    try:
        normalised = normalise(text, card.normaliser)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    if not normalised.strip():
        raise RecipeError(f"{path}: key 'normaliser' {list(card.normaliser)} leaves nothing of '{text}'")
    return normalised
