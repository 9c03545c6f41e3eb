"""A plan as tables and sentences, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sta.data.cache import write_json
from sta.metrics.tables import make_table
from sta.plan import memory
from sta.plan.memory import GIB
from sta.plan.plan import Machines, Plan, StagePlan

NUMBERED = 100  # bytes of a row that a training process holds: numbers, lengths, two epochs' orders; measured on Garden


def show(plan: Plan, console: Console) -> None:
    """Print a plan: what is assumed, tables, and what to do."""
    for part in (*assumptions(plan), _training(plan), _memory(plan), _disk(plan), *conclusions(plan)):
        console.print(part, highlight=False)


def amount(value: float) -> str:
    """Print a number with the prefix that makes it short: `5.36 M`."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def duration(hours: float) -> str:
    """Print hours in the unit that makes them short."""
    if hours >= 48:
        return f"{hours / 24:.3g} d"
    if hours >= 1:
        return f"{hours:.3g} h"
    return f"{60 * hours:.2g} min" if 60 * hours >= 1 else f"{3600 * hours:.2g} s"


def launch_file(way: str, machines: Machines) -> str:
    """Return the launch file of a way, with its options: one is of a single process, the others are of eight."""
    if machines.processes == 1:
        return "gpu-1.yaml"
    processes = f" --num_processes {machines.processes}" if machines.processes != 8 else ""
    return memory.WAYS[way] + processes + (f" --num_machines {machines.nodes}" if machines.nodes > 1 else "")


def assumptions(plan: Plan) -> Iterator[str]:
    """Say what the numbers rest on."""
    facts, machines = plan.facts, plan.machines
    yield (
        f"corpus: {facts.recordings:,} recordings for training in {len(plan.recipe.languages)} languages and "
        f"{facts.others:,} others, {facts.pictures:,} pictures; {facts.seconds:.3g} s of speech in each, "
        f"{facts.longest:.3g} s at most; {facts.source}"
    )
    yield (
        f"machines: {machines.nodes} x {machines.gpus} GPUs of {machines.memory / GIB:g} GiB and {machines.tflops:g} "
        f"TFLOP/s, of which {machines.utilisation:.0%} are taken to be reached; reading the data is taken to be free"
    )


def _label(stage: StagePlan) -> str:
    return stage.name if stage.count == 1 else f"distill-* x {stage.count}"


def _training(plan: Plan) -> Table:
    def row(flops: float, *cells: str) -> list[str]:
        return [*cells, amount(flops), duration(plan.machines.hours(flops))]

    rows = []
    for s in plan.stages:
        passes = "" if s.passes is None else f"{s.passes:.3g}"
        rows.append(row(s.flops, _label(s), amount(s.size.trainable), amount(s.size.frozen), f"{s.steps:,}", passes))
    rows += [row(flops, name, "", "", "", "1") for name, flops in plan.once.items()]
    rows.append(row(plan.flops, "in all", "", "", "", ""))
    return make_table("training", ["", "trained", "frozen", "steps", "passes over the corpus", "FLOP", "time"], rows)


def _memory(plan: Plan) -> Table:
    ways = [way for way in memory.WAYS if way in plan.stages[0].needs]
    rows = []
    for s in plan.stages:
        sizes = (f"{size / GIB:.3g}" for size in (s.activations, *s.needs.values()))
        rows.append([_label(s), str(s.batch // plan.machines.processes), *sizes, s.way or "nothing fits"])
    return make_table("memory of a GPU, GiB", ["", "items", "activations", *ways, "take"], rows)


def _disk(plan: Plan) -> Table:
    kept, temporary = totals(plan)
    rows = [[item.name, item.where, f"{amount(item.size)}B"] for item in plan.disk if item.size]
    sums = [["in all", "", f"{amount(kept)}B"], ["for a time besides", "", f"{amount(temporary)}B"]]
    return make_table("disk", ["", "where", "size"], rows + sums)


def totals(plan: Plan) -> tuple[float, float]:
    """Return the bytes that stay on disk, and the most that is there for a time besides."""
    kept = sum(item.size for item in plan.disk if not item.temporary)
    return kept, max(item.size for item in plan.disk if item.temporary)


def conclusions(plan: Plan) -> Iterator[str]:
    """Say what to do, and what cannot be done."""
    machines, facts = plan.machines, plan.facts
    files = dict.fromkeys(launch_file(s.way, machines) for s in plan.stages if s.way)
    if files:
        yield "launch: accelerate launch --config_file recipes/accelerate/" + " or ".join(files)
    if plan.unknown:
        yield f"teacher's features: not counted ({plan.unknown})"
    for s in plan.stages:
        yield from _advice(s, machines)
    held = facts.rows * NUMBERED * machines.gpus
    if held > 0.25 * 2**40:
        yield (
            f"{machines.gpus} processes on a machine hold {amount(held)}B of numbers, lengths and orders of recordings "
            "in its memory; all else is mapped, and shared"
        )
    if facts.rate is not None:
        yield (
            f"preparing it takes {duration(facts.rows / facts.rate / 3600)} of one core at this machine's "
            f"{facts.rate:.0f} recordings a second; every core of a machine helps"
        )


def _advice(stage: StagePlan, machines: Machines) -> Iterator[str]:
    """Say what is to be known of one stage."""
    if stage.way is None:
        least = min(stage.needs, key=stage.needs.__getitem__)
        yield (
            f"{_label(stage)}: nothing fits in {machines.memory / GIB:g} GiB: {least} takes "
            f"{stage.needs[least] / GIB:.3g} GiB, of which {stage.activations / GIB:.3g} are activations; give it more "
            "GPUs, a smaller batch or a smaller model"
        )
    if stage.way == memory.OFFLOAD:
        size = memory.offloaded(stage.size, 1 / machines.nodes)
        yield f"{_label(stage)}: {stage.way} takes {size / GIB:.3g} GiB of the memory of each machine"
    if stage.passes is not None and stage.passes < 1:
        steps, hours = round(stage.steps / stage.passes), machines.hours(stage.flops / stage.passes)
        yield (
            f"{_label(stage)}: {stage.steps:,} steps of {stage.batch} see {stage.passes:.2%} of the corpus; a whole "
            f"pass takes stages.{stage.name.partition('-')[0]}.steps={steps}, {duration(hours)}"
        )


def write(plan: Plan, path: Path) -> None:
    """Write the same numbers as JSON: bytes, operations, hours, parameters."""
    kept, temporary = totals(plan)
    launches = [s.way and launch_file(s.way, plan.machines) for s in plan.stages]
    numbers = {
        "recipe": plan.recipe.name, "languages": len(plan.recipe.languages), "corpus": asdict(plan.facts),
        "machines": asdict(plan.machines), "once": plan.once, "flops": plan.flops,
        "stages": [asdict(s) | {"launch": launch} for s, launch in zip(plan.stages, launches, strict=True)],
        "hours": plan.machines.hours(plan.flops), "disk": [asdict(item) for item in plan.disk], "disk_kept": kept,
        "disk_temporary": temporary, "sentences": [*assumptions(plan), *conclusions(plan)],
    }  # fmt: skip
    write_json(path, numbers)
