"""`sta bench`: measure, print a table, and keep the numbers where --json says."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sta.cli.locate import finished_run, recipe_of, release_of
from sta.distributed import ranks
from sta.errors import StaError

if TYPE_CHECKING:
    from rich.table import Table

    from sta.metrics.rows import Report


def bench_sampling(options: argparse.Namespace) -> None:
    """Measure steps, guidance and TTA samples against quality and seconds, to set a recipe's `sampling`."""
    from sta.bench.sampling import bench_sampling as measure
    from sta.bench.sampling import table
    from sta.evaluation.evaluator import Evaluator
    from sta.inference.release import load_release

    workspace = finished_run(options.folder)
    evaluator = Evaluator(workspace, load_release(workspace.folder / "release"))
    report, best = measure(evaluator, options.steps, options.guidance, options.tta_samples, options.split)
    _show(table(report), report, options)
    print(f"best on {options.split}: {best}")


def bench_speed(options: argparse.Namespace) -> None:
    """Measure seconds per picture, against diffusers' VQDiffusionPipeline."""
    from sta.bench.speed import bench_speed as measure
    from sta.bench.speed import speed_table
    from sta.data.corpora.garden.prosody import speak as say
    from sta.inference.release import load_release

    pipe = load_release(release_of(options.weights), options.trust_remote_code)
    pack = next(iter(pipe.languages.values()))
    wave, _ = say(pack.card, pack.card.test_sentence, "neutral", 0, True)
    waves = [wave] * max(options.batch)
    report = measure(pipe, waves, pack.card.code, options.batch, options.repeats)
    _show(speed_table(report), report, options)
    for share in (r for r in report.rows if r.metric == "matrix_products"):
        print(f"matrix products and convolutions: {share.text} % of the drawing time")


def bench_encoder(options: argparse.Namespace) -> None:
    """Measure recordings a second through a speech backbone, on the processor."""
    import torch

    from sta.bench.encoder import bench_encoder as measure

    rate = measure(options.backbone, options.seconds, options.batch)
    print(
        f"{rate:.1f} recordings of {options.seconds:g} s a second, {options.batch} at once, float32, "
        f"threads: {torch.get_num_threads()}"
    )


def bench_train(options: argparse.Namespace) -> None:
    """Measure samples per second of stages, against loops written by hand."""
    from sta.bench.training import bench_training, training_table
    from sta.training.stages import stage_names
    from sta.training.workspace import Workspace

    workspace = Workspace(recipe_of(options), options.out)
    stages = stage_names(workspace.recipe)
    known = [name for name in stages if name != "prepare"]
    wrong = next((s for s in options.stage or [] if s not in known), None)
    if wrong:
        raise StaError(f"--stage {wrong} is not one of this recipe's training stages: {', '.join(known)}")
    if options.operations:
        from sta.bench.operations import operations_report, operations_table
        from sta.plan.corpus import AtHand, facts_of

        report = operations_report(workspace.recipe, facts_of(workspace.recipe, AtHand()), options.stage or known)
        return _show(operations_table(report), report, options)
    for name in stages[: max(map(stages.index, options.stage or known))]:
        workspace.final(name)  # a stage reads what those before it left
    if options.processes:
        report = _in_launches(options)
    else:
        report = bench_training(workspace, options.stage or known, options.steps, options.rounds, options.tflops)
    if ranks.is_main():
        _show(training_table(report), report, options)


def _in_launches(options: argparse.Namespace) -> Report:
    from sta.bench.scaling import bench_scaling

    if ranks.world_size() > 1:
        raise StaError("--processes starts its own launches; leave the launcher, or --processes, out")
    command = ["bench", "train", options.recipe, *options.overrides, "--out", str(options.out)]
    command += [f"--stage={stage}" for stage in options.stage or []] + [f"--steps={options.steps}", "--rounds=1"]
    command += [] if options.seed is None else [f"--seed={options.seed}"]
    command += [] if options.tflops is None else [f"--tflops={options.tflops}"]
    return bench_scaling(command, options.processes, options.rounds)


def _show(table: Table, report: Report, options: argparse.Namespace) -> None:
    """Print the table, and write the numbers where `--json` says."""
    from rich.console import Console

    Console().print(table)
    if options.json:
        report.write(options.json)
