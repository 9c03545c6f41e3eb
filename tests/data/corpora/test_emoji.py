"""Emoji: what is a concept, what is trained on and what is not, and which picture goes with which words."""

from __future__ import annotations

import io
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sta.config.cards import LanguageCard, load_language
from sta.config.recipe import load_recipe
from sta.data.corpora.base import open_source
from sta.data.corpora.emoji import EmojiSettings, EmojiSource, Phrases, read_concepts
from sta.data.corpora.icons import Packages, open_style
from sta.data.corpora.mixture import MixtureSettings
from sta.data.rows import TEST_SPLITS, Row, Sample
from sta.data.unreadable import Unreadable
from sta.errors import CorpusError, RecipeError
from tests.picturebook_fixtures import VERSION, write_emoji

CARDS = {code: load_language(code) for code in ("en", "ar")}
STYLES = ["noto", "noto-v1", "twemoji"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_emoji(tmp_path_factory.mktemp("emoji"))


def settings(root: Path, **changes: Any) -> EmojiSettings:
    given = {
        "name": "emoji", "root": str(root), "styles": STYLES, "test_styles": ["fluent-emoji-3d", "openmoji"],
        "groups": ["animals-nature", "travel-places", "objects"], "held_out": 0.3, "tested": 0.6, "validation": 4,
        "test": 10, "picture_size": 16, **changes,
    }  # fmt: skip
    return EmojiSettings(**given)


def source(root: Path, cards: dict[str, LanguageCard] = CARDS, **changes: Any) -> EmojiSource:
    return EmojiSource(settings(root, **changes), cards, 0)


def rows(corpus: EmojiSource) -> list[Row]:
    return [planned.row() for planned in corpus.plan]


@pytest.fixture(scope="module")
def made(root: Path) -> list[Row]:
    return rows(source(root))


def of(made: list[Row], split: str, what: str) -> set[Any]:
    return {row[what] for row in made if row["split"] == split}


# ---- concepts ---------------------------------------------------------------------------------------------------


def test_variants_clocks_flags_and_faces_of_other_concepts_are_no_concepts(root: Path) -> None:
    groups = ["people-body", "animals-nature", "travel-places", "objects"]
    names = {c.name: c.id for c in read_concepts(Packages(root), groups) if not c.name.startswith("thing")}
    assert names == {
        "dog": "1F415", "polar bear": "1F43B-200D-2744", "umbrella": "2602", "cricket": "1F997", "person": "1F9D1"
    }  # fmt: skip


def test_flags_are_no_group_and_the_known_ones_are_named(root: Path) -> None:
    with pytest.raises(RecipeError, match="'flags' is no group of emoji.*objects"):
        read_concepts(Packages(root), ["flags"])


def test_few_concepts_are_the_well_drawn_ones_with_short_names(root: Path) -> None:
    few = source(root, concepts=2).concepts
    assert {c.name for c in few} == {"dog", "umbrella"}
    assert [c for c in source(root, concepts=9).concepts if c.name in ("cricket", "polar bear")] == []


def test_a_name_that_meant_another_thing_in_an_old_set_is_not_taken(root: Path) -> None:
    cricket = next(c for c in read_concepts(Packages(root)) if c.name == "cricket")
    assert open_style(root, "noto-v1").place(cricket) is None
    assert open_style(root, "noto").place(cricket) == "cricket"


# ---- what is trained on -----------------------------------------------------------------------------------------


def test_held_out_concepts_are_those_of_their_split_alone(made: list[Row]) -> None:
    trained = of(made, "train", "label")
    assert of(made, "concept", "label")
    for split in ("train", "validation", *(s for s in TEST_SPLITS if s != "concept")):
        assert not of(made, split, "label") & of(made, "concept", "label")
        assert of(made, split, "label") <= trained


def test_what_is_held_out_is_the_same_in_every_recipe(root: Path, made: list[Row]) -> None:
    fewer = rows(source(root, cards={"en": CARDS["en"]}, concepts=20, test=100))
    known = of(made, "train", "label") | of(made, "concept", "label")
    assert of(fewer, "concept", "label") & known <= of(made, "concept", "label")
    assert of(fewer, "train", "label") <= of(made, "train", "label")


def test_no_picture_of_a_test_is_trained_on(made: list[Row]) -> None:
    trained = of(made, "train", "image_id")
    assert all(row["image_id"] not in trained for row in made if row["split"] != "train")
    assert of(made, "voice", "style") == set(STYLES)  # every style gives some of its pictures up


def test_styles_take_turns_in_every_kind_of_text(root: Path) -> None:
    every = source(root, tested=0.0, held_out=0.0, recordings=12, test=0, validation=0)
    for kind in ("name", "keyword"):
        used = Counter(p.style for p in every.plan if f"-{kind}-" in p.id and p.concept.name.startswith("thing"))
        assert set(used) == set(STYLES)
        assert max(used.values()) <= 1.15 * min(used.values())
    one = {p.style for p in every.plan if "-name-" in p.id and p.language == "en" and p.concept.name == "dog"}
    assert one == set(STYLES)


def test_a_held_out_style_is_shown_once_with_each_trained_concept_that_it_draws(made: list[Row]) -> None:
    shown = [row["image_id"] for row in made if row["split"] == "style"]
    assert len(shown) == len(set(shown)) == 2 * len(of(made, "train", "label") - {None})
    assert of(made, "style", "style") == {"fluent-emoji-3d", "openmoji"}
    assert {"fluent-emoji-3d", "openmoji"}.isdisjoint(row["style"] for row in made if row["split"] != "style")


def test_phrases_of_the_test_are_never_trained_on(made: list[Row]) -> None:
    trained = {(row["language"], row["text"].casefold()) for row in made if row["split"] == "train"}
    tested = {(row["language"], row["text"].casefold()) for row in made if row["split"] == "phrase"}
    assert tested
    assert not trained & tested


def test_a_name_is_carried_in_all_carriers_but_one_which_is_for_the_test(root: Path) -> None:
    card = CARDS["en"].model_copy(update={"carriers": ("a {name}", "see the {name}", "draw {name}")})
    corpus = source(root, {"en": card}, recordings=12, test=40)
    phrases, concept = Phrases(corpus.packages, card), next(iter(corpus.trained))
    trained = {p.text for p in corpus.plan if p.concept == concept and p.split == "train" and "carrier" in p.id}
    assert len(trained) == 2
    assert {phrases.unheard(concept)[0]} | trained == {
        f"a {concept.name}", f"see the {concept.name}", f"draw {concept.name}"
    }  # fmt: skip


def test_keywords_without_letters_or_that_name_another_emoji_are_not_said(root: Path) -> None:
    phrases, concepts = Phrases(Packages(root), CARDS["en"]), read_concepts(Packages(root))
    thing = next(c for c in concepts if c.name == "thing 3")
    assert {*phrases.keywords(thing), *phrases.unheard(thing)} >= {"everything", "thing 3 of its own"}
    assert not {"dog", "12", "thing 3"} & {*phrases.keywords(thing)}


def test_more_written_texts_are_asked_for_by_number(root: Path) -> None:
    all_of_them = source(root, keywords=None, combinations=1, recordings=0)
    kinds = Counter(p.id.split("-")[-2] for p in all_of_them.plan if p.split == "train" and p.language == "en")
    assert set(kinds) == {"keyword", "combination"}
    assert kinds["keyword"] > kinds["combination"] == len(all_of_them.trained)
    assert {f"{p.concept.name}, everything" for p in all_of_them.plan} & {p.text for p in all_of_them.plan}


def test_pairs_and_shared_keywords_are_phrases_without_a_label(root: Path) -> None:
    made = source(root, pairs=2, keywords=None)
    apart = [planned for planned in made.plan if planned.apart]
    assert {p.id.split("-")[-2] for p in apart} == {"keyword", "pair"}
    assert {p.text for p in apart if "-keyword-" in p.id} <= {"everything", "dog"}
    assert all(p.row()["phrase"] and p.row()["label"] is None and p.split == "train" for p in apart)
    assert all(not p.row()["phrase"] and p.row()["label"] for p in made.plan if not p.apart)
    held_out = {c.name for c in made.concepts} - {c.name for c in made.trained}
    assert not held_out & {name for p in apart if "-pair-" in p.id for name in p.text.split(", ")}


def test_sentences_are_trained_on_but_for_those_of_the_test_in_every_language(root: Path, tmp_path: Path) -> None:
    table = tmp_path / "sentences.tsv"
    concepts = read_concepts(Packages(root))
    lines = [f"{c.id}\tI see {c.name} {n}\tأرى {c.name} {n}" for c in concepts for n in range(5)]
    table.write_text("\n".join(["concept\ten\tar", *lines]), encoding="utf-8")
    made = rows(source(root, sentences=str(table), keywords=0, recordings=0, test=40))
    english, arabic = ({(r["split"], r["text"].split(" ", n)[-1]) for r in made if r["split"] in ("train", "phrase")
                        and r["language"] == code} for code, n in (("en", 2), ("ar", 1)))  # fmt: skip
    assert english == arabic
    trained, tested = ({text for split, text in english if split == which} for which in ("train", "phrase"))
    assert trained
    assert tested
    assert not trained & tested


def test_spans_are_words_in_a_row_of_training_sentences(root: Path, tmp_path: Path) -> None:
    table = tmp_path / "sentences.tsv"
    concepts = read_concepts(Packages(root))
    lines = [f"{c.id}\tdog near a tree number{n}\tأرى شجرة" for c in concepts for n in range(5)]
    table.write_text("\n".join(["concept\ten\tar", *lines]), encoding="utf-8")
    made = source(root, sentences=str(table), keywords=0, recordings=0, spans=3)
    spans = [p for p in made.plan if "-span-" in p.id and p.language == "en"]
    said = {p.text for p in made.plan if "-sentence-" in p.id and p.language == "en"}
    assert {len(p.text.split()) for p in spans} == {1, 2, 3, 4}
    assert all(any(f" {p.text} " in f" {sentence} " for sentence in said) for p in spans)
    assert all(p.apart and p.split == "train" for p in spans)
    assert "dog" not in {p.text for p in spans}  # a name of an emoji


def test_emoji_of_other_groups_lend_their_words(root: Path) -> None:
    few = source(root, groups=["animals-nature"], others=2, recordings=0, keywords=0)
    lent = [p for p in few.plan if p.apart]
    assert lent
    assert not {p.concept for p in lent} & set(few.concepts)
    assert {p.text for p in lent} >= {p.concept.name for p in lent if p.language == "en"}
    assert max(Counter((p.concept, p.language) for p in lent).values()) == 2
    assert {p.split for p in lent} == {"train"}
    assert sum(map(len, few.shards())) == len(few.plan)
    assert not [p for p in source(root, groups=["animals-nature"], recordings=0, keywords=0).plan if p.apart]


@pytest.mark.parametrize(
    ("text", "why"),
    [("hex\ten\n", "must be 'concept'"), ("concept\ten\n1F415\n", "line 2: has 1 columns, the first line 2")],
)
def test_a_broken_table_of_sentences_is_named(root: Path, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "broken.tsv").write_text(text)
    with pytest.raises(CorpusError, match=why):
        source(root, sentences=str(tmp_path / "broken.tsv")).check()


def test_sizes_and_ids(made: list[Row]) -> None:
    count = Counter((row["split"], row["language"]) for row in made)
    assert {count[s, c] for s in ("voice", "engine", "concept", "phrase") for c in CARDS} == {10}
    assert {count["validation", code] for code in CARDS} == {4}
    assert len({row["id"] for row in made}) == len(made)
    labelled = [row for row in made if row["label"]]
    assert {row["image_id"] for row in labelled} == {f"{row['style']}/{row['label']}" for row in labelled}


# ---- pictures ---------------------------------------------------------------------------------------------------


def picture(root: Path, style: str, name: str, side: int = 16) -> np.ndarray:
    concept = next(c for c in read_concepts(Packages(root)) if c.name == name)
    return np.asarray(Image.open(io.BytesIO(open_style(root, style).draw(concept, side))).convert("RGB"))


def test_an_icon_is_square_on_white_and_turned_as_its_alias_says(root: Path) -> None:
    plain, mirrored = picture(root, "twemoji", "dog"), picture(root, "twemoji", "umbrella")
    assert plain.shape == mirrored.shape == (16, 16, 3)
    drawn = [[(image != 255).any() for image in (p[:, :8], p[:, 8:])] for p in (plain, mirrored)]
    assert drawn == [[True, False], [False, True]]
    assert (plain[[0, -1]] == 255).all()  # 16 x 8 in the middle


def test_a_transparent_picture_is_put_on_white(root: Path) -> None:
    assert (picture(root, "fluent-emoji-3d", "dog")[[0, -1]] == 255).all()


def test_each_picture_is_drawn_once_in_a_shard_that_can_be_sent(root: Path) -> None:
    shards = source(root).shards()
    found = list(pickle.loads(pickle.dumps(shards[0])).samples())
    assert all(isinstance(sample, Sample) for sample in found)
    assert sum(map(len, shards)) == len(source(root).plan)
    pictures = {sample.row["image_id"]: id(sample.row["image"]["bytes"]) for sample in found}
    assert len(set(pictures.values())) == len(pictures) < len(found)


def test_an_icon_that_cannot_be_drawn_is_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "node_modules/@iconify-json/noto/icons.json"
    path.write_text(path.read_text().replace("<path fill", "<path <fill", 1))
    lost = [x for shard in source(tmp_path).shards() for x in shard.samples() if isinstance(x, Unreadable)]
    assert lost
    assert "noto/1F900: cannot be drawn" in lost[0].reason


# ---- the packages -----------------------------------------------------------------------------------------------


def test_a_folder_without_packages_says_how_to_get_them(tmp_path: Path) -> None:
    for step in (EmojiSource.check, EmojiSource.version):
        with pytest.raises(
            CorpusError, match="has no cldr-annotations-full; run npm install .*@iconify-json/noto@1.2.9"
        ):
            step(source(tmp_path))


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("@iconify-json/twemoji/icons.json", "icons.json cannot be read"),
        ("cldr-annotations-full/annotations/ar/annotations.json", "cannot be read"),
        ("@lobehub/fluent-emoji-3d/assets", r"it has 0 of \d+ common pictures"),
    ],
)
def test_a_package_that_was_cut_off_is_named(root: Path, tmp_path: Path, file: str, why: str) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "node_modules" / file
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=f"not complete, .*{why}.*; remove that folder and run npm install"):
        source(tmp_path).check()


def test_the_root_may_be_node_modules_and_makes_no_other_corpus(root: Path) -> None:
    inside = source(root / "node_modules")
    inside.check()
    assert inside.version() == source(root).version()
    assert VERSION in str(inside.version())
    assert inside.version() != source(root, held_out=0.2).version()


def test_a_style_is_trained_on_or_held_out(root: Path) -> None:
    with pytest.raises(RecipeError, match="'noto' is in corpus.styles too"):
        source(root, test_styles=["noto"]).check()


def test_a_language_that_unicode_does_not_name_is_refused(root: Path) -> None:
    with pytest.raises(CorpusError, match="no names in language 'xx'"):
        source(root, {"xx": CARDS["en"].model_copy(update={"code": "xx"})}).check()


def test_the_card_has_the_licence_and_makers_of_what_is_trained_on(root: Path) -> None:
    card = source(root).card()
    assert set(card.licences.values()) == {"apache-2.0", "cc-by-4.0", "unicode-3.0", "mit"}
    assert "pictures twemoji (Twemoji by Makers, https://makers)" in card.licences
    assert "only tests show" in card.description
    assert "cc-by-sa-4.0" in card.description


def test_it_is_a_part_of_a_mixture(root: Path) -> None:
    part = settings(root).model_dump()
    mixture = MixtureSettings.model_validate({"name": "mixture", "parts": [{"corpus": part}, {"corpus": part}]})
    corpus = open_source(mixture, CARDS, 0)
    corpus.check()
    sample = next(found for found in corpus.shards()[-1].samples() if isinstance(found, Sample))
    assert sample.row["image_id"].startswith("1/")


def test_the_things_of_a_demo_are_the_same_in_all_languages_of_the_recipe(tmp_path: Path) -> None:
    """And need no package; a mixture has those of its part."""
    recipe = load_recipe("picturebook", [f"corpus.root={tmp_path}"])
    things = open_source(recipe.corpus, {}, 0).things()
    assert set(things) == set(recipe.languages)
    assert {len(set(names)) for names in things.values()} == {6}
    assert things["en"][1] == "an airplane"
    mixture = MixtureSettings.model_validate({
        "name": "mixture",
        "parts": [{"corpus": {"name": "garden"}}, {"corpus": {"name": "emoji", "root": str(tmp_path), "size": 64}}],
    })  # fmt: skip
    assert open_source(mixture, CARDS, 0).things() == things
    assert open_source(mixture.parts[0].corpus, CARDS, 0).things() == {}


def test_the_outline_counts_all_pictures(root: Path, made: list[Row]) -> None:
    outline = source(root).outline(10)
    assert outline.pictures == len({row["image_id"] for row in made})
    assert len(outline.sample) == 10
