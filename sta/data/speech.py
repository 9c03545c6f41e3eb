"""Speech for rows that have a text and no recording, made while a corpus is prepared.

Everything of a recording follows from the recipe's seed and the row's id. Who speaks follows from the row's split:
train and validation have the training voices of the engines that the recipe trains on; `engine` has engines that are
never trained on; other test splits have the test voices; `people` is for recordings of people and is never synthesised.
A row that nobody can speak stays silent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from sta.config.cards import LanguageCard
from sta.config.recipe import SpeechSettings
from sta.data import vocaliser
from sta.data.audio import MIN_SECONDS, SAMPLE_RATE, read_audio, wav_bytes
from sta.data.corruptions import add_noise, add_room
from sta.data.jsonlines import read_lines
from sta.data.rows import Row, file_column, payload
from sta.data.synthesis.base import Delivery, Voice, Wave, shape_level, synthesiser
from sta.data.synthesis.espeak import speakers
from sta.errors import CorpusError, NoSoundError, RecipeError, VoiceError, first_line

MANIFEST = "metadata.jsonl"  # of a folder of recordings
TRAINED = ("train", "validation")
PITCHES, RANGES = (-10, 11), (30, 71)  # of a delivery
REVERBERATION, DIRECT = (0.15, 0.6), (0.0, 15.0)  # of a room: seconds, and decibels of the direct sound above it
NOISE = (5.0, 25.0)  # decibels of the speech above it


@dataclass(frozen=True)
class Pool:
    """The speakers of one engine, and its share of the rows."""

    engine: str
    share: float
    voices: tuple[Voice, ...]


class Speech:
    """Speaks rows; picklable.

    Args:
        settings: of the corpus.
        cards: the languages by code; rows in others stay silent.
        seed: of the recipe.
    """

    def __init__(self, settings: SpeechSettings, cards: Mapping[str, LanguageCard], seed: int):
        self.settings, self.cards, self.seed = settings, cards, seed
        self._pools: dict[tuple[str, str], list[Pool]] = {}

    def version(self) -> object:
        """Return what changes when its recordings do: settings, and the version of each engine that speaks; JSON-like.

        Raises:
            RecipeError: an engine that the settings name is missing, or no language trains on it; or there is none for
                a language.
            CorpusError: the folder of recordings is not one.
        """
        trained = {engine for code in self.cards for engine in self._trained(code)}
        if unknown := [engine for engine in self.settings.engines if self.cards and engine not in trained]:
            raise RecipeError(
                f"corpus.speech.engines: no language of the recipe trains on '{unknown[0]}' (known: "
                f"{', '.join(sorted(trained))}; the card's speech.other_engines may name more, and its "
                "speech.test_engines are kept for the test)"
            )
        engines = {}
        for code in self.cards:
            for split in ("train", "engine", "test"):
                pools = self.pools(code, split)
                engines[f"{code} {split}"] = [[p.engine, synthesiser(p.engine).version()] for p in pools]
        settings, names = self.settings, {card.vocaliser for card in self.cards.values()} - {None}
        return [
            settings.model_dump(mode="json"), engines, vocaliser.version() if names and settings.vocalise else None,
            settings.recordings and hashlib.sha256(_manifest(settings.recordings).read_bytes()).hexdigest(),
        ]  # fmt: skip

    def speaks(self, row: Row) -> bool:
        """Return whether a row has a text, no recording, and somebody to speak it."""
        if payload(row.get("audio")) is not None or not row.get("text") or row["language"] not in self.cards:
            return False
        return bool(self._recordings(row) or self.pools(row["language"], row["split"]))

    def speak(self, row: Row) -> Row:
        """Return a row with a recording and its speaker, or as it is where it has one or nobody can speak it."""
        if not self.speaks(row):
            return row
        rng = np.random.default_rng([self.seed, *hashlib.sha256(str(row["id"]).encode()).digest()[:16]])
        try:
            wave, speaker = self._said(row, rng)
        except NoSoundError:
            return row
        if len(wave) < MIN_SECONDS * SAMPLE_RATE:  # of a letter, say
            return row
        if row["split"] == "train":
            wave = self._disturbed(wave, rng)
        return {**row, "audio": file_column(wav_bytes(wave)), "speaker": speaker}

    def pools(self, code: str, split: str) -> list[Pool]:
        """Return who may speak a language's rows of a split; raises `RecipeError` as `version` does."""
        split = "train" if split in TRAINED else split if split in ("engine", "people") else "test"
        if (code, split) not in self._pools:
            self._pools[code, split] = self._found(code, split)
        return self._pools[code, split]

    def _found(self, code: str, split: str) -> list[Pool]:
        card = self.cards[code].speech
        train, test = speakers(card.voices, card.test_voices)
        if split == "people":
            return []
        if split == "test":
            return [Pool(card.synthesiser, 1.0, tuple(test))]
        if split == "engine":
            return [pool for engine, accents in card.test_engines.items() if (pool := _if_there(engine, accents))]
        found = [Pool(card.synthesiser, share, tuple(train)) for share in self._share(card.synthesiser)]
        try:
            for engine, accents in card.other_engines.items():
                found += [Pool(engine, share, _voices(engine, accents)) for share in self._share(engine)]
        except VoiceError as error:
            raise RecipeError(f"language '{code}': {error}; or take the engine from corpus.speech.engines") from error
        if not found:
            raise RecipeError(
                f"corpus.speech.engines: none of {', '.join(self.settings.engines)} speaks '{code}'; add one of "
                f"{', '.join(self._trained(code))}"
            )
        return found

    def _share(self, engine: str) -> list[float]:
        return [share for name, share in self.settings.engines.items() if name == engine]

    def _trained(self, code: str) -> list[str]:
        card = self.cards[code].speech
        return [card.synthesiser, *card.other_engines]

    def _recordings(self, row: Row) -> list[tuple[str, str]]:
        """Return path and speaker of each recording of a row's text that is for its split."""
        if self.settings.recordings is None:
            return []
        split = "train" if row["split"] in TRAINED else row["split"]
        return _index(self.settings.recordings).get((split, row["language"], row["text"].strip()), [])

    def _said(self, row: Row, rng: np.random.Generator) -> tuple[Wave, str]:
        """Return the waveform of a row's text, undisturbed, and who speaks."""
        settings, card = self.settings, self.cards[row["language"]]
        delivery = Delivery(
            rate=rng.uniform(*settings.speeds), pitch=int(rng.integers(*PITCHES)), range=int(rng.integers(*RANGES)),
            volume=10 ** (rng.uniform(*settings.levels) / 20),
        )  # fmt: skip
        if found := self._recordings(row):
            path, speaker = found[int(rng.integers(len(found)))]
            return shape_level(read_audio(path), delivery), f"recordings/{speaker}"
        pools = self.pools(row["language"], row["split"])
        shares = np.array([pool.share for pool in pools])
        pool = pools[int(rng.choice(len(pools), p=shares / shares.sum()))]
        voice = pool.voices[int(rng.integers(len(pool.voices)))]
        text = vocaliser.vocalise(row["text"]) if card.vocaliser and settings.vocalise else row["text"]
        wave = synthesiser(pool.engine).speak(text, voice, delivery, card.speech.words_per_minute)
        return wave, f"{pool.engine}/{voice.name.removeprefix(f'{pool.engine}-')}"

    def _disturbed(self, wave: Wave, rng: np.random.Generator) -> Wave:
        in_room, in_noise = rng.random(2) < (self.settings.rooms, self.settings.noise)
        if in_room:
            wave = add_room(wave, rng.uniform(*REVERBERATION), rng.uniform(*DIRECT), rng)
        return add_noise(wave, rng.uniform(*NOISE), rng) if in_noise else wave


def _voices(engine: str, accents: tuple[str, ...]) -> tuple[Voice, ...]:
    found = synthesiser(engine)
    found.version()
    return tuple(found.voices(accents))


def _if_there(engine: str, accents: tuple[str, ...]) -> Pool | None:
    """Return the pool of an engine of the test; None where it is not installed."""
    try:
        return Pool(engine, 1.0, _voices(engine, accents))
    except VoiceError:
        return None


# ---- recordings ---------------------------------------------------------------------------------------------


class _Recording(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    text: str
    language: str
    audio: str
    speaker: str
    split: str = "train"


def _manifest(folder: str) -> Path:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise CorpusError(f"{path}: not there; corpus.speech.recordings must hold a UTF-8 {MANIFEST}")
    return path


@lru_cache(maxsize=4)
def _index(folder: str) -> dict[tuple[str, str, str], list[tuple[str, str]]]:
    """Return (split, language, text) -> path and speaker of each recording."""
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for number, line in enumerate(read_lines(_manifest(folder)), 1):
        if line.strip():
            try:
                item = _Recording.model_validate_json(line)
            except ValidationError as error:
                known = ", ".join(_Recording.model_fields)
                raise CorpusError(
                    f"{_manifest(folder)}, line {number}: {first_line(error)} (known keys: {known})"
                ) from None
            key = ("train" if item.split in TRAINED else item.split, item.language, item.text.strip())
            found.setdefault(key, []).append((str(Path(folder) / item.audio), item.speaker))
    return found
