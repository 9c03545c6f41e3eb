"""The interface of what a stage trains: one file of `sta.training.tasks` each, or `module:Class` of one's own.

A recipe names another one in the stage's section, `stages.decoder.task: my_gan:GanTask`; the section is then validated
by the task's own `Settings`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn

from sta.config.recipe import Optimisation, Recipe
from sta.distributed.sharding import BatchShard
from sta.distributed.team import Team
from sta.errors import RecipeError
from sta.training.batch import Batch
from sta.training.optimizers import build_optimizer
from sta.training.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """A corpus in numbers: what networks, batches of noise and plans are sized by before it is there.

    Attributes:
        source: how this is known, in words.
        pieces: language -> pieces of its SentencePiece model.
        recordings: of training, all languages. others: of validation and test.
        pictures: of all splits.
        seconds, longest: of the speech in a recording, without the silence around it. raw: with it.
        full, phrase: as seconds, of full captions and of short phrases alone; phrase is 0 where there are none.
        pieces_a_second: of a caption, for a second of its speech; Garden has 6.7 in English and 2.8 in Arabic.
        moods: how many are named. attributes: attribute -> its values, the unsaid one among them.
        picture_bytes: of the file that each row holds; 0 where rows hold paths. holds_audio: whether they hold sound.
        rate: recordings made and encoded per second on one core of this machine; None where nothing is made.
    """

    source: str
    pieces: dict[str, int]
    recordings: int = 0
    others: int = 0
    pictures: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    raw: float = 0.0
    full: float = 0.0
    phrase: float = 0.0
    pieces_a_second: float = 4.5
    moods: int = 0
    attributes: dict[str, int] = field(default_factory=dict)
    picture_bytes: float = 0.0
    holds_audio: bool = False
    rate: float | None = None

    @property
    def rows(self) -> int:
        """Recordings of all splits."""
        return self.recordings + self.others

    def mean_seconds(self, phrases: float) -> float:
        """Return the mean seconds of speech where a share `phrases` is of short phrases."""
        return self.full + phrases * (self.phrase - self.full) if self.phrase else self.full


class Update(Protocol):
    """One update of some networks, as `Task.training_step` asks for it."""

    def __call__(
        self, phase: str = "", optimizers: list[int] | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        """Do forward, backward, clipping and the steps of some optimizers; a part of the batch after another.

        Args:
            phase: given to the module after the batch, unless it is empty.
            optimizers: numbers of those of `Task.optimizers` that step; None: all. The gradients of all others' are
                dropped.
            weights: of each loss; None: the task's.
        """


class Task(ABC):
    """What a stage trains.

    Attributes:
        Settings: the model that the stage's section of the recipe is validated by.
        name: the stage's name, such as `distill-pooled`.
        module: takes a batch and returns named losses, each a mean over the batch.
        weights: weight of each loss; a loss without one is only logged.
        phase_change_step: the step from which the sum of the losses is not to be compared with that of earlier steps.
    """

    Settings: ClassVar[type[Optimisation]] = Optimisation

    name: str
    module: nn.Module
    weights: Mapping[str, float]
    phase_change_step: int = 0

    # ---- before there is one: by recipe and corpus --------------------------------------------------------------

    @classmethod
    def stages(cls, recipe: Recipe, section: str) -> list[str]:
        """Return the names of the recipe's stages of this kind: by default one, named as its section."""
        return [section]

    @classmethod  # noqa: B027
    def check(cls, recipe: Recipe) -> None:
        """Refuse, by a RecipeError, a recipe that this task cannot train, before anything is made."""

    @classmethod  # noqa: B027
    def fill_caches(cls, workspace: Workspace, name: str, device: torch.device, team: Team) -> None:
        """Compute what frozen networks make of the corpus for the stage `name`, each rank its share."""

    @classmethod
    def build(cls, workspace: Workspace, name: str, device: torch.device, shard: BatchShard) -> Self:
        """Return the task of the stage `name`, whose earlier stages are done and whose caches are filled."""
        return cls(workspace)  # type: ignore[call-arg]

    @classmethod
    def build_network(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> nn.Module:
        """Return the untrained `module` of the stage `name`, for who has no corpus."""
        raise RecipeError(f"stage {name}: {cls.__name__} has no `build_network`, without which it cannot be planned")

    @classmethod
    def example_batch(cls, recipe: Recipe, facts: CorpusFacts, name: str, size: int, seconds: float) -> Batch:
        """Return a batch of noise of the shapes that the stage trains on: `size` items, each of `seconds` of speech."""
        raise RecipeError(f"stage {name}: {cls.__name__} has no `example_batch`, without which it cannot be planned")

    @classmethod
    def mean_seconds(cls, recipe: Recipe, facts: CorpusFacts) -> float | None:
        """Return the mean seconds of the recordings that the stage trains on; None where it needs none."""
        return None

    @classmethod
    def items_of_corpus(cls, recipe: Recipe, facts: CorpusFacts, name: str) -> float | None:
        """Return how many items one pass of the corpus has; None where the stage makes its own."""
        return facts.recordings

    @classmethod  # noqa: B027
    def check_shares(cls, recipe: Recipe, shares: int) -> None:
        """Refuse, by a StaError, a batch of which one of so many shares would lack something."""

    # ---- while it trains ------------------------------------------------------------------------------------------

    @abstractmethod
    def batch(self, step: int, shard: BatchShard) -> Batch:
        """Return the shard of this rank of the step's global batch; a pure function of its arguments."""

    @abstractmethod
    def items(self, step: int) -> list[str]:
        """Return names of what the step's whole batch holds, for a record of what went wrong."""

    def optimizers(self, settings: Optimisation) -> list[torch.optim.Optimizer]:
        """Return what trains the module: by default one AdamW over every trainable parameter.

        The loop sets their learning rates: warm-up and cosine of `settings.lr`, and in proportion to it those of
        parameter groups that have another.
        """
        return [build_optimizer(self.module, settings)]

    def training_step(self, update: Update) -> None:
        """Do one step: by default one forward and one backward pass, after which every optimizer steps.

        A generative adversarial network would call `update("discriminator", [0], {"hinge": 1.0})` and then
        `update("generator", [1], {"adversarial": 1.0})`; its module is given the batch and that word.
        """
        update()

    def compile(self, module: nn.Module, device: torch.device) -> None:  # noqa: B027 - most stages compile nothing
        """Have `torch.compile` make kernels for the layers of the module, or a copy, where the stage asks for it."""

    @abstractmethod
    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the trained weights as the next stage reads them."""


def compiles(choice: str, device: torch.device) -> bool:
    """Return whether `compile: never|gpu|always` of a stage compiles on a device."""
    return choice == "always" or (choice == "gpu" and device.type == "cuda")


def compile_layers(*networks: Any) -> None:
    """Compile the layers that repeat in some networks of diffusers' kind, which name them in `_repeated_blocks`."""
    for network in networks:
        network.compile_repeated_blocks()
