"""The command line as a user meets it: what it says, on which stream, with which exit code, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from sta.cli.doctor import launch_options
from sta.cli.main import main
from sta.config import yamlfile
from sta.config.recipe import dump_recipe, load_recipe
from sta.config.variants import known_variants
from sta.data.synthesis.base import ENGINES, Synthesiser
from sta.errors import AudioError, WeightsError
from sta.inference.release import parts_of
from sta.training.stages import stage_names
from sta.training.workspace import Workspace
from tests.release_fixtures import SIZE, wave, write_tiny_release, write_wave

ROOT = Path(__file__).parents[2]
COMMANDS = ("demo", "run", "train", "plan", "draw", "speak", "evaluate", "bench", "language", "doctor")


class Said(NamedTuple):
    code: int
    out: str
    err: str


Sta = Callable[..., Said]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("tiny") / "release")


@pytest.fixture
def sta(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sta]:
    """Run a command in an empty folder, where `runs` and `drawings` would go."""
    monkeypatch.delenv("STA_WEIGHTS", raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    environment = dict(os.environ)

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as left:
            code = int(left.code or 0)
        return Said(code, *capsys.readouterr())

    yield run
    os.environ.clear()
    os.environ.update(environment)


def refused(said: Said, *words: str) -> None:
    """Exit code 2, one sentence on stderr with all the words, nothing on stdout."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("sta: "), said.err
    assert said.err.count("\n") == 1, said.err
    assert said.err.endswith("\n")
    for word in words:
        assert word in said.err


def subprocess_environment(**variables: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | variables


def python_m_sta(*arguments: object, cwd: Path) -> Said:
    command = [sys.executable, "-m", "sta", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=subprocess_environment(), capture_output=True, text=True, check=False, timeout=120
    )
    return Said(done.returncode, done.stdout, done.stderr)


# ---- draw: what is refused ----------------------------------------------------------------------------------


def _text(folder: Path) -> Path:
    path = folder / "notes.wav"
    path.write_text("not a recording at all\n")
    return path


def _empty(folder: Path) -> Path:
    (folder / "empty.wav").touch()
    return folder / "empty.wav"


def _nan(folder: Path) -> Path:
    samples = wave()
    samples[100] = np.nan
    return write_wave(folder / "nan.wav", samples, subtype="FLOAT")


def _cut(folder: Path) -> Path:
    path = write_wave(folder / "cut.wav", wave())
    path.write_bytes(path.read_bytes()[:-1000])
    return path


BAD_AUDIO: list[tuple[str, Callable[[Path], Path], tuple[str, ...]]] = [
    ("text", _text, ("notes.wav", "a text file", "WAV, FLAC, MP3 or OGG")),
    ("empty", _empty, ("empty.wav", "empty")),
    ("short", lambda f: write_wave(f / "short.wav", wave(0.05)), ("short.wav", "too short", "0.05 s", "0.1 s")),
    ("long", lambda f: write_wave(f / "long.wav", wave(600, rate=8_000), 8_000), ("long.wav", "600 s", "--seconds")),
    ("5.1", lambda f: write_wave(f / "film.wav", np.tile(wave()[:, None], 6)), ("film.wav", "6 channels")),
    ("nan", _nan, ("nan.wav", "NaN")),
    ("silent", lambda f: write_wave(f / "silent.wav", 0 * wave()), ("silent.wav", "silent")),
    ("cut", _cut, ("cut.wav", "cut off")),
    ("missing", lambda f: f / "nowhere.wav", ("nowhere.wav", "does not exist")),
    ("folder", lambda f: f, ("is a folder",)),
]


@pytest.mark.parametrize(("make", "words"), [b[1:] for b in BAD_AUDIO], ids=[b[0] for b in BAD_AUDIO])
def test_draw_refuses_a_recording(
    sta: Sta, release: Path, tmp_path: Path, make: Callable[[Path], Path], words: tuple[str, ...]
) -> None:
    """Even beside a good recording: nothing is drawn and no folder is made."""
    good = write_wave(tmp_path / "good.wav", wave())
    refused(sta("draw", good, make(tmp_path), "--language", "en", "--weights", release, "--out", "o"), *words)
    assert not Path("o").exists()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_wave(tmp_path / "bird.wav", wave())


def test_draw_unknown_language(sta: Sta, release: Path, recording: Path) -> None:
    refused(sta("draw", recording, "--language", "sw", "--weights", release), "'sw'", "ar, en")
    assert not list(Path().iterdir())


def test_draw_with_what_is_no_release(
    sta: Sta, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere"
    refused(sta("draw", recording, "--language", "en", "--weights", nowhere), str(nowhere), "no such folder")
    refused(sta("draw", recording, "--language", "en", "--weights", tmp_path), str(tmp_path), "SHA256SUMS")
    monkeypatch.setenv("STA_WEIGHTS", str(nowhere))
    refused(sta("draw", recording, "--language", "en"), str(nowhere))
    assert not list(Path().iterdir())


def test_draw_truncated_weights(sta: Sta, recording: Path, tmp_path: Path) -> None:
    broken = write_tiny_release(tmp_path / "broken")
    weights = broken / "decoder" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(sta("draw", recording, "--language", "en", "--weights", broken), str(weights), "truncated or changed")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("below", ["", "sub", "sub/sub"])
def test_draw_to_where_nothing_can_be_written(sta: Sta, release: Path, recording: Path, below: str) -> None:
    """Below a regular file, which not even root can write to."""
    Path("file").touch()
    refused(
        sta("draw", recording, "--language", "en", "--weights", release, "--out", Path("file") / below),
        "--out", "file is not a folder",
    )  # fmt: skip
    assert [p.name for p in Path().iterdir()] == ["file"]


def test_draw_to_a_read_only_folder(sta: Sta, release: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(sta("draw", recording, "--language", "en", "--weights", release, "--out", "o"), "cannot be written to")
    assert not Path("o").exists()


def test_draw_the_same_stem_twice(sta: Sta, release: Path, recording: Path, tmp_path: Path) -> None:
    other = write_wave(tmp_path / "bird.flac", wave())
    refused(sta("draw", recording, other, "--language", "en", "--weights", release), "drawings/bird.png")
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "options",
    [
        ("--pictures", 0), ("--pictures", "²"), ("--steps", 0), ("--steps", 1.5), ("--guidance", 0.5),
        ("--guidance", "nan"), ("--guidance", "much"), ("--guidance", 1e30), ("--seed", -1), ("--seed", 2**64),
        ("--start", -1),
        ("--start", "nan"), ("--seconds", 0), ("--seconds", 9), ("--start", 9), ("--moon", 3),
    ],
    ids=lambda o: "=".join(map(str, o)),
)  # fmt: skip
def test_draw_refuses_an_option(sta: Sta, release: Path, recording: Path, options: tuple[str, object]) -> None:
    refused(sta("draw", recording, "--language", "en", "--weights", release, *options), options[0])
    assert not list(Path().iterdir())


def test_draw_refuses_more_steps_than_there_are_times(sta: Sta, release: Path, recording: Path) -> None:
    said = sta("draw", recording, "--language", "en", "--weights", release, "--steps", 1_000_000)
    refused(said, "num_inference_steps 1000000", "at most")
    assert not list(Path().rglob("*.png"))


def test_debug_raises(sta: Sta, release: Path, recording: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError):
        sta("draw", tmp_path / "nowhere.wav", "--language", "en", "--weights", release, "--debug")
    with pytest.raises(WeightsError):
        sta("draw", recording, "--language", "sw", "--weights", release, "--debug")


# ---- draw: what is drawn ------------------------------------------------------------------------------------


def _eight_kilohertz(folder: Path) -> Path:
    return write_wave(folder / "telephone.wav", wave(rate=8_000), 8_000)


@pytest.mark.parametrize(
    "make",
    [
        _eight_kilohertz,
        lambda f: write_wave(f / "a.mp3", wave()),
        lambda f: write_wave(f / "a.ogg", wave()),
        lambda f: write_wave(f / "a.flac", wave()),
        lambda f: write_wave(f / "stereo.wav", np.tile(wave()[:, None], 2)),
        lambda f: write_wave(f / "cd.wav", np.tile(wave(rate=44_100)[:, None], 2), 44_100, "PCM_24"),
        lambda f: write_wave(f / "طائر أحمر.wav", wave()),
        lambda f: Path(write_wave(f / "b.flac", wave()).replace(f / "b.wav")),
    ],
    ids=["8kHz", "mp3", "ogg", "flac", "stereo", "24-bit 44.1 kHz stereo", "arabic name", "flac named wav"],
)
def test_draw(sta: Sta, release: Path, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    said = sta("draw", path, "--language", "ar", "--weights", release, "--out", "o/deep")
    assert said == (0, f"o/deep/{path.stem}.png\n", "")
    with Image.open(Path("o/deep") / f"{path.stem}.png") as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (SIZE, SIZE), "RGB")
    assert len(list(Path("o/deep").iterdir())) == 1


def test_draw_a_window_of_a_long_recording(sta: Sta, release: Path, tmp_path: Path) -> None:
    path = write_wave(tmp_path / "long.wav", wave(60, rate=8_000), 8_000)
    draw = ("draw", path, "--language", "en", "--weights", release, "--start", 55)
    assert sta(*draw, "--seconds", 2).code == 0
    assert sta(*draw).code == 0


def test_draw_twice_gives_the_same_bytes(sta: Sta, release: Path, recording: Path) -> None:
    for out, seed in (("a", 4), ("b", 4), ("c", 5)):
        said = sta("draw", recording, "--language", "en", "--weights", release, "--out", out, "--seed", seed)
        assert said.code == 0
    a, b, c = (Path(out, "bird.png").read_bytes() for out in "abc")
    assert a == b
    assert a != c


def test_draw_several_pictures(sta: Sta, release: Path, recording: Path, tmp_path: Path) -> None:
    """Picture k of seed s is the picture of seed s + k - 1, and recordings may stand after the options."""
    other = write_wave(tmp_path / "flower.wav", wave(seed=2))
    draw = ("--language", "en", "--weights", release)
    said = sta("draw", recording, *draw, "--pictures", 2, other)
    assert said.err == ""
    assert said.out.split() == [f"drawings/{n}-{k}.png" for n in ("bird", "flower") for k in (1, 2)]
    assert sta("draw", other, *draw, "--seed", 1, "--out", "again").code == 0
    assert Path("drawings/flower-2.png").read_bytes() == Path("again/flower.png").read_bytes()


def test_draw_takes_the_newest_run(sta: Sta, recording: Path, tmp_path: Path) -> None:
    write_tiny_release(Path("runs/one/release"))
    assert sta("draw", recording, "--language", "en").code == 0


def test_python_m_sta(release: Path, recording: Path, tmp_path: Path) -> None:
    """From a real process nothing but the promised line reaches the terminal."""
    said = python_m_sta("draw", recording, "--language", "en", "--weights", release, cwd=tmp_path)
    assert said == (0, "drawings/bird.png\n", "")


def test_a_recipe_may_name_a_module_of_the_current_folder(sta: Sta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    Path("mine_here.py").write_text("class Mine: pass\n")
    said = sta("plan", "garden-tiny", "stages.decoder.task=mine_here:Mine")
    assert "'mine_here:Mine' is no Task of sta.training.task" in said.err


# ---- speak --------------------------------------------------------------------------------------------------


def test_speak_and_draw_it(sta: Sta, release: Path) -> None:
    said = sta("speak", "a red bird", "--language", "en", "--mood", "happy", "--voice", "en-us+f2", "--out", "a.wav")
    assert said.code == 2  # en-us is an accent of training, f2 a variant of the test
    said = sta("speak", "a red bird", "--language", "en", "--mood", "happy", "--voice", "en-us+f1", "--out", "a.wav")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("a.wav (")
    assert sta("draw", "a.wav", "--language", "en", "--weights", release).code == 0


def test_speak_says_what_cannot_be_drawn_whole(sta: Sta) -> None:
    said = sta("speak", "a red bird " * 60, "--language", "en")
    assert said.code == 0
    assert "cannot be drawn whole" in said.err
    assert Path("speech.wav").exists()


def test_draw_of_no_name(sta: Sta, release: Path) -> None:
    refused(sta("draw", "", "--language", "en", "--weights", release), "name is empty")


def test_speak_is_the_same_again(sta: Sta) -> None:
    for out in ("a.wav", "b.wav"):
        assert sta("speak", "طائر أحمر", "--language", "ar", "--seed", 3, "--out", out).code == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("a bird", "--language", "en", "--voice", "nobody"), ("'nobody'", "en-us+f1")),
        (("a bird", "--language", "en", "--mood", "bored"), ("'bored'", "neutral", "fearful")),
        (("a bird", "--language", "tlh"), ("'tlh'", "known: ar,")),
        (("a bird", "--language", "en", "--out", "file/a.wav"), ("file/a.wav", "cannot be written")),
        (("a bird", "--language", "en", "--out", ""), ("is a folder",)),
        (("a bird", "--language", "en", "--seed", "-1"), ("--seed",)),
        (("", "--language", "en"), ("no text",)),
        (("a bird", "--language", "en", "--out", "a.mp3"), ("a.mp3", "such as a.wav")),
        (("a bird", "--language", "en", "--voice", "x"), ("'x'", "do, such as", "speech.voices")),
    ],
    ids=[
        "voice",
        "mood",
        "language",
        "below a file",
        "a folder",
        "seed",
        "no text",
        "no WAV",
        "how to name a voice",
    ],
)
def test_speak_refuses(sta: Sta, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    Path("file").touch()
    refused(sta("speak", *options), *words)
    assert [p.name for p in Path().iterdir()] == ["file"]


# ---- run and train ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("garden-tiny", "corpus.scens=3"), ("scens", "did you mean 'scenes'")),
        (("garden-tiny", "stages.decoder.stepps=3"), ("stepps", "did you mean 'steps'")),
        (("garden-tnyi",), ("'garden-tnyi'", "did you mean 'garden-tiny'")),
        (("nowhere/recipe.yaml",), ("nowhere/recipe.yaml", "garden-mini")),
        (("garden-tiny", "corpus.scenes=many"), ("corpus", "scenes", "'many'", "integer")),
        (("garden-tiny", "corpus.scenes=-5"), ("scenes", "-5")),
        (("garden-tiny", "scenes"), ("'scenes'", "key=value")),
        (("garden-tiny", "seed=["), ("seed=[",)),
        (("garden-tiny", "name=../up"), ("'../up'",)),
        (("garden-tiny", "languages=[]"), ("languages",)),
        (("garden-tiny", "--seed", "x"), ("--seed", "'x'")),
        (("garden-tiny", "--out", "runs", "corpus.scens=3"), ("scens",)),
    ],
    ids=lambda a: " ".join(a),
)
def test_run_refuses(sta: Sta, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    for command in (("run", *arguments), ("train", *arguments, "--stage", "prepare")):
        refused(sta(*command), *words)
    assert not list(Path().iterdir())


def test_a_recipe_file_with_a_misspelt_key(sta: Sta, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: garden-tiny\nname: mine\ndecodr: {width: 64}\n")
    refused(sta("run", recipe), str(recipe), "decodr", "decoder")
    recipe.write_text("name: [\n")
    refused(sta("run", recipe), str(recipe), "YAML")
    assert not list(Path().iterdir())


def test_run_in_the_folder_of_another_recipe(sta: Sta) -> None:
    """Found before anything is done, and nothing of the other run is touched."""
    Path("runs/garden-tiny/reader/final").mkdir(parents=True)
    Path("runs/garden-tiny/reader/final/reader.json").touch()
    Path("runs/garden-tiny/recipe.yaml").write_text("name: garden-tiny\n")
    refused(sta("run", "garden-tiny"), "recipe.yaml", "another recipe", "--out")
    files = sorted(p.as_posix() for p in Path().rglob("*") if p.is_file())
    assert files == ["runs/garden-tiny/reader/final/reader.json", "runs/garden-tiny/recipe.yaml"]
    assert Path("runs/garden-tiny/recipe.yaml").read_text() == "name: garden-tiny\n"


def test_a_corpus_that_was_not_found_keeps_no_name_from_the_corrected_one(sta: Sta, tmp_path: Path) -> None:
    for root in ("birdz", "birdzz"):
        corpus = ("name=birds", f"corpus={{name: folder, root: {tmp_path / root}}}")
        refused(sta("run", "garden-tiny", *corpus), root, "metadata.jsonl")
    assert not list(Path("runs").rglob("*.partial"))


def test_run_where_an_engine_of_the_recipe_is_missing(sta: Sta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sta.data.synthesis.pico.find_spec", lambda name: None)
    refused(sta("run", "garden"), "pico is not installed", "pip install ttspico", "corpus.other_engines=0")
    assert not Path("runs").exists()


def test_train_an_unknown_stage(sta: Sta) -> None:
    refused(sta("train", "garden-tiny", "--stage", "distil"), "'distil'", "prepare", "distill-pooled", "decoder")
    refused(sta("train", "garden-tiny"), "--stage")


def test_evaluate_what_is_no_run(sta: Sta, tmp_path: Path, release: Path) -> None:
    refused(sta("evaluate", tmp_path / "nowhere"), "nowhere", "recipe.yaml")
    refused(sta("evaluate", Path(__file__)), "not a run's folder")
    refused(sta("evaluate", release), "recipe.yaml")
    run = Path("runs/garden-tiny")
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_bytes((ROOT / "recipes" / "garden-tiny.yaml").read_bytes())
    refused(sta("evaluate", run), "no release/", "sta run")
    run.rename("runs/moved")
    (Path("runs/moved") / "release").mkdir()
    refused(sta("evaluate", "runs/moved"), "runs/moved", "'garden-tiny'")
    refused(sta("evaluate", "runs/moved", "evaluation.items=3"), "'evaluation.items=3' goes with --on CORPUS")


@pytest.mark.parametrize("command", [("evaluate",), ("bench", "sampling")], ids=" ".join)
def test_a_release_from_before_a_stage_was_done_again_is_not_measured(sta: Sta, command: tuple[str, ...]) -> None:
    run, recipe = Path("runs/garden-tiny"), load_recipe("garden-tiny")
    for name in ("release", *(f"{stage}/final" for stage in stage_names(recipe))):
        (run / name).mkdir(parents=True)
        (run / name / "config.json").write_text("{}")
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    (run / "release" / "parts.json").write_text(json.dumps(parts_of(Workspace(recipe, Path("runs")))))
    refused(sta(*command, run), "SHA256SUMS")
    (run / "decoder" / "final" / "config.json").write_text("{} ")
    refused(sta(*command, run), "release: made before decoder was done again; `sta run` makes it anew")
    (run / "decoder" / "final" / "config.json").unlink()
    (run / "decoder" / "final").rmdir()
    refused(sta(*command, run), "decoder/final: not there", "sta run")


def test_evaluate_keeps_the_old_report_when_it_fails(sta: Sta) -> None:
    run = Path("runs/garden-tiny")
    for name in ("release", "evaluation"):
        (run / name).mkdir(parents=True)
    (run / "recipe.yaml").write_bytes((ROOT / "recipes" / "garden-tiny.yaml").read_bytes())
    (run / "evaluation" / "report.json").write_text("{}")
    refused(sta("evaluate", run), "SHA256SUMS")
    assert (run / "evaluation" / "report.json").read_text() == "{}"
    assert sorted(p.name for p in run.iterdir()) == ["evaluation", "recipe.yaml", "release"]


# ---- language, doctor, help ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", yamlfile.names("languages"))
def test_language_check(sta: Sta, code: str) -> None:
    for name in (code, yamlfile.packaged("languages") / f"{code}.yaml"):
        said = sta("language", "check", name)
        assert (said.code, said.err) == (0, "")
        assert [line.split(":")[0] for line in said.out.splitlines()[1:4]] == ["normaliser", "speech", "garden"]


def test_language_check_refuses(sta: Sta, tmp_path: Path) -> None:
    text = (yamlfile.packaged("languages") / "en.yaml").read_text(encoding="utf-8")
    broken = tmp_path / "en.yaml"
    for old, new, words in (
        ("code: en", "code: English", ("code", "English")),
        ("normaliser: [nfc,", "normaliser: [nfcc,", ("nfcc", "did you mean 'nfc'")),
        ("voices: [en-us,", "voices: [en-moon,", ("en-moon",)),
        ("test_voices:", "test_voicse:", ("test_voicse", "did you mean 'test_voices'")),
        ("native_name: English", "native_name: [", ("en.yaml",)),
    ):
        assert old in text
        broken.write_text(text.replace(old, new, 1), encoding="utf-8")
        said = sta("language", "check", broken)
        assert said.code == 2
        assert said.err.startswith("sta: ")
        assert said.err.count("\n") == 1
        assert all(word in said.err for word in words), said.err
    refused(sta("language", "check", "tlh"), "'tlh'", "known: ar,")
    refused(sta("language"), "COMMAND")


def test_doctor(sta: Sta) -> None:
    said = sta("doctor")
    assert (said.code, said.err) == (0, "")
    heads = [line.split(":")[0] for line in said.out.splitlines()]
    assert {"packages", "processor", "precision", "deepspeed", "voices", "disk"} <= set(heads)
    assert heads.count("voices") == len(yamlfile.names("languages"))
    assert "torch" in said.out


@pytest.mark.parametrize("gpus", range(10))
def test_doctor_launches_on_any_number_of_gpus(gpus: int) -> None:
    file, *more = launch_options(gpus).split()
    assert Path(file).name == {0: "cpu-2.yaml", 1: "gpu-1.yaml"}.get(gpus, "gpu-8.yaml")
    assert f"num_processes: {gpus or 2}" in Path(file).read_text() or more == ["--num_processes", str(gpus)]


def test_doctor_says_what_is_missing(sta: Sta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sta.cli.doctor.PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr("sta.data.synthesis.pico.find_spec", lambda name: None)
    said = sta("doctor").out
    assert "no-such-package missing" in said
    assert "English (en), where a recipe asks for them (corpus.other_engines): pico is not installed" in said


def test_doctor_knows_the_other_engines(sta: Sta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sta.data.synthesis.pico.find_spec", lambda name: object())
    said = [line for line in sta("doctor").out.splitlines() if line.startswith("other voices")]
    assert "other voices: English (en), 32 to train, of pico" in said
    assert "other voices: French (fr), 16 to train, of pico" in said


def test_doctor_lists_the_engines(sta: Sta, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("STA_MODELS", str(tmp_path))
    said = [line for line in sta("doctor").out.splitlines() if line.startswith("engine")]
    assert len(said) == len(known_variants(ENGINES, Synthesiser)) >= 6
    assert said[0].startswith("engine: espeak, espeakng-loader ")
    assert said[1] == (
        "engine: flite is missing: flite is not installed, so the unheard engine is left out; `apt-get install flite` "
        "brings it"
    )
    assert said[2].startswith("engine: kokoro is missing: ")


def test_help(sta: Sta) -> None:
    said = sta("--help")
    assert (said.code, said.err) == (0, "")
    assert all(f"\n    {c} " in said.out for c in COMMANDS)
    for c in COMMANDS:
        said = sta(c, "--help")
        assert (said.code, said.err) == (0, "")
        assert f"usage: sta {c}" in said.out


@pytest.mark.parametrize("arguments", [(), ("paint",), ("--paint",), ("draw",), ("doctor", "now")], ids=" ".join)
def test_misuse_is_one_line(sta: Sta, arguments: tuple[str, ...]) -> None:
    refused(sta(*arguments), "--help")


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    program = "import sys, sta.cli.main; sta.cli.main.build_parser().format_help(); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=subprocess_environment(), capture_output=True, text=True,
        check=True,
    ).stdout.split()  # fmt: skip
    assert not {"torch", "numpy", "diffusers", "transformers", "pydantic", "rich", "yaml"} & set(modules)


def test_drawing_loads_nothing_of_training(tmp_path: Path) -> None:
    """datasets and open_clip take more than a second to import."""
    modules = subprocess.run(
        [sys.executable, "-c", "import sys, sta.inference.release; print(*sys.modules)"],
        cwd=tmp_path, env=subprocess_environment(), capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert not {"datasets", "open_clip", "pyarrow", "deepspeed", "torchmetrics"} & set(modules)


# ---- signals ------------------------------------------------------------------------------------------------


def test_sigterm_while_preparing(tmp_path: Path) -> None:
    """Stops with EX_TEMPFAIL and one sentence; the same command again goes on with the shards that were made."""
    small = ("corpus.scenes=8", "corpus.validation=2", "corpus.test=2", "corpus.swaps=1", "languages=[en]")
    command = [sys.executable, "-m", "sta", "train", "garden-tiny", *small, "--stage", "prepare"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=subprocess_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("runs/cache/*/corpus.partial/shards/*.arrow")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 75, (process.returncode, out, err)
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert lines[-1] == "sta: stopped on SIGTERM; run the same command again to continue"
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/*/prepare/final*"))
    made = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("runs/cache/*/corpus*/shards/*.arrow")}

    again = python_m_sta(*command[3:], cwd=tmp_path)
    assert again.code == 0, again.err
    assert again.out == "runs/garden-tiny/prepare/final\n"
    assert json.loads((tmp_path / "runs/garden-tiny/prepare/final/prepare.json").read_text())["rows"]["swap"] > 0
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("runs/cache/*/corpus/shards/*.arrow")}
    assert made.items() <= kept.items()
    assert not list(tmp_path.glob("runs/**/*.partial"))
