"""Seconds per picture: this package's samplers against diffusers' `VQDiffusionPipeline`, in turn on one machine.

Where the decoder is VQ-Diffusion as published, its very weights are loaded into diffusers' pipeline too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from sta.errors import StaError
from sta.inference.pipeline import Audio, SpeechToImagePipeline
from sta.metrics.rows import Interval, Report, ResultKey, Row
from sta.models.bottleneck import SpeechCondition
from sta.models.decoders.vq_diffusion_published import PublishedDecoder
from sta.training.runtime import has_fast_bf16

OURS, THEIRS = "sta", "diffusers"
MATRIX_PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution", "aten::_convolution",
    "mkldnn::_linear_pointwise", "aten::_mps_convolution", "aten::cudnn_convolution", "aten::thnn_conv2d",
    "aten::slow_conv_transpose2d", "aten::_slow_conv2d_forward",
)  # fmt: skip


@dataclass(frozen=True)
class Contestant:
    """One way to draw a batch, and how many steps it takes."""

    system: str
    steps: int
    precision: str
    draw: Callable[[], Any]


def bench_speed(
    pipe: SpeechToImagePipeline,
    waves: Sequence[np.ndarray],
    language: str,
    batches: Sequence[int] = (1, 8),
    repeats: int = 5,
    reference: SpeechToImagePipeline | None = None,
) -> Report:
    """Seconds per picture of a release at its own steps, and of both samplers with `reference`'s weights.

    Args:
        pipe: the release to measure.
        waves, language: enough recordings for the largest batch; each release hears them with its own encoder.
        batches: pictures drawn at once.
        repeats: rounds in which every contestant draws once; the median counts.
        reference: a release whose decoder is VQ-Diffusion as published, on the same tokens; None leaves diffusers out.
    """
    rows: list[Row] = []
    for batch in sorted(batches):
        some: list[Audio] = list(waves[:batch])
        tokens = pipe.encode_speech(some, language)
        contestants = [
            _ours(pipe, tokens, pipe.config["num_inference_steps"], fast) for fast in _precisions(pipe.device)
        ]
        if reference is not None:
            contestants += _same_weights(reference, reference.encode_speech(some, language))
        seconds = in_turn({f"{c.system}|{c.steps}|{c.precision}": c.draw for c in contestants}, repeats)
        for contestant, times in zip(contestants, seconds.values(), strict=True):
            rows.append(_row(contestant, [t / batch for t in times], batch))
    meta = {"device": str(pipe.device), "threads": torch.get_num_threads(), "repeats": repeats}
    return Report(meta, rows + matrix_rows(contestants[0].draw, pipe.device))


def _precisions(device: torch.device) -> list[bool]:
    return [False, True] if has_fast_bf16(device.type) else [False]


def _ours(
    pipe: SpeechToImagePipeline, tokens: SpeechCondition, steps: int, fast: bool, system: str = OURS
) -> Contestant:
    def draw() -> Any:
        with torch.autocast(pipe.device.type, torch.bfloat16, enabled=fast):
            generator = torch.Generator().manual_seed(0)
            return pipe.decode_latents(pipe.denoise(tokens, steps, None, generator)).cpu()

    return Contestant(system, steps, "bf16" if fast else "fp32", draw)


def _same_weights(reference: SpeechToImagePipeline, tokens: SpeechCondition) -> list[Contestant]:
    """Both samplers at diffusers' default number of steps, which is T."""
    decoder = reference.decoder
    if not isinstance(decoder, PublishedDecoder):
        raise TypeError(
            f"{type(decoder).__name__} is not VQ-Diffusion as published, whose weights diffusers could load"
        )
    try:
        from sta.bench.reference import Reference
    except ImportError as error:  # diffusers keeps it among its deprecated pipelines
        raise StaError(
            f"this diffusers has no VQDiffusionPipeline ({error}); install diffusers 0.42 to compare with it"
        ) from error
    theirs, steps = Reference(decoder, reference.tokenizer), int(decoder.config.num_embeds_ada_norm)
    found = []
    for fast in _precisions(reference.device):

        def draw(fast: bool = fast) -> Any:
            with torch.autocast(reference.device.type, torch.bfloat16, enabled=fast):
                return theirs.draw(tokens.tokens, steps, reference.config["guidance_scale"], 0)

        found.append(_ours(reference, tokens, steps, fast, f"{OURS}, the same weights"))
        found.append(Contestant(THEIRS, steps, "bf16" if fast else "fp32", draw))
    return found


def in_turn(contestants: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contestant in each round, one after another, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def matrix_rows(run: Callable[[], Any], device: torch.device) -> list[Row]:
    """The share of `matrix_share`; none on a GPU, where the CPU's time is that of launching work, not of doing it."""
    if device.type != "cpu":
        return []
    where = ResultKey(language="all", split="all", condition="of the largest batch", system=OURS)
    return [Row.of("matrix_products", Interval(matrix_share(run)), 1, **where)]


def matrix_share(run: Callable[[], Any]) -> float:
    """BatchShard of the time on the CPU that is spent in matrix products and convolutions themselves."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    averages = profiled.key_averages()
    total = sum(e.self_cpu_time_total for e in averages)
    return sum(e.self_cpu_time_total for e in averages if e.key in MATRIX_PRODUCTS) / total


def _row(contestant: Contestant, seconds: Sequence[float], batch: int) -> Row:
    condition = f"batch {batch}, {contestant.steps} steps, {contestant.precision}"
    interval = Interval(statistics.median(seconds), min(seconds), max(seconds))
    return Row.of(
        "seconds", interval, batch, language="all", split="all", condition=condition, system=contestant.system
    )


def speed_table(report: Report) -> Table:
    """A line for each contestant with its seconds and how many times it is faster than diffusers at the same batch."""
    made = Table(
        title="seconds per picture (diffusers: its VQDiffusionPipeline)", title_justify="left", box=box.SIMPLE_HEAD
    )
    for name in ("system", "condition", "median", "fastest", "slowest", "faster"):
        made.add_column(name, no_wrap=True, justify="left" if name in ("system", "condition") else "right")
    timed = [r for r in report.rows if r.metric == "seconds"]
    for row in timed:
        batch, _, precision = row.condition.split(", ")
        baselines = [
            r.value for r in timed
            if r.system == THEIRS and r.condition.startswith(f"{batch}, ") and r.condition.endswith(precision)
        ]  # fmt: skip
        ratio = f"{baselines[0] / row.value:.1f} x" if baselines and row.system != THEIRS else ""
        made.add_row(row.system, row.condition, *(f"{x:.3f}" for x in (row.value, row.low, row.high)), ratio)
    return made
