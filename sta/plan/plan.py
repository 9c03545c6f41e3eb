"""The cost of a recipe on some GPUs: every stage's size, operations and memory, and the disk of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sta.config.cards import load_teacher
from sta.config.recipe import Recipe
from sta.errors import StaError, WeightsError
from sta.models.flops import flops_of
from sta.models.teachers.base import teacher_class
from sta.plan import memory, storage
from sta.plan.networks import TRIED, Parameters, count, step_of
from sta.training.stages import settings_of, stage_names, task_of
from sta.training.task import CorpusFacts
from sta.training.tasks.decoder import kinds_of_frames
from sta.training.tasks.distill import DistillTask


@dataclass(frozen=True)
class Machines:
    """The machines to train on: `gpus` in each of `nodes`, one process on each.

    Attributes:
        memory: of one GPU, bytes.
        tflops: peak of one GPU in dense bfloat16 products, in 10^12 operations a second.
        utilisation: share of that peak that is reached.
    """

    gpus: int
    nodes: int
    memory: float
    tflops: float
    utilisation: float

    @property
    def processes(self) -> int:
        """How many processes train."""
        return self.gpus * self.nodes

    def hours(self, flops: float) -> float:
        """Return the hours that so many operations take on all GPUs."""
        return flops / (self.processes * self.tflops * 1e12 * self.utilisation) / 3600


@dataclass(frozen=True)
class StagePlan:
    """The cost of one stage.

    Attributes:
        count: how many stages of this size there are, one for each encoder.
        batch: items of a step, over all processes.
        passes: how often the stage sees its corpus; None where it makes its own.
        step_flops: operations of a step, forward and backward.
        activations: bytes on one GPU, with the longest recordings.
        needs: way of sharing -> bytes on one GPU in all. way: the one to take; None where none fits.
    """

    name: str
    count: int
    size: Parameters
    batch: int
    steps: int
    passes: float | None
    step_flops: float
    activations: float
    needs: dict[str, float]
    way: str | None

    @property
    def flops(self) -> float:
        """Operations of all steps of all stages of this size."""
        return self.count * self.steps * self.step_flops


@dataclass(frozen=True)
class Plan:
    """The cost of a recipe: `once` of each frozen network on the corpus, `unknown` why not of the teacher."""

    recipe: Recipe
    facts: CorpusFacts
    machines: Machines
    stages: list[StagePlan]
    once: dict[str, float]
    unknown: str | None
    disk: list[storage.Item]

    @property
    def flops(self) -> float:
        """Operations in all, as far as they are known."""
        return sum(stage.flops for stage in self.stages) + sum(self.once.values())


def plan_of(recipe: Recipe, facts: CorpusFacts, machines: Machines, tick: Callable[[], object] = lambda: None) -> Plan:
    """Plan every stage that trains; `tick` is called when one is planned."""
    names = stage_names(recipe)[1:]
    for name in names:
        _check_shares(recipe, name, machines.processes)
    distills, stages = [name for name in names if name.startswith("distill-")], []
    with torch.random.fork_rng(devices=[]):
        for name in (name for name in names if name not in distills[1:]):
            stages.append(_plan_stage(recipe, facts, machines, name, len(distills) if name in distills else 1))
            tick()
        once, unknown = _once(recipe, facts)
    sizes = {stage.name: (stage.size, stage.count) for stage in stages}
    disk = [*storage.of_corpus(recipe, facts), *storage.of_frozen(recipe, facts), *storage.of_training(recipe, sizes)]
    return Plan(recipe, facts, machines, stages, once, unknown, disk)


def _check_shares(recipe: Recipe, name: str, processes: int) -> None:
    """Refuse what the training loop would refuse."""
    batch, key = settings_of(recipe, name).batch, f"stages.{name.partition('-')[0]}.batch"
    if batch % processes:
        works = -(-batch // processes) * processes
        raise StaError(f"{key} {batch} is not a multiple of {processes} GPUs; give it one, such as {key}={works}")
    task_of(recipe, name).check_shares(recipe, processes)


def _plan_stage(recipe: Recipe, facts: CorpusFacts, machines: Machines, name: str, number: int) -> StagePlan:
    size, settings = count(recipe, facts, name), settings_of(recipe, name)
    step = step_of(recipe, facts, name, settings.batch, settings.batch // machines.processes)
    states = memory.states(size, machines.processes, bool(settings.ema))
    needs = {way: kept + step.saved for way, kept in states.items()}
    items = task_of(recipe, name).items_of_corpus(recipe, facts, name)
    passes = None if items is None else settings.steps * settings.batch / items if items else math.nan
    return StagePlan(
        name, number, size, settings.batch, settings.steps, passes, step.flops, step.saved, needs,
        memory.first_fit(needs, machines.memory),
    )  # fmt: skip


def _once(recipe: Recipe, facts: CorpusFacts) -> tuple[dict[str, float], str | None]:
    """Count what the frozen encoders and teacher do with the corpus, of which every GPU does its share."""
    encoders = len(kinds_of_frames(recipe)) * facts.recordings * _encoder_flops(recipe, facts)
    works, unknown = {"encoders' frames": encoders}, None
    if recipe.encoder.cache_frames:
        live = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"cache_frames": False})})
        times = facts.recordings * recipe.encoder.frame_copies
        works["frozen backbone's frames"] = times * _encoder_flops(live, facts)
    try:
        works["teacher's features"] = _teacher_flops(recipe, facts)
    except WeightsError as error:
        unknown = str(error)
    return works, unknown


def _teacher_flops(recipe: Recipe, facts: CorpusFacts) -> float:
    card = load_teacher(recipe.teacher)
    model, length = teacher_class(card).outline(card)
    with torch.device("meta"), torch.no_grad():
        model.eval()
        visual: Any = model.visual
        sides = np.broadcast_to(visual.image_size, 2).tolist()
        pictures = flops_of(lambda: model.encode_image(torch.empty(1, 3, *sides)))  # type: ignore[operator]
        captions = flops_of(lambda: model.encode_text(torch.zeros(1, length, dtype=torch.long)))  # type: ignore[operator]
    return facts.pictures * pictures + facts.rows * captions


def _encoder_flops(recipe: Recipe, facts: CorpusFacts) -> float:
    """Count the operations on one recording of the mean length."""
    name = f"distill-{next(iter(recipe.groups))}"
    encoder = DistillTask.build_network(recipe, facts, name).eval().encoder
    batch = DistillTask.example_batch(recipe, facts, name, TRIED[0], facts.seconds)
    with torch.no_grad():
        inputs = encoder.inputs(batch.features)
        return flops_of(lambda: encoder(inputs, batch.lengths, batch.language)) / TRIED[0]
