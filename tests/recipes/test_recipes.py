"""Every recipe on disk runs all its stages, for two steps each at toy size, and what it releases draws."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from PIL import Image

from sta.bench.training import HAND, LOOP
from sta.bench.training import SYSTEMS as SYSTEMS_OF_TRAINING
from sta.cli.main import main
from sta.config import yamlfile
from sta.config.cards import load_language
from sta.config.published import MODELS
from sta.config.recipe import Recipe, load_recipe
from sta.data.audio import write_wav
from sta.data.checksums import write_sums
from sta.data.corpora.garden.corpus import WorldSettings, speak, world_of
from sta.data.corpora.garden.draw import draw
from sta.data.corpora.garden.grammar import Grammar
from sta.data.rows import Corpus
from sta.inference.release import verify
from sta.metrics.rows import SYSTEMS, Report
from tests.parquet_fixtures import write_parquet
from tests.picturebook_fixtures import write_emoji, write_speech, write_stamps
from tests.published_towers import IMAGE, towers_card, write_towers
from tests.tiny_whisper import write_whisper

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
STAGES = ("teacher", "tokenizer", "distill", "decoder", "classifier")
SMALL = (
    *("encoder.backbone=null", "encoder.width=32", "encoder.convolutions=1", "encoder.layers=1", "encoder.heads=2"),
    *("bottleneck.tokens=2", "bottleneck.width=8", "bottleneck.layers=1"),
    *("tokenizer.codes=16", "tokenizer.width=16", "decoder.width=32", "decoder.layers=1", "decoder.heads=2"),
    *(f"stages.{stage}.{size}" for stage in STAGES for size in ("steps=2", "batch=4")),
    *("teacher=garden-clip", "stages.distill.negatives=8", "corpus.size=32", "sampling.steps=2"),
    *("evaluation.items=4", "evaluation.pictures=1", "evaluation.samples=1"),
)
#: Of recipes on emoji, whose published parts are tiny ones in the same formats.
SMALL_EMOJI = (
    *("languages=[en,ar]", "corpus.concepts=12", "corpus.styles=[noto,noto-v1,twemoji]", "corpus.tested=1.0"),
    *("corpus.test_styles=[fluent-emoji-3d]", "corpus.recordings=2", "corpus.validation=2", "corpus.test=4"),
    *("corpus.size=32", "corpus.picture_size=32", "encoder.backbone=tiny/whisper", "encoder.backbone_layers=[1,2]"),
    *("encoder.width=32", "encoder.layers=1", "encoder.heads=2", "bottleneck.tokens=2", "bottleneck.width=8"),
    *("bottleneck.layers=1", "tokenizer.width=8", "decoder.width=32", "decoder.layers=1", "decoder.heads=2"),
    *(f"stages.{stage}.{size}" for stage in STAGES for size in ("steps=2", "batch=4")),
    *("stages.distill.negatives=8", "sampling.steps=2", "evaluation.items=4", "evaluation.pictures=1"),
    *("evaluation.samples=1", f"evaluation.judge={IMAGE}", "evaluation.recogniser=null"),
)
SMALL_GARDEN = (
    *("corpus.scenes=12", "corpus.validation=4", "corpus.test=4", "corpus.swaps=2"),
    *(() if find_spec("ttspico") else ("corpus.other_engines=0",)),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own corpus: ten recordings of English, the picture of each, and `metadata.jsonl`."""
    root = tmp_path_factory.mktemp("own")
    card, world = load_language("en"), world_of(WorldSettings())
    grammar, rng = Grammar(card, world), np.random.default_rng(0)
    lines = []
    for number in range(10):
        scene = world.sample(rng)
        text = grammar.describe(scene.kind, scene.attributes, rng)
        wave, speaker = speak(card, text, scene.mood, number, False)
        write_wav(root / f"{number}.wav", wave)
        draw(scene, 48).save(root / f"{number}.png")
        split = ("train", "validation", "test")[max(0, number - 4) // 2]
        line = {"audio": f"{number}.wav", "image": f"{number}.png", "text": text, "language": "en"}
        lines.append(json.dumps({**line, "speaker": speaker, "mood": scene.mood, "split": split}))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def check_run(run: Path, language: str, work: Path) -> None:
    """The run's folder is whole, and its release draws a spoken sentence, the same for the same seed."""
    report = Report.read(run / "evaluation" / "report.json")
    assert {row.language for row in report.rows} >= {language}
    assert {"tokenizer", "decoder"} < set(report.meta["training"])
    assert report.meta["training"]["decoder"]["machines"][0].endswith("1 x 1 threads")
    assert "<html" in (run / "evaluation" / "report.html").read_text(encoding="utf-8")
    with Image.open(run / "evaluation" / "grid.png") as grid:
        grid.verify()
    for name in ("model_index.json", "SHA256SUMS", "recipe.yaml", "README.md"):
        assert (run / "release" / name).is_file()
    verify(run / "release")
    card = ModelCard.load(run / "release" / "README.md")
    assert language in card.data.to_dict()["language"]
    assert f"`sta run {run.name}`" in card.text
    assert not list(run.rglob("*.partial"))

    said = work / "said.wav"
    assert main(["speak", load_language(language).test_sentence, "--language", language, "--out", str(said)]) == 0
    drawn = []
    for out in (work / "first", work / "again"):
        arguments = ["draw", str(said), "--language", language, "--weights", str(run / "release"), "--out", str(out)]
        assert main([*arguments, "--seed", "3"]) == 0
        drawn.append((out / "said.png").read_bytes())
    assert drawn[0] == drawn[1]
    with Image.open(work / "first" / "said.png") as picture:
        assert picture.size == (32, 32)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emoji, and tiny networks in the published formats with the card of a teacher made of them."""
    root = write_towers(write_emoji(tmp_path_factory.mktemp("parts")))
    write_whisper(root / "tiny" / "whisper")
    for picture in (*write_stamps(root / "stamps").glob("*/*.png"), *root.glob("stamps/*/*.svg")):
        if picture.stem != "a":
            write_speech(picture.with_name(f"{picture.stem}_desc.ogg"), 0.05 * (10 + int(picture.stem[:-1])))
    (root / "of-parts.yaml").write_text(yamlfile.dump(towers_card().model_dump(mode="json")))
    return root


def small(recipe: Recipe, folder: Path, parts: Path) -> list[str]:
    """Return what makes a recipe small, on a corpus that is here."""
    if recipe.corpus.knows_attributes:
        return [*SMALL, *SMALL_GARDEN]
    emoji = [*SMALL_EMOJI, f"corpus.root={parts}", f"teacher={parts / 'of-parts.yaml'}"]
    if recipe.corpus.name == "emoji":
        return emoji
    if recipe.corpus.name == "mixture":
        own = "corpus.parts.0.corpus."
        stamps = [f"{own.replace('0', '1')}{key}" for key in (f"root={parts / 'stamps'}", f"concepts={parts}")]
        return [key if "corpus.size" in key else key.replace("corpus.", own, 1) for key in emoji] + stamps
    return [*SMALL, f"corpus.root={folder}", "languages=[en]"]


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_recipe_runs_from_nothing_to_a_drawing(
    file: Path, tmp_path: Path, folder: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODELS, str(parts))
    recipe = load_recipe(file)
    assert main(["run", str(file), *small(recipe, folder, parts), "--out", str(tmp_path)]) == 0
    check_run(tmp_path / recipe.name, "en" if "en" in recipe.languages else recipe.languages[0], tmp_path)
    if recipe.corpus.name == "emoji":
        check_people(tmp_path / recipe.name, parts)
    if recipe.corpus.name == "mixture":
        check_mixture(tmp_path / recipe.name)
    if recipe.corpus.knows_attributes:
        check_garden_report(Report.read(tmp_path / recipe.name / "evaluation" / "report.json"), recipe)


def check_people(run: Path, parts: Path) -> None:
    """The run is measured on people of another corpus, beside its own report and card, which stay as they were."""
    own = {path: path.read_bytes() for path in (run / "evaluation" / "report.json", run / "release" / "README.md")}
    corpus = [f"corpus.root={parts / 'stamps'}", f"corpus.concepts={parts}", "evaluation.conditions=[noise-10]"]
    assert main(["evaluate", str(run), "--on", "people", *corpus, "evaluation.items=4"]) == 0
    report = Report.read(run / "evaluation-people" / "report.json")
    assert report.meta["corpus"] == "tuxpaint"
    found = {(r.metric, r.language, r.split, r.condition) for r in report.rows if r.system == "speech"}
    assert {("r10_speech_to_text", "en", "people", at) for at in ("clean", "noise-10")} <= found
    assert ("bits_per_second", "en", "people", "clean") in found
    assert {path: path.read_bytes() for path in own} == own


def check_mixture(run: Path) -> None:
    """People who are trained on are in the card of the weights, and those of other captions test."""
    report = Report.read(run / "evaluation" / "report.json")
    assert {"people", "voice", "concept"} <= {row.split for row in report.rows}
    cache = Path(json.loads((run / "prepare" / "final" / "prepare.json").read_text(encoding="utf-8"))["cache"])
    corpus = Corpus(cache / "corpus")
    of_people = (corpus.part_of == 1) & corpus.has_audio & ~corpus.column("speaker").valid()
    splits = {corpus.column("split")[row] for row in np.flatnonzero(of_people)}
    assert splits >= {"train", "people"}, "no synthesiser is their speaker"
    assert "gpl-2.0" in (run / "release" / "README.md").read_text(encoding="utf-8").lower()


def check_garden_report(report: Report, recipe: Recipe) -> None:
    """Every system and condition is there in every language; flite may be missing, and speaks no Arabic."""
    rows = {(r.language, r.system, r.condition) for r in report.rows if r.metric == "attributes"}
    systems = set(SYSTEMS) - {"speech", "retrieval", "unseen-style"}
    for language in recipe.languages:
        assert {(language, system, "clean") for system in systems} <= rows
        conditions = {"clean", "every-mood", *recipe.evaluation.conditions} - {"flite"}
        assert {(language, "speech", condition) for condition in conditions} <= rows
    assert ("ar", "speech", "flite") not in rows


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    """The same corpus as two Parquet shards that hold the recordings and name the pictures."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line["id"], line["audio"] = f"s{number}", {"bytes": (folder / line["audio"]).read_bytes(), "path": None}
    for number in range(2):
        write_parquet(folder / f"{number}.parquet", lines[number::2], image=pa.string())
    return folder


@pytest.mark.parametrize("corpus", ["name: folder, root: {}", "name: parquet, shards: {}, by_shards: true"])
def test_brought_corpus_runs_from_nothing_to_a_drawing(tmp_path: Path, shards: Path, corpus: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        f"extends: garden-tiny\nname: own\nlanguages: [en]\ncorpus: {{{corpus.format(shards)}, size: 32}}\n"
    )
    assert main(["run", str(file), *SMALL, "--out", str(tmp_path / "runs")]) == 0
    assert not (tmp_path / "runs" / "own" / "classifier").exists(), "only Garden knows the truth about its pictures"
    check_run(tmp_path / "runs" / "own", "en", tmp_path)


def test_every_recipe_on_disk_is_run() -> None:
    assert {file.stem for file in RECIPES} == set(yamlfile.names("recipes")) >= {"garden", "garden-mini", "garden-tiny"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the smallest recipe, to measure."""
    AcceleratorState._reset_state(reset_partial_state=True)
    out = tmp_path_factory.mktemp("finished")
    assert main(["run", "garden-tiny", *SMALL, *SMALL_GARDEN, "evaluation.conditions=[]", "--out", str(out)]) == 0
    return out / "garden-tiny"


def test_training_is_measured_and_the_run_is_left_as_it_was(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def state() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in finished.rglob("*") if p.is_file()}

    before, file = state(), tmp_path / "training.json"
    options = [*SMALL, *SMALL_GARDEN, "evaluation.conditions=[]", "--out", str(finished.parent)]
    options += ["--steps", "2", "--rounds", "1"]
    capsys.readouterr()
    assert main(["bench", "train", "garden-tiny", *options, "--json", str(file)]) == 0
    stages = {"teacher", "tokenizer", "distill-pooled", "decoder", "classifier"}
    said = capsys.readouterr().out
    assert all(stage in said for stage in stages)
    rows = Report.read(file).rows
    assert {r.condition for r in rows} == stages
    assert all(r.value > 0 for r in rows if r.metric not in ("exchange_share", "checkpoint_share"))
    assert {(r.metric, r.system) for r in rows} == {
        *(("samples_per_second", system) for system in SYSTEMS_OF_TRAINING), ("step_ratio", LOOP), ("bare_ratio", LOOP),
        ("bare_ratio", HAND), ("data_share", LOOP), ("exchange_share", LOOP), ("checkpoint_share", LOOP),
        ("step_operations", LOOP),
    }  # fmt: skip
    assert state() == before
    assert main(["bench", "train", "garden-tiny", *options, "--stage", "prepare"]) == 2
    assert "teacher, tokenizer, distill-pooled, decoder, classifier" in capsys.readouterr().err


def test_a_stage_done_again_reaches_release_and_evaluation(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same seed would train the same decoder, so a file of it is changed here instead."""
    options = ["garden-tiny", *SMALL, *SMALL_GARDEN, "evaluation.conditions=[]", "--out", str(finished.parent)]
    decoder = finished / "release" / "decoder" / "config.json"

    def again() -> tuple[str, int]:
        assert main(["run", *options]) == 0
        return capsys.readouterr().err, decoder.stat().st_mtime_ns

    before, whole = again(), decoder.read_text()
    assert "made anew" not in before[0]
    config = finished / "decoder" / "final" / "decoder" / "config.json"
    config.write_text(config.read_text() + "\n")
    said, made = again()
    for folder in ("release", "evaluation"):
        assert f"{finished / folder}: made before decoder was done again; made anew" in said
    assert made > before[1]
    assert decoder.read_text().split() == whole.split()
    assert again()[0] == before[0]
    verify(finished / "release")
    for folder in ("release", "evaluation"):  # as made by versions that kept no record
        (finished / folder / "parts.json").unlink()
    write_sums(finished / "release")
    assert again() == (before[0], made)


def test_launches_of_one_and_two_processes_are_measured(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    file = tmp_path / "scaling.json"
    options = [*SMALL, *SMALL_GARDEN, "evaluation.conditions=[]", "--out", str(finished.parent), "--stage", "teacher"]
    options += ["--steps", "2", "--rounds", "1", "--tflops", "1", "--json", str(file)]
    assert main(["bench", "train", "garden-tiny", *options, "--processes", "1", "2"]) == 0
    rows = Report.read(file).rows
    found = {r.condition: r.value for r in rows if (r.metric, r.system) == ("samples_per_second", LOOP)}
    one, two = found["teacher, 1 processes"], found["teacher, 2 processes"]
    efficiency = {r.condition: r.value for r in rows if r.metric == "scaling_efficiency"}
    assert efficiency == {"teacher, 1 processes": 1, "teacher, 2 processes": pytest.approx(two / one / 2)}
    assert {"exchange_share", "checkpoint_share", "flops_utilisation"} < {r.metric for r in rows}
    capsys.readouterr()
    assert main(["bench", "train", "garden-tiny", *options, "--processes", "3"]) == 2
    assert capsys.readouterr().err.count("batch 4 is not a multiple of 3 processes") == 1


def test_sampling_is_measured_on_a_finished_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a run: a line for every setting, the numbers as JSON, and one sentence where the split is unknown."""
    run, file = finished, tmp_path / "sampling.json"
    options = ["--steps", "1", "2", "--guidance", "1", "3", "--tta-samples", "1", "2", "--json", str(file)]
    capsys.readouterr()
    assert main(["bench", "sampling", str(run), *options]) == 0
    said = capsys.readouterr().out
    settings = {
        f"steps {steps}, guidance {guidance}, tta_samples {tta_samples}"
        for steps in (1, 2)
        for guidance in (1, 3)
        for tta_samples in (1, 2)
    }
    assert "…" not in said, "the table fits into 80 columns"
    assert all(re.search(" +".join(re.findall(r"\d+", setting)), said) for setting in settings)
    assert said.splitlines()[-1].removeprefix("best on validation: ") in settings
    rows = Report.read(file).rows
    assert {r.condition for r in rows} == settings
    assert {r.split for r in rows} == {"validation"}
    assert {(r.metric, r.language) for r in rows} >= {
        ("attributes", "en"), ("exact", "ar"), ("mood", "en"), ("fid", "all"), ("seconds", "all")
    }  # fmt: skip
    assert all(r.value > 0 for r in rows if r.metric == "seconds")
    assert main(["bench", "sampling", str(run), "--split", "nowhere"]) == 2
    assert "validation, seen, voice, combination, both" in capsys.readouterr().err
