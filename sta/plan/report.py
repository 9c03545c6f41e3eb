"""A plan as tables and sentences, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sta.data.cache import write_atomically
from sta.plan import memory
from sta.plan.memory import GIB
from sta.plan.plan import Machines, Plan, StagePlan

#: What launches a single process; the others are of eight, and take `--num_processes`.
ALONE = "gpu-1.yaml"


def show(plan: Plan, console: Console) -> None:
    """Print a plan: what is assumed, tables, and what does not fit."""
    for line in assumptions(plan):
        console.print(line, highlight=False)
    for table in _tables(plan):
        console.print(table)
    for line in conclusions(plan):
        console.print(line, highlight=False)


def _tables(plan: Plan) -> Iterator[Table]:
    yield _steps(plan)
    yield _hours(plan)
    yield _memory(plan)
    yield _disk(plan)


def amount(value: float) -> str:
    """A number with the prefix that makes it short: `5.36 M`."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def duration(hours: float) -> str:
    """Hours as a person says them."""
    if hours >= 48:
        return f"{hours / 24:.3g} d"
    if hours >= 1:
        return f"{hours:.3g} h"
    return f"{60 * hours:.2g} min" if 60 * hours >= 1 else f"{3600 * hours:.2g} s"


def launch_file(way: memory.Way, machines: Machines) -> str:
    """What to launch a stage with; nothing where no launch file has the way."""
    if way.file is None:
        return ""
    if machines.processes == 1:
        return ALONE
    processes = f" --num_processes {machines.processes}" if machines.processes != 8 else ""
    return way.file + processes + (f" --num_machines {machines.nodes}" if machines.nodes > 1 else "")


def assumptions(plan: Plan) -> Iterator[str]:
    """What the numbers rest on."""
    facts, machines = plan.facts, plan.machines
    languages = len(plan.recipe.languages)
    yield (
        f"corpus: {facts.recordings:,} recordings for training in {languages} languages and {facts.others:,} others, "
        f"{facts.pictures:,} pictures; {facts.seconds:.3g} s of speech in each, {facts.longest:.3g} s at most; "
        f"{facts.source}"
    )
    yield (
        f"machines: {machines.nodes} x {machines.gpus} GPUs of {machines.memory / GIB:g} GiB and {machines.tflops:g} "
        f"TFLOP/s, of which {machines.utilisation:.0%} are taken to be reached; reading the data is taken to be free"
    )
    if isinstance(plan.teacher, int):
        yield f"teacher: {plan.recipe.teacher}, {amount(plan.teacher)} parameters, frozen, never on a GPU in training"
    elif plan.teacher is not None:
        yield f"teacher: not counted ({plan.teacher})"


def _table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(columns):
        made.add_column(name, justify="right" if number else "left", no_wrap=True)
    return made


def _label(stage: StagePlan) -> str:
    return stage.name if stage.like == 1 else f"distill-* x {stage.like}"


def _steps(plan: Plan) -> Table:
    made = _table("networks and steps", "stage", "trainable", "frozen", "a step reads", "FLOP a step")
    for s in plan.stages:
        reads = ", ".join(f"{amount(number)} {unit}" for unit, number in s.reads.items())
        made.add_row(_label(s), amount(s.size.trainable), amount(s.size.frozen), reads, amount(s.step_flops))
    return made


def _hours(plan: Plan) -> Table:
    made = _table("time", "what", "steps", "passes over the corpus", "FLOP", "time")
    for s in plan.stages:
        passes = "" if s.passes is None else f"{s.passes:.3g}"
        made.add_row(_label(s), f"{s.steps:,}", passes, amount(s.like * s.flops), duration(s.like * s.hours))
    for work in plan.once:
        made.add_row(work.name, "", "1", amount(work.flops), duration(work.hours))
    made.add_row("in all", "", "", amount(plan.flops), duration(plan.hours), style="bold")
    return made


def _memory(plan: Plan) -> Table:
    ways = _ways(plan)
    names = [way.name.replace(" + ", "\n+ ") for way in ways]
    made = _table("memory of a GPU, GiB", "stage", "items", "activations", *names, "take")
    for s in plan.stages:
        needs = (f"{s.needs[way] / GIB:.3g}" if way in s.needs else "–" for way in ways)
        taken = s.way.name if s.way else "nothing fits"
        made.add_row(
            _label(s), str(s.batch // plan.machines.processes), f"{s.activations / GIB:.3g}", *needs, taken
        )  # fmt: skip
    return made


def _ways(plan: Plan) -> list[memory.Way]:
    return [way for way in memory.WAYS if any(way in s.needs for s in plan.stages)]


def _disk(plan: Plan) -> Table:
    made = _table("disk and memory of a machine, GB", "what", "where", "disk", "for a time", "a process")
    for item in (item for item in plan.disk if item.size):
        size, held = f"{item.size / 1e9:,.4g}", f"{item.loaded / 1e9:,.4g}" if item.loaded else ""
        made.add_row(item.name, item.where, "" if item.passing else size, size if item.passing else "", held)
    kept, passing, loaded = totals(plan)
    cells = (f"{kept / 1e9:,.4g}", f"{passing / 1e9:,.4g}", f"{loaded / 1e9:,.4g}")
    made.add_row("in all (for a time: the most)", "", *cells, style="bold")
    return made


def totals(plan: Plan) -> tuple[float, float, float]:
    """Bytes that stay on disk, the most that is there for a time besides, and what each training process holds."""
    kept = sum(item.size for item in plan.disk if not item.passing)
    passing = max(item.size for item in plan.disk if item.passing)
    return kept, passing, sum(item.loaded for item in plan.disk)


def conclusions(plan: Plan) -> Iterator[str]:
    """What to do, and what cannot be done."""
    machines, corpus = plan.machines, plan.facts
    files = dict.fromkeys(launch_file(s.way, machines) for s in plan.stages if s.way and s.way.file)
    if files:
        yield "launch: accelerate launch --config_file recipes/accelerate/" + " or ".join(files)
    for s in plan.stages:
        if s.way is None:
            least, need = min(s.needs.items(), key=lambda pair: pair[1])
            yield (
                f"{_label(s)}: nothing fits in {machines.memory / GIB:g} GiB: {least.name} takes {need / GIB:.3g} GiB, "
                f"of which {s.activations / GIB:.3g} are activations; give it more GPUs, a smaller batch or a smaller "
                "model"
            )
        elif s.way.file is None:
            host = f" with {s.host / GIB:.3g} GiB of the machine's own memory" if s.way.offload else ""
            yield f"{_label(s)}: only {s.way.name} fits{host}, and no launch file of recipes/accelerate has it"
        if s.passes is not None and s.passes < 1:
            section = s.name.partition("-")[0]
            yield (
                f"{_label(s)}: {s.steps:,} steps of {s.batch} see {s.passes:.2%} of what there is; a whole pass takes "
                f"stages.{section}.steps={round(s.steps / s.passes)}, {duration(s.like * s.hours / s.passes)}"
            )
    held = totals(plan)[2]
    if held * machines.gpus > 0.25 * 2**40:
        yield (
            f"{machines.gpus} processes on a machine hold {held * machines.gpus / 1e12:.3g} TB of numbers, lengths and "
            "orders of recordings in its memory; all else is mapped, and shared"
        )
    if corpus.rate is not None:
        yield (
            f"preparing it takes {duration(corpus.rows / corpus.rate / 3600)} of one core at this machine's "
            f"{corpus.rate:.0f} recordings a second, drawn, spoken and heard; every core of a machine helps"
        )


def as_json(plan: Plan) -> dict[str, Any]:
    """The same numbers: bytes, operations, hours, parameters."""
    facts, machines = plan.facts, plan.machines
    kept, passing, loaded = totals(plan)
    return {
        "recipe": plan.recipe.name, "languages": len(plan.recipe.languages), "corpus": vars(facts),
        "teacher": plan.teacher,
        "machines": vars(machines) | {"processes": machines.processes},
        "stages": [_stage_json(stage, machines) for stage in plan.stages],
        "once": [vars(work) for work in plan.once], "hours": plan.hours, "flops": plan.flops,
        "disk": [vars(item) for item in plan.disk],
        "disk_kept": kept, "disk_for_a_time": passing, "loaded_by_each_process": loaded,
        "sentences": [*assumptions(plan), *conclusions(plan)],
    }  # fmt: skip


def _stage_json(stage: StagePlan, machines: Machines) -> dict[str, Any]:
    by_way = {name: {way.name: size for way, size in getattr(stage, name).items()} for name in _BY_WAY}
    way = None if stage.way is None else {"name": stage.way.name, "launch": launch_file(stage.way, machines)}
    return vars(stage) | by_way | {"size": vars(stage.size), "way": way}


_BY_WAY = ("states", "needs")


def write(plan: Plan, path: Path) -> None:
    """Write the plan as JSON, complete or not at all."""
    write_atomically(path, (json.dumps(as_json(plan), indent=1, ensure_ascii=False) + "\n").encode())
