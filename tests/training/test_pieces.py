"""The pieces of a teacher that is trained here: as many as its text tower asks for, of all languages together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sta.config.cards import TeacherCard, TrainedClipCard, load_language, load_teacher
from sta.config.recipe import load_recipe
from sta.data.rows import Column
from sta.data.text import Pieces
from sta.errors import RecipeError
from sta.models.teachers.trained_clip import PieceTokenizer
from sta.training.prepare import _train_teacher_pieces, train_pieces
from sta.training.workspace import Spellings, Workspace

#: 900 characters in captions of six.
CHINESE = ["".join(chr(0x4E00 + 6 * n + k) for k in range(6)) for n in range(150)]


def teacher(vocabulary: int) -> TeacherCard:
    card = load_teacher("garden-clip")
    assert isinstance(card, TrainedClipCard)
    config = card.config | {"text_cfg": card.config["text_cfg"] | {"vocab_size": vocabulary}}
    return card.model_copy(update={"config": config})


def train(folder: Path, captions: list[str], vocabulary: int, coverage: float = 1.0) -> Pieces:
    english, chinese = load_language("en"), load_language("ar")
    covering = chinese.sentencepiece.model_copy(update={"character_coverage": coverage})
    chinese = chinese.model_copy(update={"code": "zh", "sentencepiece": covering})
    workspace: Any = SimpleNamespace(
        recipe=load_recipe("garden-tiny"), teacher_card=teacher(vocabulary), texts=captions,
        cards={"en": english, "zh": chinese}, corpus=SimpleNamespace(select=lambda split: np.arange(len(captions))),
    )  # fmt: skip
    _train_teacher_pieces(workspace, folder)
    return Pieces.load(folder / "teacher.model")


def test_a_large_tower_has_room_for_many_characters(tmp_path: Path) -> None:
    pieces = train(tmp_path, CHINESE, 2000)
    assert 900 < pieces.size <= 1997
    assert 0 not in pieces.encode(CHINESE[-1])
    PieceTokenizer(pieces, 8, 2000)


def test_of_a_small_one_the_error_names_what_to_raise(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"at least 902: raise config\.text_cfg\.vocab_size of teacher 'garden-clip', which"
    ):
        train(tmp_path, CHINESE, 512)


def test_the_least_coverage_of_the_languages_holds(tmp_path: Path) -> None:
    """What the error advises: characters that are rare in a language are left to the unknown piece."""
    often = [CHINESE[n % 10] for n in range(8000)]
    assert train(tmp_path, [*often, *CHINESE], 512, coverage=0.98).size < 512


def test_a_published_teacher_has_pieces_of_its_own(tmp_path: Path) -> None:
    for name, wanted in (("garden-clip", True), ("vit-b-32", False)):
        made = Workspace(load_recipe("garden-tiny", [f"teacher={name}"]), tmp_path).prepared
        assert ("teacher's pieces" in made) == wanted


def test_teachers_of_one_corpus_do_not_share_them(tmp_path: Path) -> None:
    made = [
        Workspace(load_recipe("garden-tiny", [f"teacher={t}"]), tmp_path) for t in ("garden-clip", "garden-clip-64")
    ]
    assert made[0].cache == made[1].cache
    assert made[0].prepared["teacher's pieces"] != made[1].prepared["teacher's pieces"]


def test_a_recipe_may_ask_for_fewer_pieces_than_the_card(tmp_path: Path) -> None:
    captions = ["a red bird flies over the meadow", "a yellow flower in the forest", "two small birds"] * 40
    sizes = {}
    for asked in ("null", "24"):
        recipe = load_recipe("garden-tiny", ["languages=[en]", f"encoder.pieces={asked}"])
        corpus = SimpleNamespace(select=lambda *of: np.arange(len(captions)), has_text=np.ones(len(captions), bool))
        workspace: Any = SimpleNamespace(recipe=recipe, cards=recipe.cards(), spellings=captions, corpus=corpus)
        train_pieces(workspace, tmp_path)
        sizes[asked] = Pieces.load(tmp_path / "en.model").size
    assert sizes["24"] <= 24 < sizes["null"]
    few, own = (
        Workspace(load_recipe("garden-tiny", ["languages=[en]", f"encoder.pieces={n}"]), tmp_path)
        for n in ("24", "null")
    )
    assert few.prepared["pieces"] != own.prepared["pieces"]
    assert few.cache == own.cache, "the recordings are the same"


def test_captions_are_spelled_by_their_sounds_where_the_recipe_says_so(tmp_path: Path) -> None:
    texts, codes = ["a knight", "une eau", "a night", "a knight"], ["en", "fr", "en", "en"]

    class Said(list[str]):
        languages = Column(pa.chunked_array([codes]))

    spelled = Spellings(Said(texts), {"en": load_language("en")})  # type: ignore[arg-type]
    assert [spelled[row] for row in range(4)] == ["ɐ naɪt", "une eau", "ɐ naɪt", "ɐ naɪt"]
    letters, sounds = (
        Workspace(load_recipe("garden-tiny", ["languages=[en]", f"encoder.phonemes={which}"]), tmp_path)
        for which in ("[]", "[en]")
    )
    assert letters.prepared["pieces"] != sounds.prepared["pieces"]
    assert letters.cache == sounds.cache
