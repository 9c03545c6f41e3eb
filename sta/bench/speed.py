"""Seconds per picture: this package's samplers against diffusers' `VQDiffusionPipeline`, in turn on one machine.

Each draws in its own number of steps, and both samplers draw with one network in the same number: VQ-Diffusion's as
published, as wide and as deep as the release's decoder, with fresh weights, for speed does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from sta.config.recipe import Sampling
from sta.errors import StaError
from sta.inference.arguments import Audio
from sta.inference.pipeline import SpeechToImagePipeline
from sta.metrics.rows import Interval, Report, Row, everywhere
from sta.metrics.tables import make_table
from sta.models.bottleneck import SpeechCondition
from sta.models.decoders.base import PictureGrid, TokenSpace
from sta.models.decoders.vq_diffusion_published import PublishedDecoder
from sta.models.vq import VQTokenizer
from sta.training.runtime import has_fast_bf16

OURS, SAME, THEIRS = "sta", "sta, same network", "diffusers"
MATRIX_PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution", "aten::_convolution",
    "mkldnn::_linear_pointwise", "aten::_mps_convolution", "aten::cudnn_convolution", "aten::thnn_conv2d",
    "aten::slow_conv_transpose2d", "aten::_slow_conv2d_forward",
)  # fmt: skip


@dataclass(frozen=True)
class Contestant:
    """One way to draw a batch, in so many steps."""

    system: str
    steps: int
    draw: Callable[[int], Any]


def bench_speed(
    pipe: SpeechToImagePipeline, waves: Sequence[np.ndarray], language: str, batches: Sequence[int], repeats: int
) -> Report:
    """Measure seconds per picture of a release, in bfloat16 where the machine is fast in it.

    Every contestant draws each number of pictures at once in each of `repeats` rounds, of which the median counts;
    `waves` are enough recordings for the largest batch.
    """
    rows: list[Row] = []
    fast = has_fast_bf16(pipe.device.type)
    for batch in sorted(batches):
        some: list[Audio] = list(waves[:batch])
        found = contestants(pipe, pipe.encode_speech(some, language), fast)
        for contestant, times in zip(found, in_turn(found, repeats), strict=True):
            condition = f"batch {batch}, {contestant.steps} steps, {'bf16' if fast else 'fp32'}"
            measured = Interval.of_rounds([t / batch for t in times])
            rows.append(Row.of("seconds", measured, batch, **everywhere(condition, contestant.system)))
    meta = {"device": str(pipe.device), "threads": torch.get_num_threads(), "repeats": repeats}
    ours = found[0]
    return Report(meta, rows + matrix_rows(lambda: ours.draw(ours.steps), pipe.device))


def contestants(pipe: SpeechToImagePipeline, tokens: SpeechCondition, fast: bool) -> list[Contestant]:
    """Return the release, both samplers on one network in the release's steps, and diffusers in its own steps."""
    try:
        from sta.bench.reference import Reference
    except ImportError as error:  # diffusers keeps it among its deprecated pipelines
        raise StaError(
            f"this diffusers has no VQDiffusionPipeline ({error}); install diffusers 0.42 to compare with it"
        ) from error
    same, steps, scale = published_twin(pipe), pipe.config["num_inference_steps"], pipe.config["guidance_scale"]
    theirs = Reference(same.decoder, same.tokenizer)

    autocast = torch.autocast(pipe.device.type, torch.bfloat16, enabled=fast)

    def ours(drawn_by: SpeechToImagePipeline) -> Callable[[int], Any]:
        def draw(count: int) -> Any:
            drawn = drawn_by.denoise(tokens, count, scale, torch.Generator().manual_seed(0))
            return drawn_by.decode_latents(drawn).cpu()

        return autocast(draw)

    their = autocast(lambda count: theirs.draw(tokens.tokens, count, scale, 0))
    return [
        Contestant(OURS, steps, ours(pipe)), Contestant(SAME, steps, ours(same)), Contestant(THEIRS, steps, their),
        Contestant(THEIRS, int(same.decoder.config.num_embeds_ada_norm), their),
    ]  # fmt: skip


def published_twin(pipe: SpeechToImagePipeline) -> SpeechToImagePipeline:
    """Make an untrained VQ-Diffusion as published, of the size and for the codes and tokens of a release."""
    tokenizer, bottleneck = pipe.tokenizer, next(iter(pipe.languages.values())).bottleneck.config
    if not tokenizer.config.codes:  # it draws latents that no codes stand for
        tokenizer = VQTokenizer(tokenizer.config.size, 1024, factor=tokenizer.config.factor).to(pipe.device).eval()
    settings = PublishedDecoder.Settings.model_validate({"kind": "vq-diffusion-published", **pipe.decoder.sizes})
    grid = PictureGrid(tokenizer.side, tokenizer.config.codes, tokenizer.config.code_width)
    space = TokenSpace(bottleneck.tokens, bottleneck.width, bottleneck.embedding_width)
    decoder = PublishedDecoder.build(settings, grid, space).to(pipe.device).eval()
    return SpeechToImagePipeline(decoder, tokenizer, decoder.build_scheduler(settings, Sampling()))


def in_turn(contestants: Sequence[Contestant], repeats: int) -> list[list[float]]:
    """Measure each contestant's seconds in every round, one after another, once all have drawn in a single step."""
    for contestant in contestants:
        contestant.draw(1)
    seconds: list[list[float]] = [[] for _ in contestants]
    for _ in range(repeats):
        for contestant, times in zip(contestants, seconds, strict=True):
            started = time.perf_counter()
            contestant.draw(contestant.steps)
            times.append(time.perf_counter() - started)
    return seconds


def matrix_rows(run: Callable[[], Any], device: torch.device) -> list[Row]:
    """Measure `matrix_share`, but not on a GPU, where the CPU's time is that of launching work, not of doing it."""
    if device.type != "cpu":
        return []
    return [Row.of("matrix_products", Interval(matrix_share(run)), 1, **everywhere("of the largest batch", OURS))]


def matrix_share(run: Callable[[], Any]) -> float:
    """Measure the share of the time on the CPU that is spent in matrix products and convolutions themselves."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    averages = profiled.key_averages()
    total = sum(e.self_cpu_time_total for e in averages)
    return sum(e.self_cpu_time_total for e in averages if e.key in MATRIX_PRODUCTS) / total


def ratios(rows: Sequence[Row]) -> dict[int, float]:
    """Return how many times as long diffusers takes as each row of ours, by the row's number.

    The release is compared with diffusers in its own steps, and the sampler on the same network in the same steps.
    """
    found = {}
    for number, row in enumerate(rows):
        batch, _, precision = row.condition.split(", ")
        theirs = [r for r in rows if r.system == THEIRS and (r.condition == row.condition or row.system == OURS)]
        theirs = [r for r in theirs if r.condition.startswith(f"{batch},") and r.condition.endswith(precision)]
        if row.system != THEIRS and theirs:
            found[number] = max(r.value for r in theirs) / row.value
    return found


def speed_table(report: Report) -> Table:
    """Tabulate a line for each contestant with its seconds and how many times it is faster than diffusers."""
    timed = [r for r in report.rows if r.metric == "seconds"]
    times = {number: f"{ratio:.1f} x" for number, ratio in ratios(timed).items()}
    lines = [
        [row.system, row.condition, *(f"{x:.3f}" for x in (row.value, row.low, row.high)), times.get(number, "")]
        for number, row in enumerate(timed)
    ]
    columns = ("system", "condition", "median", "fastest", "slowest", "faster")
    return make_table("seconds per picture (diffusers: its VQDiffusionPipeline)", columns, lines)
