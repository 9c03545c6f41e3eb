"""One flat row per measured number, with a 95 % interval and the chance level.

`METRICS` is the one place that fixes the metrics' names. A `Report` is a run's `report.json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

from sta.data.cache import write_atomically
from sta.errors import StaError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Metric:
    """One metric: what it says, and its unit ("%" is kept as a fraction in [0, 1])."""

    meaning: str
    unit: str = "%"

    def text(self, value: float) -> str:
        """Print `value`, in percent where the unit is "%"; a dash for not measured."""
        if not math.isfinite(value):
            return "–"
        if self.unit == "%":
            return f"{100 * value:.1f}"
        return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


METRICS: dict[str, Metric] = {
    "attributes": Metric("share of the spoken attributes that the picture shows"),
    "colours": Metric("share of the spoken colours that are on the right part"),
    "exact": Metric("share of pictures with every spoken attribute right"),
    "mood": Metric("share of pictures in the light of the speaker's mood"),
    "swap": Metric("share of pairs where one changed word changes its part and nothing else"),
    "r1_speech_to_image": Metric("speech finds its picture first"),
    "r5_speech_to_image": Metric("speech finds its picture in the first five"),
    "r10_speech_to_image": Metric("speech finds its picture in the first ten"),
    "r1_image_to_speech": Metric("picture finds one of its captions first"),
    "r5_image_to_speech": Metric("picture finds one of its captions in the first five"),
    "r10_image_to_speech": Metric("picture finds one of its captions in the first ten"),
    "zero_shot1": Metric("a picture's label is the one whose names the teacher has nearest"),
    "zero_shot5": Metric("a picture's label is among the five whose names the teacher has nearest"),
    "r1_speech_to_text": Metric("speech finds its caption first, among all of the split"),
    "r5_speech_to_text": Metric("speech finds its caption in the first five"),
    "r10_speech_to_text": Metric("speech finds its caption in the first ten"),
    "speech_top1": Metric("before drawing: speech is nearest to its own concept, in the teacher's space"),
    "speech_top5": Metric("before drawing: its own concept is among the nearest five"),
    "concept_top1": Metric("the judge sees the concept in the picture"),
    "concept_top5": Metric("the concept is among the judge's first five"),
    "judge_top1": Metric("the judge's own accuracy on real pictures that it never saw, which bounds what it says"),
    "judge_top5": Metric("the same, among its first five"),
    "style": Metric("the picture is drawn in the style that was asked for"),
    "judge_style": Metric("the judge's own accuracy on the styles of real pictures that it never saw"),
    "novelty": Metric("cosine distance of a picture to the nearest training picture, in the judge's features", ""),
    "novelty_real": Metric("the same of real pictures that training never had", ""),
    "diversity": Metric("mean cosine distance between drawings of one recording, in the judge's features", ""),
    "diversity_real": Metric("the same between real pictures of one concept", ""),
    "fid": Metric("Fréchet distance to the real pictures, in the extractor that the report names", ""),
    "is": Metric("inception score, in the classifier that the report names", ""),
    "classifier": Metric("attribute classifier's accuracy on real pictures, which bounds every score"),
    "psnr": Metric("peak signal-to-noise ratio of the tokenizer's pictures", "dB"),
    "seconds": Metric("seconds per picture, from tokens to pixels, weights loaded", "s"),
    "matrix_products": Metric("share of the drawing time spent in matrix products and convolutions"),
    "samples_per_second": Metric("training samples per second", "/s"),
    "step_ratio": Metric("a training step against that of a loop written by hand, both on batches in memory", "x"),
    "bare_ratio": Metric("a training step against the bare model's forward and backward", "x"),
    "data_share": Metric("share of a training step spent making its batch"),
    "exchange_share": Metric("share of a training step that one process on its share would not need"),
    "checkpoint_share": Metric("share of the training time spent saving every `save_every` steps"),
    "flops_utilisation": Metric("operations of forward and backward, of the device's most in that time"),
    "step_operations": Metric("operations that torch is asked for in a training step, as on a GPU", ""),
    "scaling_efficiency": Metric("samples per second of a process, against that of the fewest processes"),
    "bits": Metric("rate through the bottleneck per utterance", "bit"),
    "bits_per_second": Metric("rate through the bottleneck per second of speech", "bit/s"),
}

#: Metrics of version 0.1 -> today's.
RENAMED_METRICS = {"reader": "classifier"}

SPLITS = ("style", "concept", "phrase", "seen", "voice", "engine", "people", "combination", "both")

#: The language of a number that is the mean over languages.
MEAN = "mean"

#: system -> what it is; the order is the order of reports. Others may be reported and come after.
SYSTEMS: dict[str, str] = {
    "speech": "the system: speech in, picture out",
    "tokens-probe": "attributes read from the speech tokens, before any drawing",
    "truth-to-decoder": "the true attributes in a plain sentence, written, given to the same decoder: no speech",
    "cascade-perfect": "the true caption, written, given to the same decoder: the ceiling of every speech recogniser",
    "cascade": "a transcript (the CTC head's, or a recogniser's), given to the same decoder: a recogniser in front",
    "tokenizer": "the real picture through the image tokenizer and back",
    "retrieval": "no drawing: the training picture nearest to the speech in the teacher's space, shown as it is",
    "unseen-style": "drawn in a style in which training never had that thing",
    "shuffled": "the picture of another utterance",
}


class ResultKey(TypedDict):
    """Which cell of the results a number belongs to."""

    language: str
    split: str
    condition: str
    system: str


def everywhere(condition: str, system: str, split: str = "all") -> ResultKey:
    """Return the cell of a number over all languages."""
    return ResultKey(language="all", split=split, condition=condition, system=system)


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95 % interval; NaN where unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of_rounds(cls, values: Sequence[float]) -> Interval:
        """Return the median of what was measured in some rounds, and the extremes as its interval."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One number of a report; NaN in `low`, `high`, `chance` where there is none."""

    metric: str
    language: str
    split: str
    condition: str
    value: float
    low: float
    high: float
    chance: float
    n: int
    system: str

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}; known: {', '.join(METRICS)}")

    @classmethod
    def of(cls, metric: str, interval: Interval, n: int, chance: float = math.nan, **where: Unpack[ResultKey]) -> Row:
        """Make the row of a measured interval over `n` items."""
        return cls(metric, value=interval.value, low=interval.low, high=interval.high, chance=chance, n=n, **where)

    @property
    def text(self) -> str:
        """Value and interval as printed: `71.3 (70.1-72.4)`."""
        text = METRICS[self.metric].text
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return text(self.value) + (f" ({text(self.low)}–{text(self.high)})" if known else "")

    @property
    def chance_text(self) -> str:
        """The chance level as printed; nothing where there is none."""
        return METRICS[self.metric].text(self.chance) if math.isfinite(self.chance) else ""


def as_numbers(rows: Iterable[Row]) -> dict[str, float]:
    """Return each row's value by its metric, and `_low`, `_high` and `_chance`."""
    parts = {"": "value", "_low": "low", "_high": "high", "_chance": "chance"}
    return {row.metric + end: getattr(row, part) for row in rows for end, part in parts.items()}


def bootstrap(values: ArrayLike, samples: int = 1000, seed: int = 0) -> Interval:
    """Compute the mean of [n] items and its 95 % percentile bootstrap interval (Efron 1979).

    Raises:
        ValueError: another shape, no items, or a value that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"bootstrap takes [n] values of at least one item, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("bootstrap got a value that is not finite; leave out items that have none")
    generator = np.random.default_rng(seed)
    parts = np.array_split(np.arange(samples), math.ceil(samples * len(array) / 4_000_000))  # bounds the memory
    means = [array[generator.integers(len(array), size=(len(part), len(array)))].mean(axis=1) for part in parts]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return Interval(float(array.mean()), float(low), float(high))


def known_first(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the distinct `names`, those of `known` in its order, then the rest as they come."""
    found, order = dict.fromkeys(names), tuple(known)
    return [n for n in order if n in found] + [n for n in found if n not in order]


def by_condition(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield `system, condition` with its rows, in the order of reports."""
    for system in known_first((r.system for r in rows), SYSTEMS):
        own = [r for r in rows if r.system == system]
        for condition in known_first((r.condition for r in own), ("clean",)):
            yield f"{system}, {condition}", [r for r in own if r.condition == condition]


@dataclass(frozen=True)
class Report:
    """A run's numbers: `meta` says what was measured and how, `rows` hold one number each."""

    meta: dict[str, Any]
    rows: list[Row]

    def write(self, path: Path | str) -> None:
        """Write `report.json`, complete or not at all; what is not finite becomes null."""
        content = {"meta": self.meta, "rows": [dataclasses.asdict(row) for row in self.rows]}
        text = json.dumps(_finite(content), ensure_ascii=False, indent=1, allow_nan=False)
        write_atomically(Path(path), (text + "\n").encode())

    @classmethod
    def read(cls, path: Path | str) -> Report:
        """Read what `write` wrote.

        Raises:
            StaError: the file is missing, is no report, or has a metric that this version does not know.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(content["meta"], [_row(row) for row in content["rows"]])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StaError(f"{path} is no report of `sta evaluate`: {type(error).__name__}: {error}") from error

    def table(self, console: Console) -> None:
        """Print the rows, one table per system and condition, three languages beside each other (100 columns)."""
        from sta.metrics.tables import make_table

        for title, rows in by_condition(self.rows):
            languages, splits = list(dict.fromkeys(r.language for r in rows)), dict.fromkeys(r.split for r in rows)
            shown = ", ".join([title, *splits] if len(splits) == 1 else [title])
            for start in range(0, len(languages), 3):
                some = languages[start : start + 3]
                console.print(make_table(shown, ["", *some, "chance"], _lines(rows, some, len(splits) > 1)))


def titled(metric: str) -> str:
    """Return a metric's name with its unit, such as `exact %`."""
    return f"{metric} {METRICS[metric].unit}".strip()


def _lines(rows: Sequence[Row], languages: Sequence[str], by_split: bool) -> Iterator[list[str]]:
    """Yield the lines of a table of metrics by languages, below each metric one for each split if `by_split`."""
    cells = {(r.metric, r.split, r.language): r for r in rows if r.language in languages}
    for metric in known_first((m for m, _, _ in cells), METRICS):
        if by_split:
            yield [f"[bold]{titled(metric)}[/bold]"]
        for split in known_first((s for m, s, _ in cells if m == metric), SPLITS):
            found = [cells.get((metric, split, language)) for language in languages]
            texts = (r.text if r else "" for r in found)
            yield [f"  {split}" if by_split else titled(metric), *texts, _chance(r for r in found if r)]


def _row(fields: dict[str, Any]) -> Row:
    """Make a row of its JSON object, a number that is null as NaN."""
    renamed = {"metric": RENAMED_METRICS.get(fields["metric"], fields["metric"])}
    unknown = {name: math.nan for name in ("value", "low", "high", "chance") if fields[name] is None}
    return Row(**{**fields, **unknown, **renamed})


def _chance(rows: Iterable[Row]) -> str:
    """Return the chance level of the rows, or its range where it differs between languages."""
    known = sorted((r.chance, r.chance_text) for r in rows if r.chance_text)
    return "–".join(dict.fromkeys(text for _, text in (known[:1] + known[-1:])))


def _finite(value: Any) -> Any:
    """Replace every number in `value` that JSON cannot hold by None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
