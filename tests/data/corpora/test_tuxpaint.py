"""Tux Paint's stamps: people are heard where they read the caption, and never trained on unless that is asked for."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sta.config.cards import LanguageCard, load_language
from sta.data.corpora.tuxpaint import TuxpaintSettings, TuxpaintSource
from sta.data.rows import Row, Sample
from sta.data.unreadable import Unreadable
from sta.errors import CorpusError
from tests.picturebook_fixtures import write_emoji, write_speech, write_stamps


def card(code: str) -> LanguageCard:
    return load_language("en").model_copy(update={"code": code})


CARDS = {code: card(code) for code in ("en", "fr", "be", "ar")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve things twice, of which one recording is far too long, and files that belong to nothing."""
    root = write_stamps(tmp_path_factory.mktemp("stamps"))
    write_speech(root / "animals/3a_desc_fr.ogg", 6.0)
    write_speech(root / "animals/4a_desc_fr.ogg", 0.02)
    write_speech(root / "animals/lost_desc_fr.ogg", 1.0)
    write_speech(root / "animals/0a_desc.ogg", 0.6)
    (root / "animals/gift.txt").write_text("A gift.\n", encoding="utf-8")
    return root


def source(root: Path, **changes: Any) -> TuxpaintSource:
    return TuxpaintSource(TuxpaintSettings(name="tuxpaint", root=str(root), **changes), CARDS, 0)


def read(corpus: TuxpaintSource) -> tuple[list[Row], list[Unreadable]]:
    found = [item for shard in corpus.shards() for item in shard.samples()]
    rows = [item.row for item in found if isinstance(item, Sample)]
    return rows, [item for item in found if isinstance(item, Unreadable)]


@pytest.fixture(scope="module")
def made(root: Path) -> tuple[list[Row], list[Unreadable]]:
    return read(source(root))


def test_recordings_are_of_people_and_other_captions_are_written(
    made: tuple[list[Row], list[Unreadable]],
) -> None:
    spoken = {split: {row["language"] for row in made[0] if row["split"] == split} for split in ("people", "phrase")}
    assert spoken == {"people": {"en", "fr", "be"}, "phrase": {"en", "fr", "ar"}}
    assert all((row["audio"] is not None) == (row["split"] == "people") for row in made[0])
    assert Counter(row["language"] for row in made[0]) == dict.fromkeys(CARDS, 24)
    assert {row["text"] for row in made[0] if row["image_id"] == "animals/1a"} == {
        "A thing number ii.", "Une thing number ii.", "Рэч thing number ii.", "شيء thing number ii"
    }  # fmt: skip


def test_a_recording_of_another_pace_is_left_out_and_its_caption_is_written(
    made: tuple[list[Row], list[Unreadable]],
) -> None:
    rows = {row["id"]: row for row in made[0]}
    for stamp in ("animals/3a", "animals/4a"):
        assert rows[f"{stamp}-fr"]["audio"] is None
        assert rows[f"{stamp}-be"]["audio"] is not None
    named = [entry for entry in made[1] if "times the usual time" in entry.reason]
    assert [entry.id for entry in named] == ["animals/3a_desc_fr.ogg", "animals/4a_desc_fr.ogg"]
    assert {entry.rows for entry in named} == {0}


def test_files_that_belong_to_nothing_are_named(made: tuple[list[Row], list[Unreadable]]) -> None:
    named = {entry.id: (entry.rows, entry.reason) for entry in made[1] if "usual" not in entry.reason}
    assert set(named) == {"animals/gift", "animals/lost_desc_fr.ogg"}
    assert named["animals/gift"][0] == 1
    assert "has no picture beside it" in named["animals/gift"][1]


def test_letters_are_left_out(root: Path, made: tuple[list[Row], list[Unreadable]]) -> None:
    assert all(row["image_id"].startswith("animals/") for row in made[0])
    assert any(row["image_id"] == "symbols/a" for row in read(source(root, leave_out=[]))[0])


def test_training_is_split_by_the_english_caption(root: Path) -> None:
    rows, _ = read(source(root, train=True, validation=0.5))
    assert {row["split"] for row in rows} == {"train", "validation", "people", "phrase"}
    sides: dict[str, set[str]] = {}
    for row in rows:
        side = "test" if row["split"] in ("people", "phrase") else row["split"]
        sides.setdefault(row["label"], set()).add(side)
    assert len(sides) == 12
    assert all(len(found) == 1 for found in sides.values())
    assert any(row["audio"] is not None for row in rows if row["split"] == "train")


def test_people_of_belarusian_are_never_trained_on(root: Path) -> None:
    rows, _ = read(source(root, train=True))
    belarusian = [row for row in rows if row["language"] == "be"]
    assert all(row["audio"] is None for row in belarusian if row["split"] not in ("people", "phrase"))
    assert any(row["audio"] is not None for row in belarusian)


def test_a_caption_that_names_an_emoji_has_its_label(tmp_path: Path) -> None:
    stamps, emoji = write_stamps(tmp_path / "stamps", 2), write_emoji(tmp_path / "emoji")
    (stamps / "animals/0a.txt").write_text("A dog.\n", encoding="utf-8")
    rows, _ = read(source(stamps, concepts=str(emoji)))
    labels = {row["image_id"]: row["label"] for row in rows}
    assert labels["animals/0a"] == "1F415"
    assert labels["animals/1a"] == "a-thing-number-ii"


def test_pictures_are_square_on_white_in_their_own_resolution(made: tuple[list[Row], list[Unreadable]]) -> None:
    data = {row["image_id"]: row["image"]["bytes"] for row in made[0]}
    raster, drawn = (np.asarray(Image.open(io.BytesIO(data[name]))) for name in ("animals/1a", "animals/1b"))
    assert raster.shape == (8, 8, 3)
    assert (raster[[0, -1]] == 255).all()
    assert drawn.shape == (256, 256, 3)  # in points, which take no dots an inch for nothing
    assert (drawn == 0).any()


def test_a_picture_that_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    stamps = write_stamps(tmp_path, 1)
    (stamps / "animals/0b.svg").write_text("<svg", encoding="utf-8")
    rows, lost = read(source(stamps))
    assert {row["image_id"] for row in rows} == {"animals/0a"}
    assert {entry.id for entry in lost} == {f"animals/0b-{code}" for code in CARDS}


def test_a_folder_without_stamps_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no stamps; run apt-get install tuxpaint-stamps-default"):
        source(tmp_path).check()


def test_a_changed_file_makes_another_corpus(tmp_path: Path) -> None:
    stamps = write_stamps(tmp_path, 1)
    before = source(stamps).version()
    assert source(stamps).version() == before
    (stamps / "animals/0a.txt").write_text("A dog.\n", encoding="utf-8")
    assert source(stamps).version() != before


@pytest.mark.parametrize("train", [False, True])
def test_its_licence_is_one_of_the_weights_only_if_they_learnt_from_it(root: Path, train: bool) -> None:
    card = source(root, train=train).card()
    assert list(card.licences.values()) == ["gpl-2.0"] * train
    assert train or "gpl-2.0" in card.description
