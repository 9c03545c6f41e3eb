from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sta.config import yamlfile
from sta.config.cards import SentencePieceCard, load_language
from sta.data.text import STEPS, Pieces, normalise, train_sentencepiece
from sta.errors import CorpusError, RecipeError

CARD = SentencePieceCard(vocab_size=60)
TEXTS = [f"a {size} bird with a {c} head" for size in ("small", "large") for c in ("red", "blue", "green", "yellow")]
ARABIC = ["طائر صغير راسه احمر وبطنه ازرق", "زهرة بتلاتها حمراء ووسطها اصفر", "طائر كبير في الغابة"]


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("nfc", "cafe\u0301", "caf\u00e9"),
        ("lowercase", "ÄPFEL und ΣΟΦΟΣ", "äpfel und σοφος"),
        ("lowercase", "J\u030c", "\u01f0"),
        ("strip_invisible", "\ufeffa\u200f b\u00ad\nc", "a b c"),
        ("strip_invisible", "می\u200cخواهم", "می\u200cخواهم"),
        ("strip_punctuation", "don’t stop — now!", "don't stop   now "),
        ("strip_punctuation", "'ng'ombe', sema?", " ng'ombe   sema "),
        ("strip_punctuation", "طائر، أحمر؟", "طائر  أحمر "),
        ("collapse_spaces", "  a\u00a0 b\t c ", "a b c"),
        ("strip_tatweel", "جمـــيل", "جميل"),
        ("strip_diacritics_arabic", "رَأْسُهُ بُنِّيٌّ", "رأسه بني"),
        ("strip_diacritics_arabic", "آلٰة", "آلة"),
        ("strip_diacritics_arabic", "हिन्दी é", "हिन्दी é"),
        ("unify_alef", "أحمر إلى آخر ٱلطير", "احمر الى اخر الطير"),
        ("digits_to_ascii", "٣ ۴ ५ ½", "3 4 5 ½"),
    ],
)
def test_step(step: str, text: str, expected: str) -> None:
    assert STEPS[step](text) == expected


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("en", "A small, RED-headed bird’s nest: 12 eggs!", "a small red headed bird's nest 12 eggs"),
        ("ar", "«طَائِرٌ أَحْمَرُ»، وَجَنَاحَاهُ زَرْقَاوَانِ ١٢!", "طائر احمر وجناحاه زرقاوان 12"),
        ("ar", "هٰذَا جَمِـــيلٌ جِدًّا", "هذا جميل جدا"),
    ],
)
def test_golden_strings(code: str, text: str, expected: str) -> None:
    assert normalise(text, load_language(code).normaliser) == expected


@given(text=st.text(), steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=6))
def test_twice_is_once(text: str, steps: list[str]) -> None:
    once = normalise(text, steps)
    assert normalise(once, steps) == once


@pytest.mark.parametrize("code", yamlfile.names("languages"))
@given(text=st.text(st.characters(categories=["L"]), min_size=1))
def test_letters_of_any_script_survive(code: str, text: str) -> None:
    kept = normalise(text, [s for s in load_language(code).normaliser if s != "strip_tatweel"])
    assert kept


def test_unknown_step_is_named() -> None:
    with pytest.raises(RecipeError, match=r"'lowercas'; did you mean 'lowercase'\? \(known: nfc, lowercase,"):
        normalise("a", ["nfc", "lowercas"])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("texts", [TEXTS, ARABIC], ids=["en", "ar"])
def test_pieces_round_trip(tmp_path: Path, texts: list[str], model_type: str) -> None:
    card = SentencePieceCard.model_validate({"vocab_size": 60, "model_type": model_type})
    pieces = Pieces.load(train_sentencepiece(texts, card, tmp_path / "deep" / "pieces.model"))
    for text in texts:
        ids = pieces.encode(text)
        assert pieces.decode(ids) == text
        assert all(0 < i < pieces.size for i in ids)
    assert 0 in pieces.encode("日本")


def test_training_is_deterministic_silent_and_leaves_one_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = (train_sentencepiece(TEXTS, CARD, tmp_path / name, seed=3) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert capfd.readouterr() == ("", "")


def test_vocabulary_shrinks_to_what_there_is(tmp_path: Path) -> None:
    assert 1 < Pieces.load(train_sentencepiece(TEXTS, SentencePieceCard(vocab_size=8000), tmp_path / "m")).size < 200


def test_vocabulary_below_the_alphabet_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match=r"cannot make 5 pieces from 8 texts with \d+ .*: raise the size, or lower"):
        train_sentencepiece(TEXTS, SentencePieceCard(vocab_size=5), tmp_path / "m", setting="the size")
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no text"):
        train_sentencepiece(["", ""], CARD, tmp_path / "m")


def test_a_language_without_text_has_no_pieces(tmp_path: Path) -> None:
    path = tmp_path / "pieces.model"
    path.write_bytes(Pieces().serialized())
    pieces = Pieces.load(path)
    assert (pieces.size, pieces.encode("a bird"), pieces.decode([0])) == (1, [], "")
    assert pieces.serialized() == Pieces().serialized()


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_unreadable_model_is_named(tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pieces.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=r"pieces\.model: not a readable SentencePiece model"):
        Pieces.load(path)
    assert capfd.readouterr() == ("", "")
