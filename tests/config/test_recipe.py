"""Recipes: strict keys, `extends:`, overrides, and what is checked across sections."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sta.config import yamlfile
from sta.config.recipe import (
    RUNTIME_ONLY,
    DecoderStage,
    DistillStage,
    Stages,
    dump_recipe,
    load_recipe,
    makes_the_same,
)
from sta.config.variants import known_variants
from sta.data.corpora.base import CorpusSource
from sta.data.corpora.folder import FolderSettings
from sta.data.corpora.garden import GardenSource
from sta.data.corpora.garden.corpus import GardenSettings
from sta.errors import RecipeError
from sta.models.bottleneck import SpeechBottleneck
from sta.models.layers import sinusoids
from sta.models.vq import VQTokenizer
from sta.training.losses.base import similarity_distillation
from tests.config.test_cards import SWAHILI

ROOT = Path(__file__).parents[2]
RECIPES = sorted(p.stem for p in (ROOT / "recipes").glob("*.yaml"))
SMALL = """
name: small
languages: [en]
corpus: {name: garden, size: 32}
stages:
  teacher: {steps: 1, batch: 1}
  tokenizer: {steps: 1, batch: 1}
  distill: {steps: 1, batch: 1}
  decoder: {steps: 1, batch: 1}
  classifier: {steps: 1, batch: 1}
"""


def write(folder: Path, text: str, name: str = "small") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path, SMALL)


def message(path: Path, *overrides: str) -> str:
    """The one sentence of the error."""
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_every_recipe_on_disk_is_tested() -> None:
    assert set(RECIPES) == set(yamlfile.names("recipes"))
    assert "garden-mini" in RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_packaged_recipe_comes_back_from_its_dump(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    again = load_recipe(write(tmp_path, dump_recipe(recipe), "dumped"))
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


@pytest.mark.parametrize("stage", Stages.model_fields)
def test_what_loads_logs_and_saves_makes_the_same(stage: str) -> None:
    recipe = load_recipe("garden-tiny")
    for name in RUNTIME_ONLY:
        assert makes_the_same(recipe, load_recipe("garden-tiny", [f"stages.{stage}.{name}=3"]))
    for name in ("steps", "batch", "warmup"):
        assert not makes_the_same(recipe, load_recipe("garden-tiny", [f"stages.{stage}.{name}=3"]))
    assert makes_the_same(recipe, load_recipe("garden-tiny", ["release.weights=int8"]))
    assert not makes_the_same(recipe, load_recipe("garden-tiny", ["corpus.scenes=61"]))


@pytest.mark.parametrize("override", ["languages=[no, yes, on]", "stages.distill.lr=1e-9", "seed=7", "name='1e3'"])
def test_dump_keeps_what_yaml_or_this_loader_would_turn(small: Path, override: str, tmp_path: Path) -> None:
    recipe = load_recipe(small, [override])
    assert load_recipe(write(tmp_path, dump_recipe(recipe), "dumped")) == recipe


def test_no_is_a_language_and_1e_3_a_number(tmp_path: Path) -> None:
    text = SMALL.replace("[en]", "[no, en]").replace("distill: {steps: 1", "distill: {lr: 1e-3, steps: 1")
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.languages == ["no", "en"]
    assert recipe.stages.distill.lr == 0.001


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("languages:", "langauges: [ar]\nlanguages:", ["'langauges'", "did you mean 'languages'?", "teacher"]),
        ("distill: {", "distill: {warmpu: 3, ", ["'stages.distill.warmpu'", "did you mean 'warmup'?"]),
        ("size: 32", "size: '32'", ["size' is '32'", "integer"]),
        ("size: 32", "size: 32.0", ["size' is 32.0", "integer"]),
        ("size: 32", "size: 36", ["size' is 36", "multiple of 8"]),
        ("size: 32", "size: 8", ["size' is 8", "16"]),
        ("size: 32", "size: 32, held_out: 1.5", ["held_out' is 1.5", "less than or equal to 1"]),
        (
            "name: garden",
            "name: gardn",
            [
                "'corpus.name' is 'gardn'; did you mean 'garden'?",
                "known: emoji, folder, garden, mixture, parquet, tuxpaint, or module:Class",
            ],
        ),
        ("name: small", "name: Not a name", ["'name' is 'Not a name'"]),
        ("[en]", "[]", ["'languages'", "at least 1"]),
        ("[en]", "[en, ar, en]", ["languages", "'en' is there twice"]),
        ("[en]", "en", ["'languages' is 'en'", "list"]),
        ("name: small", "name: cache", ["'name' is 'cache'", "the corpora of all runs"]),
        ("[en]", "[en, English]", ["'languages'", "'English' is neither the code of a language", "./sw.yaml"]),
        ("  classifier: {steps: 1, batch: 1}\n", "", ["'stages.classifier' is missing"]),
        ("classifier: {steps: 1, ", "classifier: {", ["'stages.classifier.steps' is missing"]),
        ("name: small", "name: small\nname: other", ["'name' appears twice", "line 2"]),
        ("classifier: {steps: 1", "classifier: {steps: 1, lr: .nan", ["'stages.classifier.lr' is nan"]),
        ("classifier: {steps: 1", "classifier: {steps: 1, losses: {read: 1.0}", ["'stages.classifier.losses'"]),
        ("size: 32}", "size: 32, world: {colour: [red]}}", ["world.colour'", "did you mean 'colours'?"]),
    ],
)
def test_mistake_is_one_sentence_that_names_file_and_key(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    assert old in SMALL
    path = write(tmp_path, SMALL.replace(old, new, 1))
    text = message(path)
    assert all(part in text for part in [str(path), *said]), text


def test_key_of_a_corpus_is_the_one_to_type(small: Path) -> None:
    text = message(small, "corpus.sise=32")
    assert "'corpus.sise'" in text
    assert "max_bad" not in text


@pytest.mark.parametrize("override", ["stages.decoder.lr=.inf", "stages.decoder.losses.x0=.inf"])
def test_infinite_numbers_are_refused(small: Path, override: str) -> None:
    assert "inf" in message(small, override)


def test_group_must_divide_the_codes(small: Path) -> None:
    assert load_recipe(small, ["tokenizer.factor=8", "corpus.size=32"]).decoder.model_dump()["patch_size"] == 2
    text = message(small, "tokenizer.factor=8", "corpus.size=40")
    assert str(small) in text
    assert "corpus.size 40 / tokenizer.factor 8 = 5 codes a side, which decoder.patch_size 2 does not divide" in text
    load_recipe(small, ["tokenizer.factor=8", "corpus.size=40", "decoder.patch_size=1"])


def test_a_recipe_does_not_change(small: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(small).seed = 3  # type: ignore[misc]


def test_groups_are_pooled_or_one_per_language(small: Path) -> None:
    assert load_recipe(small, ["languages=[en, ar]"]).groups == {"pooled": ["en", "ar"]}
    each = load_recipe(small, ["languages=[en, ar]", "encoder.sharing=each"])
    assert each.groups == {"en": ["en"], "ar": ["ar"]}


# --- losses ---------------------------------------------------------------------------------------------------


def test_losses_left_out_keep_their_weight(small: Path) -> None:
    defaults = DistillStage(steps=1, batch=1).losses
    changed = load_recipe(small, ["stages.distill.losses={mood: 0, ctc: 2.5}"]).stages.distill.losses
    assert changed == {**defaults, "mood": 0, "ctc": 2.5}
    assert load_recipe(small, ["stages.distill.losses.mood=0"]).stages.distill.losses == {**defaults, "mood": 0}
    assert defaults["mood"] > 0
    assert DistillStage(steps=1, batch=1).losses == defaults  # the shared default was not written to


def test_losses_merge_through_extends(small: Path) -> None:
    defaults = {"x0": 1.0, **DecoderStage(steps=1, batch=1).losses}
    child = write(small.parent, "extends: small\nstages: {decoder: {losses: {vlb: 0.1}}}", "child")
    grandchild = write(small.parent, "extends: child\nstages: {decoder: {losses: {kl: 0}}}", "grandchild")
    assert load_recipe(child).stages.decoder.losses == {**defaults, "vlb": 0.1}
    assert load_recipe(grandchild).stages.decoder.losses == {**defaults, "vlb": 0.1, "kl": 0}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.distill.losses.mod=1", ["stages.distill.losses.mod", "image, kl", "did you mean 'mood'"]),
        ("stages.distill.losses.mood=-1", ["stages.distill.losses.mood' is -1", "greater than or equal to 0"]),
        ("stages.distill.losses.mood=high", ["stages.distill.losses.mood' is 'high'", "number"]),
        ("stages.distill.losses=3", ["stages.distill.losses' is 3"]),
    ],
)
def test_mistakes_in_losses(small: Path, override: str, said: list[str]) -> None:
    text = message(small, override)
    assert all(part in text for part in [str(small), *said]), text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("decoder.heads=7", "decoder.width 256 is not a multiple of 7, which decoder.heads is"),
        ("encoder.heads=5", "5, which encoder.heads is"),
        ("tokenizer.width=20", "tokenizer.width 20 is not a multiple of 8, the groups"),
        ("encoder={width: 90, heads: 3}", "encoder.width 90 is not a multiple of 4, the heads that the bottleneck"),
        ("decoder={width: 75, heads: 5}", "decoder.width 75 is not a multiple of 2, the sines and cosines"),
    ],
)
def test_a_width_fits_the_heads_and_what_is_fixed_in_the_networks(small: Path, override: str, said: str) -> None:
    """What would only fail in the stage that builds the network, after those before it were trained."""
    assert said in message(small, override)


def test_those_are_the_networks_own_numbers() -> None:
    refused: Any
    for width, fits in ((20, False), (24, True)):
        refused = nullcontext() if fits else pytest.raises(ValueError, match="num_groups")
        with refused:
            VQTokenizer(16, width=width)
    for width, fits in ((90, False), (92, True)):
        refused = nullcontext() if fits else pytest.raises((ValueError, RuntimeError))
        with refused:
            SpeechBottleneck(width, 8)(torch.zeros(1, 3, width), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1))
    for width in (75, 76):
        assert sinusoids(torch.arange(3), width).shape[-1] == width - width % 2


@pytest.mark.parametrize(("option", "value"), [("dropout", "0.1"), ("draft", "2")])
def test_the_published_decoder_has_neither_dropout_nor_draft(small: Path, option: str, value: str) -> None:
    said = message(small, f"decoder={{kind: vq-diffusion-published, {option}: {value}}}")
    assert f"unknown key 'decoder.{option}' (known here: heads, kind, layers, timesteps, width)" in said


@pytest.mark.parametrize("override", ["decoder.kind=vq-diffusion-published", "decoder={kind: vq-diffusion-published}"])
def test_a_decoder_of_another_kind_inherits_what_it_knows(override: str) -> None:
    sizes = ["decoder={width: 64, layers: 3}", "stages.decoder.draft_warmup=0"]
    other = load_recipe("garden", [*sizes, override]).decoder.model_dump()
    assert other == {"kind": "vq-diffusion-published", "width": 64, "layers": 3, "heads": 4, "timesteps": 100}
    assert load_recipe("garden-vq").decoder.model_dump()["draft"] == 3


def test_a_decoder_is_known_by_name(small: Path) -> None:
    known = "(known: latent-diffusion, vq-diffusion, vq-diffusion-published, or module:Class of your own)"
    for kind in ("vq", "base", "_codes"):
        assert known in message(small, f"decoder.kind={kind}")
    assert "no Decoder of sta.models.decoders.base" in message(small, "decoder.kind=pathlib:Path")


def test_the_losses_of_the_decoder_stage_are_those_of_its_decoder(small: Path) -> None:
    losses = load_recipe(small, ["stages.decoder.losses={vlb: 0.5, text: 0.2}"]).stages.decoder.losses
    assert losses == {"x0": 1.0, "vlb": 0.5, "draft": 1.0, "kl": 1e-4, "text": 0.2, "caption": 0.0}
    said = message(small, "stages.decoder.losses={flow: 1.0}")
    assert (
        "decoder.losses.flow is no loss of decoder.kind vq-diffusion (known: caption, draft, kl, text, vlb, x0)" in said
    )


def test_a_draft_that_comes_first_needs_layers(small: Path) -> None:
    assert "give decoder.draft some layers" in message(small, "stages.decoder.draft_warmup=0.3")
    assert load_recipe(small, ["stages.decoder.draft_warmup=0.3", "decoder.draft=2"]).stages.decoder.draft_warmup == 0.3


def test_latent_diffusion_needs_latents_that_skip_the_codebook(small: Path) -> None:
    text = message(small, "decoder.kind=latent-diffusion")
    assert "stages.tokenizer.unquantised" in text
    taught = load_recipe(small, ["decoder.kind=latent-diffusion", "stages.tokenizer.unquantised=0.5"])
    assert taught.decoder.kind == "latent-diffusion"


def test_only_garden_knows_what_its_captions_name(small: Path) -> None:
    named = "stages.distill.losses={attributes: 1.0}"
    assert load_recipe(small, [named]).stages.distill.losses["attributes"] == 1.0
    said = message(small, named, "corpus={name: folder, root: here}")
    assert "corpus 'folder' does not know what its captions name; set it to 0" in said


def test_without_negatives_there_is_no_loss(small: Path) -> None:
    """A softmax over the one right answer is 1, whatever is seen."""
    student, target, none = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.zeros(0, 2)
    assert similarity_distillation(student, target, none, 0.03).item() == 0
    said = message(small, "stages.distill.negatives=0")
    assert "key 'stages.distill.negatives' is 0: input should be greater than 0" in said


NEEDED = {
    "garden": "", "folder": ", root: here", "parquet": ", shards: here", "mixture": ", parts: []", "tuxpaint": "",
    "emoji": ", root: here",
}  # fmt: skip


@pytest.mark.parametrize("corpus", known_variants("sta.data.corpora", CorpusSource))
def test_a_key_of_any_corpus_is_named_as_it_is_typed(small: Path, corpus: str) -> None:
    said = message(small, f"corpus={{name: {corpus}, size: large{NEEDED[corpus]}}}")
    assert "key 'corpus.size' is 'large'" in said
    assert str(small) in said


def test_a_corpus_without_a_name(small: Path) -> None:
    assert "key 'corpus.name' is missing" in message(small, "corpus=null", "corpus={size: 32}")
    assert "key 'corpus' is 3" in message(small, "corpus=3")


def test_a_corpus_of_ones_own_is_imported(small: Path) -> None:
    named = f"corpus={{name: '{GardenSource.__module__}:GardenSource', scenes: 7}}"
    corpus = load_recipe(small, [named]).corpus
    assert isinstance(corpus, GardenSettings)
    assert corpus.scenes == 7
    assert "'nowhere:Mine' cannot be imported" in message(small, "corpus={name: 'nowhere:Mine'}")
    assert "is no CorpusSource of" in message(small, "corpus={name: 'pathlib:Path'}")


def test_what_the_model_card_alone_reads_makes_no_other_run(tmp_path: Path) -> None:
    one, other = (
        load_recipe("garden-tiny", ["corpus={name: folder, root: here}", *more])
        for more in ((), ("corpus.licence=cc0-1.0", "corpus.dataset=me/birds", "encoder.backbone_licence=mit"))
    )
    assert makes_the_same(one, other)


# --- extends --------------------------------------------------------------------------------------------------


def test_extends_a_chain_of_files_beside(small: Path) -> None:
    write(small.parent, "extends: small\nname: middle\nseed: 1\nencoder: {width: 32, layers: 3}", "middle")
    last = write(small.parent, "extends: middle\nname: last\nencoder: {width: 64}", "last")
    recipe = load_recipe(last)
    assert (recipe.name, recipe.seed, recipe.encoder.width, recipe.encoder.layers) == ("last", 1, 64, 3)
    assert recipe.stages == load_recipe(small).stages


def test_extends_a_packaged_recipe(tmp_path: Path) -> None:
    child = write(tmp_path, "extends: garden-mini\nname: child\nlanguages: [ar]")
    recipe, base = load_recipe(child), load_recipe("garden-mini")
    assert recipe == base.model_copy(update={"name": "child", "languages": ["ar"]})


def test_extends_prefers_the_file_beside_to_the_packaged(small: Path) -> None:
    write(small.parent, SMALL.replace("name: small", "name: small\nseed: 77"), "garden-mini")
    assert load_recipe(write(small.parent, "extends: garden-mini\nname: child", "child")).seed == 77


def test_lists_are_replaced_not_joined(small: Path) -> None:
    child = write(small.parent, "extends: small\nlanguages: [ar]", "child")
    assert load_recipe(child).languages == ["ar"]


def test_another_corpus_replaces_the_whole_section(small: Path) -> None:
    child = write(small.parent, "extends: small\ncorpus: {name: folder, root: here}", "child")
    assert load_recipe(child).corpus == FolderSettings(name="folder", root=str(small.parent / "here"))
    same = write(small.parent, "extends: small\ncorpus: {name: garden, scenes: 3}", "same")
    assert load_recipe(same).corpus == GardenSettings(name="garden", size=32, scenes=3)


def test_a_base_may_hold_a_few_keys_only(small: Path) -> None:
    write(small.parent, "name: base\nseed: 9", "base")
    child = write(small.parent, SMALL + "extends: base\n", "child")
    assert load_recipe(child).seed == 9


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_extends_in_a_circle(tmp_path: Path, names: list[str]) -> None:
    for name, base in zip(names, [*names[1:], names[0]], strict=True):
        write(tmp_path, f"extends: {base}\nname: {name}", name)
    text = message(tmp_path / "a.yaml")
    assert "'extends'" in text
    assert all(f"{name}.yaml" in text for name in names)


def test_extends_of_nothing_names_the_known(tmp_path: Path) -> None:
    text = message(write(tmp_path, "extends: garden-mimi\nname: x"))
    assert "'garden-mimi'; did you mean 'garden-mini'?" in text


def test_extends_of_nothing_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "extends: nothing\nname: x")
    assert str(path) in message(path)


@pytest.mark.parametrize("value", ["[small]", "3", "{a: 1}"])
def test_extends_must_be_a_name(small: Path, value: str) -> None:
    assert "extends" in message(write(small.parent, f"extends: {value}\nname: x", "child"))


# --- overrides ------------------------------------------------------------------------------------------------


def test_overrides_reach_down_and_are_yaml(small: Path) -> None:
    overrides = ["stages.decoder.steps=500", "stages.distill.lr=2e-4", "encoder.backbone=null",
                 "encoder={width: 8, heads: 2}", "encoder.layers=1", "languages=[ar, en]",
                 "corpus.world.slots.pose=[flying]", "teacher=a=b"]  # fmt: skip
    recipe = load_recipe(small, overrides)
    assert recipe.stages.decoder.steps == 500
    assert recipe.stages.decoder.batch == 1
    assert recipe.stages.distill.lr == 2e-4
    assert (recipe.encoder.width, recipe.encoder.heads, recipe.encoder.layers) == (8, 2, 1)
    assert recipe.languages == ["ar", "en"]
    assert isinstance(recipe.corpus, GardenSettings)
    assert recipe.corpus.world.slots == {"pose": ["flying"]}
    assert recipe.teacher == "a=b"


def test_overrides_reach_a_part_of_a_mixture() -> None:
    own, tuxpaint = (f"corpus.parts.{n}.corpus." for n in (0, 1))
    people = load_recipe("picturebook-people", [f"{own}test=7", f"{own}root=/emoji", f"{tuxpaint}concepts=/emoji"])
    parts = [part.corpus.model_dump() for part in people.corpus.parts]  # type: ignore[attr-defined]
    assert (parts[0]["test"], parts[0]["root"], parts[1]["concepts"]) == (7, "/emoji", "/emoji")
    plain = load_recipe("picturebook").corpus.model_dump()
    same = {**plain, "test": 7, "root": "/emoji"}
    assert parts[0] == same, "but for the people it is the same corpus"
    assert (parts[1]["train"], parts[1]["size"], parts[1]["speech"]) == (True, plain["size"], plain["speech"])
    for override in (f"{own}.test=7".replace("parts.0", "parts.2"), "corpus.parts.0=7"):
        with pytest.raises(RecipeError, match="key 'parts' holds .*which has no keys below it"):
            load_recipe("picturebook-people", [override])


def test_a_later_override_wins(small: Path) -> None:
    assert load_recipe(small, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "override 'seed' is not key=value"),
        ("=3", "override '=3' is not key=value"),
        ("", "override '' is not key=value"),
        ("name.x=3", "override 'name.x=3': key 'name' holds 'small', which has no keys below it"),
        ("languages.0=ar", "key 'languages' holds ['en'], which has no keys below it"),
        ("stages=[", "override 'stages=[', line 1: not valid YAML"),
        ("decoder={group: 1, group: 2}", "key 'group' appears twice"),
        ("seeed=3", "small.yaml with seeed=3: unknown key 'seeed'; did you mean 'seed'?"),
        ("stages.decoder.bacth=3", "unknown key 'stages.decoder.bacth'; did you mean 'batch'?"),
        ("seed=true", "small.yaml with seed=true: key 'seed' is True"),
        ("sampling=null", "key 'sampling' is None"),
    ],
)
def test_mistakes_in_overrides(small: Path, override: str, said: str) -> None:
    assert said in message(small, override)


# ---- paths of corpora and cards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("corpus", "key"), [("folder", "root"), ("parquet", "shards")])
def test_a_corpus_lies_where_the_recipe_or_the_command_that_names_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, key: str
) -> None:
    """The run's own recipe.yaml means the same corpus from wherever it is read."""
    parents, children, here = (tmp_path / name for name in ("parents", "children", "here"))
    for folder in (parents, children, here):
        folder.mkdir()
    write(parents, SMALL.replace("{name: garden, size: 32}", f"{{name: {corpus}, {key}: ../birds}}"))
    child = write(children, f"extends: {parents / 'small.yaml'}\nname: child", "child")
    monkeypatch.chdir(here)
    for path, overrides, meant in (
        (child, (), tmp_path / "birds"),
        (Path("../children/child.yaml"), (), tmp_path / "birds"),
        (child, (f"corpus.{key}=birds",), here / "birds"),
        (child, (f"corpus.{key}=/data/birds",), Path("/data/birds")),
    ):
        recipe = load_recipe(path, overrides)
        assert getattr(recipe.corpus, key) == str(meant)
        assert load_recipe(write(tmp_path, dump_recipe(recipe), "dumped")) == recipe


@pytest.mark.parametrize(
    ("override", "today"),
    [
        ("sampling.hearings=5", "sampling.tta_samples"),
        ("decoder.group=2", "decoder.patch_size"),
        ("stages.distill.losses.rate=1e-4", "stages.distill.losses.kl"),
        ("stages.decoder.losses.words=1", "stages.decoder.losses.caption"),
        ("stages.reader.steps=3", "stages.classifier"),
        ("stages.tokenizer.patience=9", "stages.tokenizer.stall_timeout"),
        ("stages.decoder.text_share=0.2", "stages.decoder.text_ratio"),
        ("corpus.rate=1.2", "corpus.tempo"),
    ],
)
def test_a_key_of_an_older_version_is_told_its_new_name(small: Path, override: str, today: str) -> None:
    with pytest.raises(RecipeError, match=rf"is called '{today}' since version 0\.2; write that$"):
        load_recipe(small, [override])


def test_paths_in_the_parts_of_a_mixture_are_relative_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = "[{weight: 2, corpus: {name: garden}}, {corpus: {name: folder, root: ../birds, size: 16}}]"
    (tmp_path / "recipes").mkdir()
    path = write(
        tmp_path / "recipes", SMALL.replace("{name: garden, size: 32}", f"{{name: mixture, size: 32, parts: {parts}}}")
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    garden, folder = recipe.corpus.parts  # type: ignore[attr-defined]
    assert (garden.weight, garden.corpus.size, folder.weight, folder.corpus.size) == (2, 32, 1, 16)
    assert folder.corpus.root == str(tmp_path / "birds")
    assert recipe.corpus.knows_attributes
    assert load_recipe(write(tmp_path, dump_recipe(recipe), "dumped")) == recipe
    said = message(
        path, "corpus={name: mixture, parts: [{corpus: {name: garden}}, {corpus: {name: folder, root: x, rot: x}}]}"
    )
    assert "unknown key 'corpus.parts.1.corpus.rot'; did you mean 'root'?" in said


@pytest.mark.parametrize("name", ["./sw.yaml", "./languages/my-own.yaml", "languages/my-own.yaml", "my-own.yaml"])
def test_a_language_may_be_a_card_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Relative to the recipe, so that a run works from anywhere; the code is the card's, whatever the file's name."""
    (tmp_path / "mine" / "languages").mkdir(parents=True)
    card = tmp_path / "mine" / name
    card.write_text(SWAHILI, encoding="utf-8")
    path = write(tmp_path / "mine", SMALL.replace("[en]", f"[{name}, en]"))
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    assert recipe.languages == ["sw", "en"]
    assert recipe.language_cards == {"sw": os.path.abspath(card)}
    assert [c.name for c in recipe.cards().values()] == ["Swahili", "English"]
    assert load_recipe(write(tmp_path, dump_recipe(recipe), "dumped")) == recipe
    assert load_recipe(path, ["languages=[en]"]).language_cards == {}
    assert load_recipe("garden-tiny", [f"languages=['{card.relative_to(tmp_path)}']"]).languages == ["sw"]


def test_two_cards_of_one_code_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path, SWAHILI, name)
    path = write(tmp_path, SMALL.replace("[en]", "[./one.yaml, ./two.yaml]"))
    assert "'sw' is there twice, by its code or by the path of a card" in message(path)
    write(tmp_path, SWAHILI.replace("code: sw", "code: en"), "one")
    assert "'en' is there twice" in message(path, f"languages=[en, {tmp_path}/one.yaml]")
    assert "no file or name" in message(path, "languages=[./nowhere.yaml]")


@pytest.mark.parametrize(("code", "holds"), [("pt-br", True), ("zh-hant-tw", True), ("en-", False), ("pt-BR", False)])
def test_codes_may_be_regional(tmp_path: Path, code: str, holds: bool) -> None:
    card = write(tmp_path, SWAHILI.replace("code: sw", f"code: {code}"), "card")
    path = write(tmp_path, SMALL.replace("[en]", "[./card.yaml]"))
    if holds:
        recipe = load_recipe(path, ["encoder.sharing=each"])
        assert recipe.groups == {code: [code]}
        assert recipe.language_cards == {code: str(card)}
    else:
        assert "'code'" in message(path)


def test_a_teacher_may_be_a_card_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    path = write(tmp_path / "mine", SMALL + "teacher: ./own.yaml\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(path).teacher == str(tmp_path / "mine" / "own.yaml")
    assert load_recipe(path, ["teacher=./own.yaml"]).teacher == str(tmp_path / "own.yaml")
    assert load_recipe(path, ["teacher=vit-b-32"]).teacher == "vit-b-32"
