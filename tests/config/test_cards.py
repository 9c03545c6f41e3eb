from pathlib import Path

import pytest
import yaml

from sta.config import yamlfile
from sta.config.cards import EVERY_FORM, LanguageCard, OpenClipCard, load_language, load_teacher, released_language
from sta.data.synthesis.espeak import speakers
from sta.data.text import STEPS, normalise
from sta.errors import RecipeError

ROOT = Path(__file__).parents[2]
LANGUAGES = sorted(p.stem for p in (ROOT / "languages").glob("*.yaml"))
TEACHERS = sorted(p.stem for p in (ROOT / "teachers").glob("*.yaml"))
SWAHILI = """
code: sw
name: Swahili
native_name: Kiswahili
script: Latn
direction: ltr
normaliser: [nfc, lowercase]
sentencepiece: {vocab_size: 300}
speech: {voices: [sw], words_per_minute: 170}
test_sentence: ndege mdogo mwenye kichwa chekundu
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "card.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_card_on_disk_is_tested() -> None:
    assert set(LANGUAGES) == set(yamlfile.names("languages")) >= {"en", "ar"}
    assert set(TEACHERS) == set(yamlfile.names("teachers")) >= {"vit-b-32", "vit-l-14", "rn50x64"}


@pytest.mark.parametrize("code", LANGUAGES)
def test_language_loads_and_keeps_its_own_text(code: str) -> None:
    card = load_language(code)
    assert card.code == code
    assert set(card.normaliser) <= set(STEPS)
    plain = normalise(card.test_sentence, card.normaliser)
    assert len(plain.split()) == len(card.test_sentence.split()), "the normaliser swallows words"
    assert yamlfile.validate(LanguageCard, card.model_dump(mode="json"), "dumped") == card


@pytest.mark.parametrize("code", LANGUAGES)
def test_language_has_carriers_and_voices_for_the_test(code: str) -> None:
    card = load_language(code)
    assert 8 <= len(set(card.carriers)) == len(card.carriers) <= 12
    said = [normalise(carrier.format(name="NAME"), card.normaliser) for carrier in card.carriers]
    assert len(set(said)) == len(said), "no two may differ in what the normaliser takes away"
    train, test = speakers(card.speech.voices, card.speech.test_voices)
    assert len(train) >= 23
    assert len(test) >= 9
    assert not {"kokoro", "piper", "flite"} & set(card.speech.other_engines)


def test_eight_languages_are_there_and_three_have_an_engine_that_nobody_trains_on() -> None:
    assert set(LANGUAGES) >= {"en", "ar", "fr", "es", "ru", "de", "ca", "ro"}
    assert {code for code in LANGUAGES if load_language(code).speech.test_engines} >= {"en", "fr", "es"}


@pytest.mark.parametrize("name", TEACHERS)
def test_teacher_loads(name: str) -> None:
    card = load_teacher(name)
    assert card.name == name
    digest = getattr(card, "sha256", None)
    assert digest is None or digest in card.source
    assert yamlfile.validate(type(card), card.model_dump(mode="json"), "dumped") == card


@pytest.mark.parametrize("name", TEACHERS)
def test_teacher_agrees_with_open_clip(name: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    card = load_teacher(name)
    if not isinstance(card, OpenClipCard):
        pytest.skip("has its own configuration")
    config = open_clip.get_model_config(card.architecture)
    assert (config["embed_dim"], config["vision_cfg"]["image_size"]) == (card.embedding_width, card.image_size)
    tag = open_clip.get_pretrained_cfg(card.architecture, card.pretrained)
    assert (card.architecture, card.pretrained) in open_clip.list_pretrained()
    assert tag.get("quick_gelu", False) == config.get("quick_gelu", False)


@pytest.mark.parametrize("code", ["en", "ar"])
def test_a_card_of_an_older_release_holds(code: str) -> None:
    """The release that ships was made by version 0.1, whose cards had phrases too; a card of today has none."""
    text = (ROOT / "sta" / "pretrained" / "garden" / "languages" / code / "card.json").read_text(encoding="utf-8")
    assert '"phrases"' in text
    card, today = released_language(text), load_language(code)
    speech = today.speech.model_copy(update={"test_engines": {}})
    assert card == today.model_copy(update={"speech": speech, "carriers": (), "vocaliser": None})
    assert released_language(card.model_dump_json()) == card
    with pytest.raises(ValueError, match="phrases"):
        LanguageCard.model_validate_json(text)


def test_small_card_takes_the_defaults(tmp_path: Path) -> None:
    card = load_language(write(tmp_path, SWAHILI))
    assert (card.garden, card.speech.test_voices, card.sentencepiece.model_type) == (None, (), "unigram")


def test_plain_word_serves_every_form(tmp_path: Path) -> None:
    garden = "garden: {join: {between: ', ', last: ' na '}, kinds: {}, lexicon: {blue: bluu, red: {m: mwekundu}}}"
    lexicon = load_language(write(tmp_path, SWAHILI + garden)).garden.lexicon  # type: ignore[union-attr]
    assert lexicon == {"blue": {EVERY_FORM: "bluu"}, "red": {"m": "mwekundu"}}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("direction: ltr", "direction: left", ["'direction'", "'left'", "'ltr' or 'rtl'"]),
        ("vocab_size: 300", "vocab_size: '300'", ["'sentencepiece.vocab_size'", "'300'", "integer"]),
        ("vocab_size: 300", "vocabsize: 300", ["'sentencepiece.vocab_size' is missing"]),
        ("voices: [sw]", "voices: [sw], voces: [sw]", ["'speech.voces'", "did you mean 'voices'?", "test_voices"]),
        ("voices: [sw]", "voices: [sw], test_voices: [sw]", ["'speech'", "sw in both voices and test_voices"]),
        ("voices: [sw]", "voices: []", ["'speech.voices'", "at least 1"]),
        ("voices: [sw]", "voices: [sw], test_engines: {espeak: [sw]}", ["espeak trains and is in test_engines"]),
        ("voices: [sw]", "voices: [sw], other_engines: {vits: []}", ["'speech.other_engines.vits'", "at least 1"]),
        ("code: sw", "code: sw\ncarriers: [picha ya]", ["'carriers.0'", "picha ya"]),
        ("code: sw", "code: sw\ncarriers: ['picha ya {nam}']", ["'carriers.0'", "{nam}"]),
        ("code: sw", "code: sw\nvocaliser: tashkil", ["'vocaliser'", "'tashkeel'"]),
        ("code: sw", "code: Swahili", ["'code'", "'Swahili'"]),
        ("words_per_minute: 170", "words_per_minute: 9000", ["'speech.words_per_minute'", "9000", "450"]),
    ],
)
def test_mistake_in_a_language_is_named(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    path = write(tmp_path, SWAHILI.replace(old, new))
    with pytest.raises(RecipeError) as error:
        load_language(path)
    assert all(part in str(error.value) for part in [str(path), *said]), error.value


@pytest.mark.parametrize("template", ["{head.m", "[[{head}] head]", "a [small ]bird", "head]", "{head:m} head", ""])
def test_malformed_template_is_named(tmp_path: Path, template: str) -> None:
    kinds = {"bird": {"patterns": [{"sentence": template}]}}
    garden = {"join": {"between": ", ", "last": " na "}, "lexicon": {}, "kinds": kinds}
    path = write(tmp_path, SWAHILI + yaml.safe_dump({"garden": garden}))
    with pytest.raises(RecipeError, match=r"garden\.kinds\.bird\.patterns\.0\.sentence\.0"):
        load_language(path)


CARD = "name: x\nembedding_width: 8\nimage_size: 8\ntext_languages: [en]\nlicence: MIT\nsource: here\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "key 'architecture' is missing"),
        ("architecture: RN50\nconfig: {embed_dim: 64}", "unknown key 'config'"),
        ("kind: trained-clip", "key 'config' is missing"),
        ("kind: trained-clip\nconfig: {text_cfg: {width: 8}}", "config needs text_cfg with a vocab_size"),
        ("kind: opn-clip", "key 'kind' is 'opn-clip'; did you mean 'open-clip'? (known: open-clip, trained-clip"),
        ("kind: nowhere:Teacher", "'nowhere:Teacher' cannot be imported"),
        ("trained_here: true", "key 'trained_here' is gone since version 0.2; write kind: trained-clip in its place"),
        ("trained_here: false", "write kind: open-clip in its place"),
    ],
)
def test_mistakes_in_a_teacher_are_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, CARD + text)
    with pytest.raises(RecipeError) as error:
        load_teacher(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_cards_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_language("en").code = "de"  # type: ignore[misc]


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=r"no file or name 'arr'; did you mean 'ar'\? \(known: .*\ben\b"):
        load_language("arr")


def test_the_width_of_a_teacher_trained_here_is_that_of_its_config(tmp_path: Path) -> None:
    text = (ROOT / "teachers" / "garden-clip.yaml").read_text()
    assert load_teacher(write(tmp_path, text)).embedding_width == 128
    with pytest.raises(RecipeError, match=r"embedding_width 96 is not config\.embed_dim 128"):
        load_teacher(write(tmp_path, text.replace("embedding_width: 128", "embedding_width: 96")))
