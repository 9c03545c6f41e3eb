"""Training on more and more processes: `sta bench train` in launches of each size, in turn."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sta.bench.launch import launch
from sta.bench.training import LOOP
from sta.errors import StaError
from sta.metrics.rows import Interval, Report, Row, everywhere
from sta.progress import Bar


def bench_scaling(command: Sequence[str], processes: Sequence[int], rounds: int) -> Report:
    """Measure a launch of each number of processes once a round; the median over the rounds counts.

    Every process has as many threads as the largest launch can give each of its own. `command` is what follows `sta`: a
    `bench train` of one round.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // max(processes))
    values: dict[tuple[str, str, str, int], list[float]] = defaultdict(list)
    with Bar("scaling", rounds * len(processes), "launches") as bar:
        for _ in range(rounds):
            for count in sorted(processes):
                for row in _launch(command, count, threads).rows:
                    values[row.condition, row.metric, row.system, count].append(row.value)
                bar.advance()
    meta = {"processes": sorted(processes), "threads": threads, "rounds": rounds}
    return Report(meta, _rows(values, min(processes)))


def _launch(command: Sequence[str], processes: int, threads: int) -> Report:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "report.json", Path(folder) / "log"
        measure = [*launcher, "-m", "sta", *command, "--json", str(file)]
        if launch(measure, log, {"OMP_NUM_THREADS": str(threads)}):
            raise StaError(f"{processes} processes: {_reason(log.read_text(errors='replace'))}")
        return Report.read(file)


def _reason(log: str) -> str:
    """Find the sentence with which a launch ended, or else its last line."""
    lines = log.strip().splitlines() or ["no output"]
    return next((line.removeprefix("sta: ") for line in lines if line.startswith("sta: ")), lines[-1])


def _rows(values: dict[tuple[str, str, str, int], list[float]], fewest: int) -> list[Row]:
    found = []
    for (stage, metric, system, count), measured in values.items():
        measures = {metric: measured}
        if (metric, system) == ("samples_per_second", LOOP):
            alone = values[stage, metric, system, fewest]
            measures["scaling_efficiency"] = [a * fewest / (b * count) for a, b in zip(measured, alone, strict=True)]
        where = everywhere(f"{stage}, {count} processes", system)
        found += [Row.of(name, Interval.of_rounds(rounds), len(rounds), **where) for name, rounds in measures.items()]
    return found
