"""The commands of `sta`, one function each, whose first line is its help; `bench` is a module beside it."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sta.cli.locate import finished_run, recipe_of, release_of
from sta.distributed import ranks
from sta.errors import AudioError, LanguageWarning, StaError

if TYPE_CHECKING:
    import numpy as np

    from sta.inference.pipeline import SpeechToImagePipeline
    from sta.metrics.rows import Report
    from sta.training.workspace import Workspace

WIDTH = 105  # of the widest table, where the terminal is narrower or there is none
NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "overflow")  # in what torch says


def demo(options: argparse.Namespace) -> None:
    """Speak in every language to the releases that ship, draw that, and write a page to look at."""
    if options.say is not None and options.language is None:
        raise StaError("--say needs --language CODE, such as --language en")
    if options.mood is not None and options.say is None:
        raise StaError("--mood goes with --say TEXT; without it every mood is shown")
    _writable(options.out)
    from sta.cli.demo import Demo, score, write_demo
    from sta.inference.weights import shipped
    from sta.progress import Bar

    named = options.weights or os.environ.get("STA_WEIGHTS")
    folders = [release_of(options.weights)] if named else shipped() or [release_of(None)]
    shows = [Demo(folder, options.trust_remote_code) for folder in folders]
    shows = [show for show in shows if show.takes(options.language, options.mood)] or shows[:1]  # which says why not
    planned = []
    for show in shows:
        languages = [options.language] if options.language else list(show.pipe.languages)
        if options.say is None:
            sentences = list(show.sentences(languages, options.seed, options.captions))
        else:
            sentences = show.say(options.say, options.language, options.mood, options.seed)
        planned += [(show, sentence) for sentence in sentences]
    examples = []
    with Bar("demo", len(planned), "recordings") as bar:
        for show, sentence in planned:
            examples.append(show.example(sentence, options.pictures))
            bar.advance()
    page = write_demo(options.out, examples, "Speak the Art")
    right, scored = score(examples)
    if scored:
        print(f"{right} of {scored} attributes and moods are right, as the attribute classifier sees them")
    print(f"look and listen: {page} (and {page.with_suffix('.png').name})")


def run(options: argparse.Namespace) -> None:
    """Do every stage of a recipe, from nothing to a report; finished stages are skipped."""
    from sta.training.stages import open_run, run_stage, stage_names

    workspace = open_run(recipe_of(options), options.out)
    for name in stage_names(workspace.recipe):
        run_stage(workspace, name)
    from sta.evaluation.report import evaluate as measure
    from sta.inference.release import remove_outdated, write_release

    ranks.run_on_main(lambda: remove_outdated(workspace))
    release = ranks.run_on_main(lambda: write_release(workspace))
    report = measure(workspace, release)
    if not ranks.is_main():
        return
    _publish(workspace, report)
    print(f"draw with it: sta draw FILE --language {workspace.recipe.languages[0]} --weights {release}")


def train(options: argparse.Namespace) -> None:
    """Do one stage of a recipe (the same as `accelerate launch -m sta.train`)."""
    from sta.training.stages import open_run, run_stage

    final = run_stage(open_run(recipe_of(options), options.out), options.stage)
    if ranks.is_main():
        print(final)


def draw(options: argparse.Namespace) -> None:
    """Draw recordings (WAV, FLAC, MP3, OGG; any rate; mono or stereo).

    All are read before anything is drawn, and a picture is written whole or not at all.
    """
    from sta.data.audio import read_audio
    from sta.inference.release import load_release

    names, window = _picture_names(options), {"start": options.start, "seconds": options.seconds}
    waves = list(ranks.parallel_map(options.files, lambda file: read_audio(file, **window)))
    pipe = load_release(release_of(options.weights), options.trust_remote_code)
    pipe.pack(options.language)
    pairs = list(zip(names, waves, strict=True))
    for paths in ranks.parallel_map(pairs, lambda pair: _draw_one(pipe, *pair, options)):
        for path in paths if ranks.is_main() else []:
            print(path, flush=True)


def _draw_one(pipe: SpeechToImagePipeline, name: Path, wave: np.ndarray, options: argparse.Namespace) -> list[Path]:
    """Draw and write the pictures of one recording; returns where they are."""
    import torch

    from sta.data.cache import write_atomically

    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always", LanguageWarning)
        images = pipe(
            wave, language=options.language, num_images_per_prompt=options.pictures,
            generator=[torch.Generator().manual_seed(options.seed + k) for k in range(options.pictures)],
            num_inference_steps=options.steps, guidance_scale=options.guidance, num_tta_samples=options.tta_samples,
            style=options.style,
        ).images  # fmt: skip
    for doubt in (d for d in doubts if issubclass(d.category, LanguageWarning)):
        print(f"sta: {name.stem}: {doubt.message}", file=sys.stderr)
    several = [name.with_stem(f"{name.stem}-{number + 1}") for number in range(len(images))]
    paths = several if len(images) > 1 else [name]
    for image, path in zip(images, paths, strict=True):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())
    return paths


def _picture_names(options: argparse.Namespace) -> list[Path]:
    """Return where each recording's picture goes, once a folder that cannot be is refused."""
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


def speak(options: argparse.Namespace) -> None:
    """Say a sentence with the synthesiser of a language and write a WAV file."""
    from sta.config.cards import load_language
    from sta.config.limits import MAX_SECONDS, SAMPLE_RATE
    from sta.data.audio import write_wav
    from sta.data.corpora.garden.prosody import speak as say
    from sta.data.corpora.garden.world import MOODS
    from sta.errors import VoiceError

    card = load_language(options.language)
    if options.out.is_dir():
        raise AudioError(f"--out {options.out} is a folder; name a file in it, such as {options.out / 'speech.wav'}")
    if options.out.suffix.lower() != ".wav":
        raise AudioError(f"--out {options.out}: a WAV file is written; name it so, such as {options.out.stem}.wav")
    if options.mood not in MOODS:
        raise VoiceError(f"mood '{options.mood}' is not one of {', '.join(MOODS)}")
    wave, name = say(card, options.text, options.mood, options.seed, False, name=options.voice)
    write_wav(options.out, wave)
    if len(wave) > MAX_SECONDS * SAMPLE_RATE:
        longer = f"lasts more than {MAX_SECONDS:g} s and cannot be drawn whole, but from --start for --seconds"
        print(f"sta: {options.out} {longer}", file=sys.stderr)
    print(f"{options.out} ({len(wave) / SAMPLE_RATE:.1f} s, {name}, {options.mood})")


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a finished run again and write its report."""
    from sta.evaluation.other_corpus import evaluate_on
    from sta.evaluation.report import evaluate_again

    if options.overrides and not options.on:
        raise StaError(f"'{options.overrides[0]}' goes with --on CORPUS; a run's own recipe is not changed")
    workspace = finished_run(options.folder)
    if options.on:
        folder, report = evaluate_on(workspace, options.on, options.overrides)
    else:
        report = evaluate_again(workspace)
    if not ranks.is_main():
        return
    if options.json:
        report.write(options.json)
    if options.on:
        _show(folder, report)
    else:
        _publish(workspace, report)


def _publish(workspace: Workspace, report: Report) -> None:
    """Write the model card of a run's release, and print what was measured."""
    from sta.inference.modelcard import write_card

    write_card(workspace.folder / "release", workspace.recipe, list(workspace.cards.values()), report)
    _show(workspace.folder / "evaluation", report)


def _show(folder: Path, report: Report) -> None:
    """Print a report, and where its page is."""
    from rich.console import Console

    report.table(Console())
    print(f"pictures and numbers: {folder / 'report.html'}")


def plan(options: argparse.Namespace) -> None:
    """Estimate what a recipe takes on some GPUs: parameters, memory, hours, disk."""
    from rich.console import Console

    from sta.plan.corpus import AtHand, facts_of, with_languages
    from sta.plan.memory import GIB
    from sta.plan.plan import Machines, plan_of
    from sta.plan.report import show, write
    from sta.progress import Bar
    from sta.training.stages import stage_names

    if options.seconds and options.longest and options.seconds > options.longest:
        raise StaError(f"--seconds {options.seconds:g} is above --longest {options.longest:g}; a mean is at most that")
    recipe = with_languages(recipe_of(options), options.languages)
    at_hand = AtHand(options.captions, options.seconds, options.longest, options.pictures)
    machines = Machines(options.gpus, options.nodes, options.memory * GIB, options.tflops, options.utilisation)
    sections = {name.partition("-")[0] for name in stage_names(recipe)}  # the first is the corpus
    try:
        with Bar("planning", len(sections), "parts") as bar:
            facts = facts_of(recipe, at_hand)
            bar.advance()
            made = plan_of(recipe, facts, machines, bar.advance)
    except (MemoryError, RuntimeError) as error:  # torch has no error of its own for want of memory
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        raise StaError(
            f"recipe '{recipe.name}': its networks are too large to be planned in the memory of this machine; take "
            "smaller sizes (such as decoder.width) or a smaller stages.*.batch"
        ) from error
    show(made, Console(width=max(WIDTH, Console().width)))
    if options.json:
        write(made, options.json)


def rehearse(options: argparse.Namespace) -> None:
    """Kill a stage again and again, and fail where it does not end as one that was not."""
    from rich.console import Console

    from sta.bench.rehearsal import rehearse as do
    from sta.bench.rehearsal import table
    from sta.data.cache import write_json

    outcomes = do(recipe_of(options), options.out, options.stage, options.launch, options.kills, options.seed or 0)
    Console().print(table(outcomes))
    if options.json:
        write_json(options.json, [{**asdict(o), "passed": o.passed} for o in outcomes])
    bad = [f"{o.launch} ({', '.join(o.different) or 'no checkpoint was left'})" for o in outcomes if not o.passed]
    if bad:
        raise StaError(f"not as an uninterrupted run: {'; '.join(bad)}; the folders are kept in {options.out}")


def language_check(options: argparse.Namespace) -> None:
    """Validate a language file and say a sentence of it."""
    from sta.data.language import check

    for line in check(options.file):
        print(line)


def doctor(options: argparse.Namespace) -> None:
    """Report what this machine can do: devices, precision, launch files, voices, disk."""
    from sta.cli.doctor import report

    for line in report():
        print(line)
