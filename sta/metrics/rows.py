"""What every measurement becomes: one flat row per number, with a 95 % interval and the chance level.

`METRICS` is the one place that fixes the metrics' names. A `Report` is a run's `report.json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sta.data.cache import write_atomically
from sta.errors import StaError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Metric:
    """One metric: what it says, its unit ("%" is kept as a fraction in [0, 1]) and which way is better.

    `higher_is_better` is None for a description that is neither good nor bad.
    """

    meaning: str
    unit: str = "%"
    higher_is_better: bool | None = True

    def text(self, value: float) -> str:
        """`value` as printed, in percent where the unit is "%"; a dash for not measured."""
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
    "fid": Metric("Fréchet distance to the real pictures, in the extractor that the report names", "", False),
    "is": Metric("inception score, in the classifier that the report names", ""),
    "classifier": Metric("attribute classifier's accuracy on real pictures, which bounds what it can mark"),
    "psnr": Metric("peak signal-to-noise ratio of the tokenizer's pictures", "dB"),
    "seconds": Metric("seconds per picture, from tokens to pixels, weights loaded", "s", False),
    "matrix_products": Metric("share of the drawing time spent in matrix products and convolutions", "%", None),
    "samples_per_second": Metric("training samples per second", "/s"),
    "step_ratio": Metric(
        "a training step against that of a loop written by hand, both on batches in memory", "x", False
    ),
    "bare_ratio": Metric("a training step against the bare model's forward and backward", "x", False),
    "data_share": Metric("share of a training step spent making its batch", "%", False),
    "exchange_share": Metric("share of a training step that one process on its share would not need", "%", False),
    "checkpoint_share": Metric("share of the training time spent saving every `save_every` steps", "%", False),
    "flops_utilisation": Metric("operations of forward and backward, of the device's most in that time", "%"),
    "scaling_efficiency": Metric("samples per second of a process, against that of the fewest processes", "%"),
    "bits": Metric("rate through the bottleneck per utterance", "bit", None),
}

#: Metrics of version 0.1 -> today's.
RENAMED_METRICS = {"reader": "classifier"}

SPLITS = ("seen", "voice", "combination", "both")

#: system -> what it is; the order is the order of reports. Others may be reported and come after.
SYSTEMS: dict[str, str] = {
    "speech": "the system: speech in, picture out",
    "tokens-probe": "attributes read from the speech tokens, before any drawing",
    "truth-to-decoder": "the true attributes in a plain sentence, written, given to the same decoder: no speech",
    "cascade-perfect": "the true caption, written, given to the same decoder: the ceiling of every speech recogniser",
    "cascade": "the CTC head's transcript, written, given to the same decoder: a speech recogniser in front",
    "tokenizer": "the real picture through the image tokenizer and back",
    "shuffled": "the picture of another utterance",
}


class ResultKey(TypedDict):
    """Which cell of the results a number belongs to."""

    language: str
    split: str
    condition: str
    system: str


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95 % interval; NaN where unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan


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
        """The row of a measured interval over `n` items."""
        return cls(metric, value=interval.value, low=interval.low, high=interval.high, chance=chance, n=n, **where)

    @property
    def text(self) -> str:
        """Value and interval as printed: `71.3 (70.1-72.4)`."""
        text = METRICS[self.metric].text
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return text(self.value) + (f" ({text(self.low)}–{text(self.high)})" if known else "")


def bootstrap(
    values: ArrayLike, statistic: Callable[..., Any] = np.mean, samples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile bootstrap over items (Efron 1979), 95 %.

    Args:
        values: [n], or [n, 2] of (numerator, denominator), whose statistics are divided.
        statistic: a reduction that takes `axis`, as `np.mean` or `np.median`.
        samples: how often the items are drawn anew, with replacement.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: another shape, no items, or a value that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (2,)) or not len(array):
        raise ValueError(f"bootstrap takes [n] or [n, 2] values of at least one item, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("bootstrap got a value that is not finite; leave out items that have none")
    generator = np.random.default_rng(seed)
    parts = np.array_split(np.arange(samples), math.ceil(samples * len(array) / 4_000_000))  # bounds the memory
    drawn = [_reduce(array[generator.integers(len(array), size=(len(part), len(array)))], statistic) for part in parts]
    low, high = np.nanpercentile(np.concatenate(drawn), (2.5, 97.5))
    return Interval(float(_reduce(array[None], statistic)[0]), float(low), float(high))


def _reduce(drawn: NDArray[np.float64], statistic: Callable[..., Any]) -> NDArray[np.float64]:
    """[samples, n] or [samples, n, 2] to the statistic of each sample, or to the quotient of two."""
    if drawn.ndim == 2:
        return np.asarray(statistic(drawn, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(statistic(drawn[..., 0], axis=1) / statistic(drawn[..., 1], axis=1))


def known_first(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The distinct `names`, those of `known` in its order, then the rest as they come."""
    found, order = dict.fromkeys(names), tuple(known)
    return [n for n in order if n in found] + [n for n in found if n not in order]


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
        for system in known_first((r.system for r in self.rows), SYSTEMS):
            of_system = [r for r in self.rows if r.system == system]
            for condition in known_first((r.condition for r in of_system), ("clean",)):
                rows = [r for r in of_system if r.condition == condition]
                languages = list(dict.fromkeys(r.language for r in rows))
                for start in range(0, len(languages), 3):
                    console.print(_table(f"{system}, {condition}", rows, languages[start : start + 3]))


def _row(fields: dict[str, Any]) -> Row:
    """A row from its JSON object, a number that is null as NaN."""
    renamed = {"metric": RENAMED_METRICS.get(fields["metric"], fields["metric"])}
    unknown = {name: math.nan for name in ("value", "low", "high", "chance") if fields[name] is None}
    return Row(**{**fields, **unknown, **renamed})


def _table(title: str, rows: Sequence[Row], languages: Sequence[str]) -> Table:
    """One table of metrics by languages, with a line for each split unless there is only one."""
    from rich import box
    from rich.table import Table

    all_splits = known_first((r.split for r in rows), SPLITS)
    title += f", {all_splits[0]}" if len(all_splits) == 1 else ""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("", *languages, "chance"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    cells = {(r.metric, r.split, r.language): r for r in rows if r.language in languages}
    for metric in known_first((m for m, _, _ in cells), METRICS):
        label = f"{metric} {METRICS[metric].unit}".strip()
        if len(all_splits) > 1:
            table.add_row(f"[bold]{label}[/bold]")
        for split in known_first((s for m, s, _ in cells if m == metric), SPLITS):
            found = [cells.get((metric, split, language)) for language in languages]
            texts = (r.text if r else "" for r in found)
            table.add_row(label if len(all_splits) == 1 else f"  {split}", *texts, _chance(metric, found))
    return table


def _chance(metric: str, rows: Iterable[Row | None]) -> str:
    """The chance level of the rows, or its range where it differs between languages."""
    known = [r.chance for r in rows if r is not None and math.isfinite(r.chance)]
    texts = dict.fromkeys(METRICS[metric].text(c) for c in (min(known), max(known))) if known else {}
    return "–".join(texts)


def _finite(value: Any) -> Any:
    """`value` with every number that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
