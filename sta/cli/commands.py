"""What the commands of `sta` do, one function each; `sta bench` and `sta plan` have theirs beside what they measure."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sta.cli.locate import finished_run, recipe_of, release_of
from sta.distributed import ranks
from sta.errors import AudioError, LanguageWarning, StaError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from sta.inference.pipeline import SpeechToImagePipeline


def demo(options: argparse.Namespace) -> None:
    """Captions spoken and drawn: one PNG and one page with the sound in it."""
    if options.say is not None and options.language is None:
        raise StaError("--say needs --language CODE, such as --language en")
    if options.mood is not None and options.say is None:
        raise StaError("--mood goes with --say TEXT; without it every mood is shown")
    _writable(options.out)
    from sta.cli.demo import Demo, score, write_demo
    from sta.inference.release import PRETRAINED
    from sta.progress import Bar

    shipped = None if os.environ.get("STA_WEIGHTS") else PRETRAINED
    show = Demo(release_of(options.weights or shipped), options.trust_remote_code)
    languages = [options.language] if options.language else list(show.pipe.languages)
    if options.say is None:
        sentences = list(show.sentences(languages, options.seed, options.captions))
    else:
        sentences = show.say(options.say, options.language, options.mood, options.seed)
    examples = []
    with Bar("demo", len(sentences), "recordings") as bar:
        for sentence in sentences:
            examples.append(show.example(sentence, options.pictures))
            bar.advance()
    page = write_demo(options.out, examples, "Speak the Art")
    right, marked = score(examples)
    print(f"{right} of {marked} attributes and moods are right, as the attribute classifier sees them")
    print(f"look and listen: {page} (and {page.with_suffix('.png').name})")


def run(options: argparse.Namespace) -> None:
    """Every stage in order, then the release, the report and its table."""
    from rich.console import Console

    from sta.training.stages import open_run, run_stage, stage_names

    workspace = open_run(recipe_of(options), options.out)
    for name in stage_names(workspace.recipe):
        run_stage(workspace, name)
    from sta.evaluation.report import evaluate as measure
    from sta.inference.modelcard import write_card
    from sta.inference.release import remove_outdated, write_release

    ranks.run_on_main(lambda: remove_outdated(workspace))
    release = ranks.run_on_main(lambda: write_release(workspace))
    report = measure(workspace, release)
    if not ranks.is_main():
        return
    write_card(release, workspace.recipe, list(workspace.cards.values()), report)
    report.table(Console())
    print(f"pictures and numbers: {workspace.folder / 'evaluation' / 'report.html'}")
    print(f"draw with it: sta draw FILE --language {workspace.recipe.languages[0]} --weights {release}")


def train(options: argparse.Namespace) -> None:
    """One stage, on this process's share of the launch."""
    from sta.training.stages import open_run, run_stage

    final = run_stage(open_run(recipe_of(options), options.out), options.stage)
    if ranks.is_main():
        print(final)


def draw(options: argparse.Namespace) -> None:
    """Draw each recording; all are read before anything is drawn, and a picture is written whole or not at all."""
    from sta.data.audio import read_audio

    names = _picture_names(options)
    waves = list(
        ranks.parallel_map(options.files, lambda f: read_audio(f, start=options.start, seconds=options.seconds))
    )
    pipe = _load(options)
    pairs = list(zip(names, waves, strict=True))
    for paths in ranks.parallel_map(pairs, lambda pair: _draw_one(pipe, *pair, options)):
        for path in paths if ranks.is_main() else []:
            print(path, flush=True)


def _draw_one(pipe: SpeechToImagePipeline, name: Path, wave: np.ndarray, options: argparse.Namespace) -> list[Path]:
    """Draw and write the pictures of one recording; returns where they are."""
    import torch

    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", LanguageWarning)
        images = pipe(
            wave, language=options.language, num_images_per_prompt=options.pictures,
            generator=[torch.Generator().manual_seed(options.seed + k) for k in range(options.pictures)],
            num_inference_steps=options.steps, guidance_scale=options.guidance, num_tta_samples=options.tta_samples,
        ).images  # fmt: skip
    for doubt in doubts:
        if issubclass(doubt.category, LanguageWarning):
            print(f"sta: {name.stem}: {doubt.message}", file=sys.stderr)
    several = [name.with_stem(f"{name.stem}-{number + 1}") for number in range(len(images))]
    paths = several if len(images) > 1 else [name]
    for image, path in zip(images, paths, strict=True):
        _save_picture(image, path)
    return paths


def _picture_names(options: argparse.Namespace) -> list[Path]:
    """Where each recording's picture goes; a folder that cannot be is told before anything slow is done."""
    if "" in options.files:
        raise StaError("a recording's name is empty; name a file, such as bird.wav")
    names = [options.out / f"{Path(f).stem}.png" for f in options.files]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise StaError(f"two recordings would both be drawn to {twice}; draw them with different --out folders")
    _writable(options.out)
    return names


def _writable(out: Path) -> None:
    """Refuse an --out folder that cannot be, before anything slow is done."""
    there = next(p for p in (out, *out.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise StaError(f"--out {out}: {there} is not a folder; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StaError(f"--out {out}: {there} cannot be written to; choose another")


def _save_picture(image: Image.Image, path: Path) -> None:
    from sta.data.cache import write_atomically

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _load(options: argparse.Namespace) -> SpeechToImagePipeline:
    from sta.inference.release import load_release

    pipe = load_release(release_of(options.weights), options.trust_remote_code)
    pipe.pack(options.language)
    return pipe


def speak(options: argparse.Namespace) -> None:
    """Say a sentence in a mood and write it as a WAV file."""
    import numpy as np

    from sta.config.cards import load_language
    from sta.config.limits import MAX_SECONDS, SAMPLE_RATE
    from sta.data.audio import write_wav
    from sta.data.corpora.garden.prosody import delivery
    from sta.data.corpora.garden.world import MOODS
    from sta.data.synthesis.base import synthesiser
    from sta.data.synthesis.espeak import speakers
    from sta.errors import VoiceError

    card = load_language(options.language)
    if options.out.is_dir():
        raise AudioError(f"--out {options.out} is a folder; name a file in it, such as {options.out / 'speech.wav'}")
    if options.out.suffix.lower() != ".wav":
        raise AudioError(f"--out {options.out}: a WAV file is written; name it so, such as {options.out.stem}.wav")
    if options.mood not in MOODS:
        raise VoiceError(f"mood '{options.mood}' is not one of {', '.join(MOODS)}")
    train, test = speakers(card.speech.voices, card.speech.test_voices)
    by_name = {voice.name: voice for voice in [*train, *test]}
    rng = np.random.default_rng(options.seed)
    name = options.voice or train[int(rng.integers(len(train)))].name
    if name not in by_name:
        some = ", ".join(list(by_name)[:5])
        raise VoiceError(
            f"voice '{name}' does not speak {card.code}; {len(by_name)} do, such as {some}: an accent of the card "
            "(speech.voices, speech.test_voices), + and a variant of espeak"
        )
    engine = synthesiser(card.speech.synthesiser)
    wave = engine.speak(options.text, by_name[name], delivery(options.mood, rng), card.speech.words_per_minute)
    write_wav(options.out, wave)
    if len(wave) > MAX_SECONDS * SAMPLE_RATE:
        print(
            f"sta: {options.out} lasts more than {MAX_SECONDS:g} s and cannot be drawn whole; `sta draw` takes a "
            "window of it with --start and --seconds",
            file=sys.stderr,
        )
    print(f"{options.out} ({len(wave) / SAMPLE_RATE:.1f} s, {name}, {options.mood})")


def evaluate(options: argparse.Namespace) -> None:
    """Measure a run again, with its recipe as resolved."""
    from rich.console import Console

    from sta.evaluation.report import evaluate_again
    from sta.inference.modelcard import write_card

    workspace = finished_run(options.folder)
    report = evaluate_again(workspace)
    if not ranks.is_main():
        return
    write_card(workspace.folder / "release", workspace.recipe, list(workspace.cards.values()), report)
    report.table(Console())
    if options.json:
        report.write(options.json)
    print(f"pictures and numbers: {workspace.folder / 'evaluation' / 'report.html'}")


def rehearse(options: argparse.Namespace) -> None:
    """What a cluster does to a training, on purpose; fails where the training does not end as it would have."""
    from rich.console import Console

    from sta.bench.rehearsal import as_json, table
    from sta.bench.rehearsal import rehearse as do
    from sta.data.cache import write_atomically

    outcomes = do(recipe_of(options), options.out, options.stage, options.launch, options.kills, options.seed or 0)
    Console().print(table(outcomes))
    if options.json:
        write_atomically(options.json, as_json(outcomes).encode())
    bad = [f"{o.launch} ({', '.join(o.different) or 'no checkpoint was left'})" for o in outcomes if not o.passed]
    if bad:
        raise StaError(f"not as an uninterrupted run: {'; '.join(bad)}; the folders are kept in {options.out}")


def language_check(options: argparse.Namespace) -> None:
    """Validate a language file: card, normaliser, grammar, voices; then say one sentence of it."""
    from sta.data.language import check

    for line in check(options.file):
        print(line)


def doctor(options: argparse.Namespace) -> None:
    """What this machine can do."""
    from sta.cli.doctor import report

    for line in report():
        print(line)
