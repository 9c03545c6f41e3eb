"""Written rows are spoken: who speaks which split, the same whenever and wherever, and engines that are missing."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sta.config.cards import LanguageCard, load_language
from sta.config.recipe import CorpusSettings, SpeechSettings, load_recipe
from sta.data.audio import read_audio, write_wav
from sta.data.corpora.base import CorpusShard, CorpusSource, open_source
from sta.data.corpora.mixture import MixtureSettings
from sta.data.rows import Corpus, Row, Sample, file_column, payload, write_shard
from sta.data.speech import Speech, other_engines
from sta.data.synthesis.base import Delivery, Synthesiser, Voice, Wave, shape_level
from sta.errors import CorpusError, NoSoundError, RecipeError, VoiceError
from tests.conftest import write_corpus

TONE, PIP, BELL, LOST = (f"{__name__}:{name}" for name in ("Tone", "Pip", "Bell", "Lost"))


class Tone(Synthesiser):
    """A synthesiser whose every word is a tone."""

    def voices(self, accents: Sequence[str]) -> list[Voice]:
        return [Voice(accent, accent) for accent in accents]

    def speak(self, text: str, voice: Voice, delivery: Delivery, words_per_minute: int) -> Wave:
        if not text.isascii():
            raise NoSoundError("only ASCII is heard")
        seconds = 60 * len(text.split()) / (words_per_minute * delivery.rate)
        return shape_level(np.sin(np.arange(round(16_000 * seconds)) / 9).astype(np.float32), delivery)


class Pip(Tone):
    """Another one."""


class Bell(Tone):
    """Another one."""


class Lost(Tone):
    """One that is not installed."""

    def version(self) -> str:
        raise VoiceError("lost is not installed; `pip install lost` brings it")


class WrittenSettings(CorpusSettings):
    rows: int = 24


@dataclass(frozen=True)
class WrittenShard(CorpusShard):
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def samples(self) -> Iterator[Sample]:
        picture = io.BytesIO()
        Image.new("RGB", (16, 16)).save(picture, "PNG")
        for number in self.numbers:
            row = written(f"row-{number}", ("train", "train", "validation", "test")[number % 4])
            yield Sample({**row, "image": file_column(picture.getvalue()), "image_id": f"row-{number}"}, "here")


class WrittenSource(CorpusSource):
    Settings = WrittenSettings
    settings: WrittenSettings

    def shards(self) -> Sequence[CorpusShard]:
        return [WrittenShard(range(n, n + 8)) for n in range(0, self.settings.rows, 8)]


def card(code: str = "en", **speech: Any) -> LanguageCard:
    given = load_language(code)
    changed = {"other_engines": {TONE: ("one", "two")}, "test_engines": {BELL: ("three",)}, **speech}
    return given.model_copy(update={"speech": given.speech.model_copy(update=changed)})


def speech(cards: Sequence[LanguageCard] = (), seed: int = 3, **settings: Any) -> Speech:
    engines = {"engines": {"espeak": 1.0, TONE: 1.0}, "rooms": 0.0, "noise": 0.0, **settings}
    return Speech(SpeechSettings(**engines), {each.code: each for each in cards or [card()]}, seed)


def written(name: str, split: str = "train", text: str | None = "two words", language: str = "en") -> Row:
    return {"id": name, "split": split, "text": text, "language": language}


def spoken(by: Speech, count: int = 20, split: str = "train", **row: Any) -> list[Row]:
    return [by.speak(written(f"row-{n}", split, **row)) for n in range(count)]


def engines(rows: Sequence[Row]) -> set[str]:
    return {row["speaker"].rpartition("/")[0] for row in rows}


def wave(row: Row) -> Wave:
    source = payload(row["audio"])
    assert source is not None
    return read_audio(source)


def test_who_speaks_follows_from_the_split() -> None:
    by = speech()
    trained, validated, tested = (spoken(by, split=split) for split in ("train", "validation", "voice"))
    assert engines(trained) == engines(validated) == {"espeak", TONE}
    assert engines(tested) == {"espeak"}
    assert engines(spoken(by, split="engine")) == {BELL}, "the engine of the test alone"
    assert not {row["speaker"] for row in trained} & {row["speaker"] for row in tested}
    assert {row["speaker"].partition("+")[0] for row in tested} == {"espeak/en-gb-scotland", "espeak/en-us-nyc"}


def test_engines_have_their_share() -> None:
    by = speech([card(other_engines={TONE: ("one",), PIP: ("two",)})], engines={TONE: 1.0, PIP: 4.0})
    assert np.mean([row["speaker"].startswith(PIP) for row in spoken(by, 400)]) == pytest.approx(0.8, abs=0.06)


def test_a_row_and_a_seed_always_give_the_same_recording() -> None:
    first, again = speech(rooms=0.5, noise=0.5), pickle.loads(pickle.dumps(speech(rooms=0.5, noise=0.5)))
    rows = spoken(first)
    assert rows[::-1] == [again.speak(written(f"row-{n}")) for n in reversed(range(20))]
    assert rows != spoken(speech(seed=4, rooms=0.5, noise=0.5))
    assert len({row["speaker"] for row in rows}) > 5


@pytest.mark.parametrize(
    "row",
    [
        written("a", "people"), written("a", text=None), written("a", text=""), written("a", language="fr"),
        {**written("a"), "audio": file_column("/there.wav"), "speaker": "ann"},
    ],
)  # fmt: skip
def test_rows_that_stay_as_they_are(row: Row) -> None:
    assert not speech().speaks(row)
    assert speech().speak(row) == row


def test_a_row_that_nobody_can_speak_stays_silent() -> None:
    by = speech([card(test_engines={LOST: ("four",)})])
    row = written("a", "engine")
    assert by.speak(row) == row
    only = speech(engines={TONE: 1.0})
    assert only.speaks(written("a", text="été"))
    assert only.speak(written("a", text="été")).get("audio") is None


def test_speeds_and_levels_are_those_asked_for() -> None:
    by = speech(engines={TONE: 1.0}, speeds=(0.5, 2.0), levels=(-20.0, 0.0))
    waves = [wave(row) for row in spoken(by, 100)]
    own = 60 * 2 / load_language("en").speech.words_per_minute * 16_000
    rates = own / np.array([len(each) for each in waves])
    decibels = 20 * np.log10([np.sqrt(np.mean(each**2)) for each in waves])
    assert 0.5 <= rates.min() * 1.001 < 0.6 < 1.9 < rates.max() <= 2.001
    assert -41.1 <= decibels.min() < -39 < -23 < decibels.max() <= -20.9


def test_rooms_and_noise_are_in_training_alone() -> None:
    plain, disturbed = (speech(engines={TONE: 1.0}, rooms=share, noise=share) for share in (0.0, 1.0))
    for one, other in zip(spoken(plain, 5), spoken(disturbed, 5), strict=True):
        assert len(wave(one)) == len(wave(other))
        assert not np.array_equal(wave(one), wave(other))
    assert spoken(plain, 5, "validation") == spoken(disturbed, 5, "validation")


def test_recordings_come_before_synthesis(tmp_path: Path) -> None:
    write_wav(tmp_path / "ann.wav", (0.1 * np.sin(np.arange(8000) / 7)).astype(np.float32))
    lines = [
        {"text": "two words", "language": "en", "audio": "ann.wav", "speaker": "ann"},
        {"text": "other words", "language": "en", "audio": "ann.wav", "speaker": "bob", "split": "people"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    by = speech(recordings=str(tmp_path))
    assert {row["speaker"] for row in spoken(by, 5)} == {"recordings/ann"}
    assert len(wave(spoken(by, 1)[0])) == 8000
    assert engines(spoken(by, 5, "voice")) == {"espeak"}
    assert spoken(by, 1, "people", text="other words")[0]["speaker"] == "recordings/bob"
    assert "audio" not in spoken(by, 1, "people")[0]
    before = by.version()
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**lines[0], "speaker": 3}), encoding="utf-8")
    assert by.version() != before
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "metadata.jsonl").write_text('{"text": "a"}', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"metadata.jsonl, line 1: .*known keys: text, language"):
        speech(recordings=str(tmp_path / "wrong")).speaks(written("a", text="new"))
    with pytest.raises(CorpusError, match="metadata.jsonl: not there"):
        speech(recordings=str(tmp_path / "none")).version()


def test_the_version_is_of_settings_cards_and_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    before = speech().version()
    assert speech().version() == before == json.loads(json.dumps(before))
    assert speech(rooms=0.1).version() != before
    assert speech(engines={TONE: 1.0}).version() != before
    monkeypatch.setattr(Tone, "version", lambda self: "2")
    assert speech().version() != before


def test_engines_of_the_test_are_not_in_the_version_and_are_named(tmp_path: Path) -> None:
    """A corpus is the same where they are missing; a line says who spoke, if that is not who would speak now."""
    here, elsewhere = (speech([card(test_engines={BELL: ("a",), name: ("b",)})]) for name in (LOST, PIP))
    assert here.version() == elsewhere.version()
    (tmp_path / "shards").mkdir()
    write_shard([here.speak(written("row", "engine"))], tmp_path / "shards" / "0.arrow")
    corpus = Corpus(tmp_path)
    assert corpus.column("speaker")[0] == f"{BELL}/a"
    assert other_engines([here], corpus) == other_engines([], corpus) == []
    said = f"split engine is as it was spoken, by {BELL}; this machine has {BELL}, {PIP}"
    assert other_engines([here, elsewhere], corpus) == [said]


@pytest.mark.parametrize(
    ("cards", "asked", "said"),
    [
        (
            [card(other_engines={LOST: ("a",)})],
            {"espeak": 1.0, LOST: 1.0},
            "'en': lost is not installed.*corpus.speech",
        ),
        ([card()], {"espeak": 1.0, "klatt": 1.0}, r"trains on 'klatt' \(known: espeak, tests"),
        ([card()], {"espeak": 1.0, BELL: 1.0}, "trains on '.*Bell'.*test_engines are kept for the test"),
        ([card(), card("ar", other_engines={})], {TONE: 1.0}, "none of .*Tone speaks 'ar'; add one of espeak"),
    ],
)
def test_engines_that_cannot_train(cards: list[LanguageCard], asked: dict[str, float], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        speech(cards, engines=asked).version()


def test_settings_that_do_not_hold() -> None:
    for wrong in ({"speeds": (1.2, 0.8)}, {"rooms": 2.0}, {"engines": {"espeak": 0.0}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SpeechSettings(**wrong)  # type: ignore[arg-type]


# ---- in a corpus --------------------------------------------------------------------------------------------

NAME = f"{__name__}:WrittenSource"
SPEECH = {"engines": {"espeak": 1.0}, "speeds": [1.0, 1.0]}


def source(**changes: Any) -> CorpusSource:
    settings = WrittenSettings.model_validate({"name": NAME, "size": 16, **changes})
    return open_source(settings, {"en": card()}, 3)


def test_shards_are_spoken_and_resumed(tmp_path: Path) -> None:
    corpus = write_corpus(source(speech=SPEECH), tmp_path / "whole")
    assert corpus.has_audio.all()
    assert len(set(corpus.column("speaker"))) > 10
    again = tmp_path / "again"
    again.mkdir()
    shards = source(speech=SPEECH).spoken_shards()
    for number in (2, 0):
        pickle.loads(pickle.dumps(shards[number])).write(number, again)
    resumed = write_corpus(source(speech=SPEECH), again)
    for row in range(len(corpus)):
        np.testing.assert_array_equal(corpus.waveform(row), resumed.waveform(row))


def test_without_the_section_rows_stay_silent_and_the_version_is_as_ever() -> None:
    silent = source()
    assert [shard.samples() for shard in silent.spoken_shards()] != []
    assert all("audio" not in found.row for shard in silent.spoken_shards() for found in shard.samples())  # type: ignore[union-attr]
    assert silent.version() == {"name": NAME, "size": 16, "rows": 24}
    assert "speech" in source(speech=SPEECH).version()  # type: ignore[operator]


def test_a_plan_counts_what_will_be_spoken() -> None:
    assert source().outline(24).recordings == 0
    outline = source(speech=SPEECH).outline(8)
    assert (outline.recordings, outline.others) == (12, 12)
    assert outline.seconds is not None
    assert all(payload(row["audio"]) for row in outline.sample)


def test_parts_of_a_mixture_speak_as_the_whole_does(tmp_path: Path) -> None:
    parts = [{"corpus": {"name": NAME}}, {"corpus": {"name": NAME, "speech": None}}]
    settings = MixtureSettings.model_validate({"name": "mixture", "size": 16, "speech": SPEECH, "parts": parts})
    corpus = write_corpus(open_source(settings, {"en": card()}, 3), tmp_path / "mixture")
    np.testing.assert_array_equal(corpus.has_audio, corpus.part_of == 0)


def test_a_recipe_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: garden-tiny\nname: mine\n", encoding="utf-8")
    recipe = load_recipe(path, ["corpus.speech.engines.pico=0.5", "corpus.speech.recordings=voices"])
    assert recipe.corpus.speech is not None
    assert recipe.corpus.speech.engines == {"pico": 0.5}
    assert Path(str(recipe.corpus.speech.recordings)).is_absolute()
