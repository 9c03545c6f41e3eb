"""The plan of a recipe on some GPUs: every stage's size, cost and memory, and the disk of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from sta.config.cards import TeacherCard, load_teacher
from sta.config.recipe import Recipe
from sta.errors import StaError, WeightsError
from sta.models.backbones import backbone_class
from sta.models.decoders.base import find_decoder
from sta.models.flops import flops_of
from sta.models.teachers.open_clip import build_unfilled
from sta.plan import memory, storage
from sta.plan.batches import batch_of, frames_read
from sta.plan.corpus import Facts
from sta.plan.networks import TRIED, Parameters, build, count, groups_of, heard_in, step_of
from sta.training.stages import settings_of, stage_names
from sta.training.tasks.decoder import kinds_of_frames
from sta.training.tasks.distill import written_captions


@dataclass(frozen=True)
class Machines:
    """What is to train: `gpus` in each of `nodes` machines.

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
        return self.gpus * self.nodes

    def hours(self, flops: float) -> float:
        """Hours that so many operations take on all GPUs."""
        return flops / (self.processes * self.tflops * 1e12 * self.utilisation) / 3600


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes.

    Attributes:
        name: the stage's. like: how many stages of this size there are, one for each encoder.
        batch: items of a step, over all processes. reads: what a step goes through, in words and numbers.
        passes: how often the stage sees its corpus; None where it makes its own.
        step_flops, flops: of one step and of all, forward and backward.
        hours: at the given utilisation, of one such stage.
        activations: bytes on one GPU, with the longest recordings.
        needs: bytes on one GPU in all, by way of sharing. states: those kept from step to step.
        host: bytes of a machine's memory that offloading takes.
        way: the one to take; None where none fits.
    """

    name: str
    like: int
    size: Parameters
    batch: int
    steps: int
    reads: dict[str, int]
    passes: float | None
    step_flops: float
    flops: float
    hours: float
    activations: float
    states: dict[memory.Way, float]
    needs: dict[memory.Way, float]
    host: float
    way: memory.Way | None


@dataclass(frozen=True)
class Once:
    """Work of a frozen network on the whole corpus, done once: its operations, and its hours."""

    name: str
    flops: float
    hours: float


@dataclass(frozen=True)
class Plan:
    """Everything that is planned. `teacher`: parameters of a published one, or why they are not known."""

    recipe: Recipe
    facts: Facts
    machines: Machines
    stages: list[StagePlan]
    once: list[Once]
    teacher: int | str | None
    disk: list[storage.Item]

    @property
    def hours(self) -> float:
        return sum(stage.like * stage.hours for stage in self.stages) + sum(work.hours for work in self.once)

    @property
    def flops(self) -> float:
        return sum(stage.like * stage.flops for stage in self.stages) + sum(work.flops for work in self.once)


def plan_of(recipe: Recipe, facts: Facts, machines: Machines, tick: Callable[[], object] = lambda: None) -> Plan:
    """Plan every stage that trains.

    Args:
        tick: called when a stage is planned.

    Raises:
        StaError: a batch cannot be shared out among so many GPUs.
    """
    names = [name for name in stage_names(recipe) if name != "prepare"]
    for name in names:
        _check_shares(recipe, name, machines.processes)
    distills = [name for name in names if name.startswith("distill-")]
    stages = []
    with _quiet_random():
        for name in names:
            if name in distills[1:]:
                continue
            like = len(distills) if name in distills else 1
            stages.append(_plan_stage(recipe, facts, machines, name, like))
            tick()
        once, teacher = _once(recipe, facts, machines)
    sizes = {stage.name: (stage.size, stage.like) for stage in stages}
    disk = [*storage.of_corpus(recipe, facts), *storage.of_frozen(recipe, facts), *storage.of_training(recipe, sizes)]
    return Plan(recipe, facts, machines, stages, once, teacher, disk)


@contextmanager
def _quiet_random() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def _check_shares(recipe: Recipe, name: str, processes: int) -> None:
    """Refuse what the training loop would refuse."""
    batch, section = settings_of(recipe, name).batch, name.partition("-")[0]
    if batch % processes:
        raise StaError(
            f"stages.{section}.batch {batch} is not a multiple of {processes} GPUs; give it one, such as "
            f"stages.{section}.batch={-(-batch // processes) * processes}"
        )
    written = written_captions(recipe.stages.distill)
    if section == "distill" and 0 < written < processes:
        raise StaError(
            f"stages.distill.text_ratio {recipe.stages.distill.text_ratio:g} of {batch} are {written} captions "
            f"a step, too few for {processes} GPUs; raise stages.distill.batch"
        )


def _plan_stage(recipe: Recipe, facts: Facts, machines: Machines, name: str, like: int) -> StagePlan:
    size, step, settings = count(recipe, facts, name), step_of(recipe, facts, name), settings_of(recipe, name)
    averaged, each = bool(settings.ema), settings.batch // machines.processes
    ways = [way for way in memory.WAYS if memory.possible(way, machines.processes)]
    states = {way: memory.states(way, size, machines.processes, averaged) for way in ways}
    activations = step.saved.of(each)
    needs = {way: kept + activations for way, kept in states.items()}
    flops = step.flops.of(settings.batch)
    return StagePlan(
        name, like, size, settings.batch, settings.steps, _reads(recipe, facts, name), _passes(recipe, facts, name),
        flops, flops * settings.steps, machines.hours(flops * settings.steps), activations, states, needs,
        memory.host(memory.WAYS[-1], size, machines.gpus, machines.processes), memory.chosen(needs, machines.memory),
    )  # fmt: skip


def _reads(recipe: Recipe, facts: Facts, name: str) -> dict[str, int]:
    """What one step goes through, by what it is."""
    batch, side = settings_of(recipe, name).batch, recipe.corpus.size // recipe.tokenizer.factor
    if name.startswith("distill-"):
        rate = backbone_class(recipe.encoder.backbone).features_per_second
        return {"recordings": batch, "features": round(batch * heard_in(recipe, facts, name) * rate)}
    if name == "decoder":
        return {
            "recordings": batch,
            "frames": batch * frames_read(facts, heard_in(recipe, facts, name)),
            "positions": batch * find_decoder(recipe.decoder.kind).positions(recipe.decoder, side),
        }
    return {"pictures": batch} | ({"codes": batch * side * side} if name == "tokenizer" else {})


def _passes(recipe: Recipe, facts: Facts, name: str) -> float | None:
    settings = settings_of(recipe, name)
    if name == "classifier":
        return None
    share = len(recipe.groups[groups_of(recipe, name)[0]]) / len(recipe.languages) if name.startswith("distill-") else 1
    items = facts.pictures if name == "tokenizer" else facts.recordings * share
    return settings.steps * settings.batch / items if items else math.nan


# ---- what frozen networks do once ------------------------------------------------------------------------------


def _once(recipe: Recipe, facts: Facts, machines: Machines) -> tuple[list[Once], int | str | None]:
    """The teacher's view of the corpus, the tokenizer's and the encoders', of which every GPU does its share."""
    card = load_teacher(recipe.teacher)
    works: dict[str, float] = {}
    known: int | str | None = None
    try:
        model = build_unfilled(card)
        works["teacher's features"] = _teacher_flops(model, card, facts)
        known = None if card.trained_here else sum(p.numel() for p in model.parameters())
    except WeightsError as error:
        known = str(error)
    works["pictures' codes or latents"] = facts.pictures * _tokenizer_flops(recipe, facts)
    works["encoders' frames"] = len(kinds_of_frames(recipe)) * facts.recordings * _encoder_flops(recipe, facts)
    return [Once(name, flops, machines.hours(flops)) for name, flops in works.items()], known


def _teacher_flops(model: nn.Module, card: TeacherCard, facts: Facts) -> float:
    length = card.config["text_cfg"]["context_length"] if card.config else getattr(model, "context_length", 77)
    with torch.device("meta"), torch.no_grad():
        model.eval()
        pictures = flops_of(lambda: model.encode_image(torch.empty(1, 3, card.image_size, card.image_size)))  # type: ignore[operator]
        captions = flops_of(lambda: model.encode_text(torch.zeros(1, length, dtype=torch.long)))  # type: ignore[operator]
    return facts.pictures * pictures + facts.rows * captions


def _tokenizer_flops(recipe: Recipe, facts: Facts) -> float:
    side = recipe.corpus.size
    with torch.device("meta"), torch.no_grad():
        tokenizer = build(recipe, facts, "tokenizer", [])
        return flops_of(lambda: tokenizer.tokenizer.encoder(torch.empty(1, 3, side, side)))  # type: ignore[union-attr, operator]


def _encoder_flops(recipe: Recipe, facts: Facts) -> float:
    """Of one recording of the mean length."""
    group = next(iter(recipe.groups))
    encoder = build(recipe, facts, f"distill-{group}", [group]).eval().encoder
    batch = batch_of(recipe, facts, f"distill-{group}", group, TRIED[0], facts.seconds)
    with torch.no_grad():
        inputs = encoder.inputs(batch["features"])  # type: ignore[union-attr, operator]
        return flops_of(lambda: encoder(inputs, batch["lengths"], batch["language"])) / TRIED[0]  # type: ignore[operator]
