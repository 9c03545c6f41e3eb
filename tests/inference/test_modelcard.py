"""The model card: what it must say, read back by the Hub's own library."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from sta.config.cards import load_language
from sta.config.recipe import load_recipe
from sta.data.checksums import write_sums
from sta.data.corpora.base import open_source
from sta.errors import StaError, WeightsError
from sta.inference.modelcard import licences_of, write_card
from sta.inference.release import verify
from sta.metrics.rows import Interval, Report, Row
from tests.picturebook_fixtures import write_emoji

MACHINES = ["Some Processor, 2 x 1 threads"]
META = {
    "seed": 7, "fid_extractor": "reader-256-ff",
    "training": {
        "teacher": {"seconds": 60.0, "commits": ["abc123"], "machines": MACHINES},
        "decoder": {"seconds": 120.0, "commits": ["abc123", "def456"], "machines": MACHINES},
    },
}  # fmt: skip


def row(metric: str, value: float, language: str = "en", condition: str = "clean", system: str = "speech") -> Row:
    where = {"language": language, "split": "both", "condition": condition, "system": system}
    return Row.of(metric, Interval(value, value - 0.1, value + 0.1), 80, 0.25, **where)  # type: ignore[arg-type]


def rows() -> list[Row]:
    return [
        row("attributes", 0.912), row("attributes", 0.834, "ar"), row("mood", 0.95), row("classifier", 0.999),
        row("attributes", 0.33, system="shuffled"), row("attributes", 0.71, condition="noise-10"),
        row("mood", 0.61, condition="noise-10"), Row.of("fid", Interval(12.5), 640, language="all", split="all",
                                                        condition="clean", system="speech"),
    ]  # fmt: skip


def write(release: Path, rows: list[Row], *overrides: str) -> None:
    languages = [load_language(code) for code in ("en", "ar")]
    write_card(release, load_recipe("garden-mini", overrides), languages, Report(META, rows))


def card_of(release: Path, rows: list[Row], *overrides: str) -> ModelCard:
    write_sums(release)
    write(release, rows, *overrides)
    return ModelCard.load(release / "README.md")


def data_of(card: ModelCard) -> ModelCardData:
    assert isinstance(card.data, ModelCardData)
    return card.data


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    made = card_of(tmp_path, rows())
    verify(tmp_path)
    return made


def test_the_hub_reads_its_metadata(card: ModelCard) -> None:
    data = data_of(card)
    assert (data.language, data.license, data.library_name) == (["en", "ar"], "apache-2.0", "speak-the-art")
    results = {(r.metric_type, r.dataset_config): r.metric_value for r in data.eval_results or []}
    assert results == {("attributes", "en"): 0.912, ("attributes", "ar"): 0.834, ("mood", "en"): 0.95}
    assert {(r.dataset_type, r.dataset_name) for r in data.eval_results or []} == {("garden", "Garden, both")}


def test_it_says_how_it_was_made(card: ModelCard) -> None:
    for said in (
        "`sta run garden-mini`",
        "| commit | abc123 (teacher, decoder); def456 (decoder) |",
        "| seed | 7 |",
        "3 (teacher 1.0, decoder 2.0)",
        "| machine | Some Processor, 2 x 1 threads |",
    ):
        assert said in card.text


def test_it_says_what_was_measured(card: ModelCard) -> None:
    assert "| 91.2 (81.2–101.2) | 83.4 (73.4–93.4) | 25.0 |" in card.text
    assert "| the picture of another utterance | 33.0 (23.0–43.0) | – |" in card.text
    assert "| noise-10 | 71.0 (61.0–81.0) | – | 61.0 (51.0–71.0) | – |" in card.text
    assert "FID 12.5 against the same 640 test pictures, in reader-256-ff" in card.text
    assert "right on 99.9 % of the attributes" in card.text


# ---- of other corpora and parts -------------------------------------------------------------------------------

FOLDER = "corpus={{name: folder, root: {}/birds, size: 48{}}}"
RETRIEVED = [
    row("r1_speech_to_image", 0.5), row("r10_speech_to_image", 0.8),
    row("r1_speech_to_image", 0.4, condition="noise-10"), row("r10_speech_to_image", 0.7, condition="noise-10"),
]  # fmt: skip


def test_a_users_corpus_is_not_called_garden(tmp_path: Path) -> None:
    data = data_of(card_of(tmp_path, RETRIEVED, FOLDER.format(tmp_path, "")))
    assert {(r.dataset_type, r.dataset_name) for r in data.eval_results or []} == {("birds", "birds, both")}
    assert (data.license, data.license_name) == ("other", "unknown"), "nobody said what may be done with it"
    named = card_of(tmp_path, RETRIEVED, FOLDER.format(tmp_path, ", dataset: me/birds, licence: CC-BY-4.0"))
    data = data_of(named)
    assert (data.license, data.datasets) == ("cc-by-4.0", ["me/birds"])
    assert {r.dataset_type for r in data.eval_results or []} == {"me/birds"}
    assert "Garden" not in named.text


@pytest.mark.parametrize(
    ("overrides", "licence", "name"),
    [
        ((), "apache-2.0", None),
        (("teacher=vit-b-32", "languages=[en]"), "other", "apache-2.0-and-mit"),
        (("encoder.backbone=some/hubert",), "other", "apache-2.0-and-unknown"),
        (("encoder.backbone=some/hubert", "encoder.backbone_licence=Apache-2.0"), "apache-2.0", None),
    ],
)
def test_the_licence_is_that_of_all_parts(
    tmp_path: Path, overrides: tuple[str, ...], licence: str, name: str | None
) -> None:
    made = card_of(tmp_path, rows(), *overrides)
    assert (data_of(made).license, data_of(made).license_name) == (licence, name)
    assert ("backbone some/hubert: " in made.text) == any("backbone=" in o for o in overrides)


def test_the_licences_of_picturebook_are_those_of_all_that_others_published(tmp_path: Path) -> None:
    """Pictures, names, the frozen backbone that is inside, and the towers of the teacher that was learnt from."""
    styles = ["corpus.styles=[noto, twemoji]", "corpus.test_styles=[]"]
    recipe = load_recipe("picturebook", ["languages=[en, ar]", f"corpus.root={write_emoji(tmp_path)}", *styles])
    data = open_source(recipe.corpus, recipe.cards(), recipe.seed).card()
    assert licences_of(recipe, data) == {
        "pictures noto (Noto by Makers, https://makers)": "apache-2.0",
        "pictures twemoji (Twemoji by Makers, https://makers)": "cc-by-4.0",
        "names and keywords (Unicode CLDR, https://cldr.unicode.org)": "unicode-3.0",
        "groups of emoji (emojibase-data by Miles Johnson)": "mit",
        "backbone openai/whisper-base": "mit",
        "teacher's image tower timm/tf_efficientnet_lite0.in1k": "apache-2.0",
        "teacher's text tower intfloat/multilingual-e5-small": "mit",
    }


def test_conditions_show_what_was_measured(tmp_path: Path) -> None:
    text = card_of(tmp_path, RETRIEVED, FOLDER.format(tmp_path, "")).text
    assert "| noise-10 | 40.0 (30.0–50.0) | – | 70.0 (60.0–80.0) | – |" in text


def test_regional_codes_are_languages_to_the_hub(tmp_path: Path) -> None:
    write_sums(tmp_path)
    cards = [load_language("en").model_copy(update={"code": code}) for code in ("en-gb", "en-us")]
    write_card(tmp_path, load_recipe("garden-mini"), cards, Report(META, rows()))
    assert data_of(ModelCard.load(tmp_path / "README.md")).language == ["en"]


# ---- a release is whole at every moment -----------------------------------------------------------------------


def test_it_lists_the_styles(tmp_path: Path) -> None:
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder" / "config.json").write_text('{"styles": ["flat", "line"]}')
    assert '`style="flat"` chooses how: flat, line; without it, one by chance.' in card_of(tmp_path, rows()).text
    (tmp_path / "decoder" / "config.json").write_text("{}")
    assert "style" not in card_of(tmp_path, rows()).text


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Two files in a folder, and a card of an evaluation before."""
    (tmp_path / "decoder").mkdir()
    for name in ("decoder/config.json", "recipe.yaml"):
        (tmp_path / name).write_text("{}")
    write_sums(tmp_path)
    write(tmp_path, rows())
    return tmp_path


def test_a_stop_at_any_moment_leaves_a_release_that_is_accepted(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, before, moments = os.replace, (release / "README.md").read_text(), []

    def stop(source: Path, target: Path) -> None:
        moments.append(Path(target).name)
        if len(moments) == last:
            raise KeyboardInterrupt
        replace(source, target)

    for last in (1, 2, 3):
        moments.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop)
            with pytest.raises(KeyboardInterrupt):
                write(release, [row("attributes", 0.5 + last / 10), *rows()])
        verify(release)
    write(release, rows())
    assert moments == ["SHA256SUMS", "README.md", "SHA256SUMS"]
    assert (release / "README.md").read_text() == before


def test_the_card_is_listed_and_heals_nothing_else(release: Path) -> None:
    listed = (release / "SHA256SUMS").read_text()
    write_sums(release)
    assert (release / "SHA256SUMS").read_text() == listed
    (release / "recipe.yaml").write_text("cut")
    write(release, [row("attributes", 0.5), *rows()])
    with pytest.raises(WeightsError, match=r"recipe.yaml: truncated or changed"):
        verify(release)


def test_a_full_disk_is_one_sentence_and_the_release_stays(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StaError, match=r"SHA256SUMS: cannot be written \(No space left on device\)") as error:
        write(release, [row("attributes", 0.5), *rows()])
    assert "\n" not in str(error.value)
    verify(release)
