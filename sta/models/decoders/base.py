"""The contract of a decoder: all that a recipe, a training, a release and a plan need to know of one.

A decoder is one file: a class of this interface, here by the name of its module (`vq-diffusion` is `vq_diffusion.py`)
or anywhere as `module:Class`, which a recipe's `decoder.kind` names. Nothing else has to know of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from sta.config.recipe import DECODERS, DecoderSettings, Recipe, Sampling
from sta.config.variants import find_variant
from sta.models.bottleneck import SpeechCondition
from sta.models.scheduler import Generators
from sta.models.vq import Tokenizer

Target = Literal["codes", "latents"]
StepCallback = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PictureGrid:
    """What the tokenizer makes of a picture: side x side codes of 0..codes-1, or latents of so many channels."""

    side: int
    codes: int
    channels: int

    @classmethod
    def of(cls, recipe: Recipe) -> PictureGrid:
        """Return the grid of a recipe's pictures."""
        tokenizer = recipe.tokenizer
        return cls(recipe.corpus.size // tokenizer.factor, tokenizer.codes, tokenizer.code_width)


@dataclass(frozen=True)
class TokenSpace:
    """What a decoder is conditioned on: K `tokens` of width C = `token_width`, an embedding of E numbers, and a style.

    Attributes:
        styles: names of the styles that the training pictures are drawn in; none where they are of one style.
    """

    tokens: int
    token_width: int
    embedding_width: int
    styles: tuple[str, ...] = ()


class Objective(nn.Module, ABC):
    """The losses by which a decoder learns; `decoder` is the network that is kept of the training."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    @abstractmethod
    def forward(
        self, x0: Tensor, condition: SpeechCondition, drop: Tensor, drafted: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute scalar losses by the names of `Decoder.loss_weights`.

        Args:
            x0: the pictures as the decoder's `target`: codes [B, N] or latents [B, d, h, w].
            condition: of the B recordings.
            drop: [B] bool, True where the null condition stands in.
            drafted: what `Decoder.draft` gave for the condition's tokens.
        """


class Decoder(ModelMixin, ConfigMixin, ABC):
    """Draws pictures from speech tokens.

    A subclass is a diffusers model (its constructor is decorated with `register_to_config`), so that it can be saved
    and loaded, and gives at least `Settings`, `title`, `target`, `loss_weights`, `build`, `objective` and `start`. One
    that steps with a scheduler gives `forward` and `build_scheduler`; one that draws in a single pass gives `sample`.

    Attributes:
        Settings: the keys of a recipe's `decoder` section.
        title: how a model card calls it.
        target: what x_0 is, which is cached of every picture.
        loss_weights: name -> default weight of each loss that its objective gives.
    """

    config_name = "config.json"

    Settings: ClassVar[type[DecoderSettings]]
    title: ClassVar[str]
    target: ClassVar[Target]
    loss_weights: ClassVar[Mapping[str, float]]

    # ---- of a recipe --------------------------------------------------------------------------------------

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse a recipe whose sections do not fit together for this decoder.

        Raises:
            ValueError: says in one sentence which keys, and what would work.
        """

    @classmethod
    def has_draft(cls, settings: Any) -> bool:
        """Return whether `draft` gives something, which is then trained to predict the tokenizer's latents."""
        return False

    @classmethod
    def reads(cls, settings: Any) -> tuple[Target, ...]:
        """Return what a training reads of the pictures, x_0 first."""
        latents: tuple[Target, ...] = ("latents",) if cls.has_draft(settings) else ()
        return tuple(dict.fromkeys((cls.target, *latents)))

    @classmethod
    def positions(cls, settings: Any, side: int) -> int:
        """Return how many positions the network has for a picture of side x side codes."""
        return side * side

    @property
    def views_wanted(self) -> int:
        """Count the teacher's views that it wants before a training; 0: none."""
        return 0

    def start_from(self, views: Tensor) -> None:
        """Take the teacher's views [`views_wanted`, E], unit vectors, before a training."""

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, grid: PictureGrid, space: TokenSpace) -> Decoder:
        """Make an untrained decoder; `settings` is of the class's `Settings`."""

    @abstractmethod
    def objective(self, settings: Any, weights: Mapping[str, float]) -> Objective:
        """Make the module that trains this decoder; a loss of weight 0 need not be computed."""

    def build_scheduler(self, settings: Any, sampling: Sampling) -> Any:
        """Make the diffusers scheduler that `sample` steps with; None for a decoder that takes no steps."""
        return None

    @property
    def sizes(self) -> dict[str, int]:
        """Return its width, layers and heads, so far as it has such, to compare with another of the same size."""
        return {name: self.config[name] for name in ("width", "layers", "heads") if name in self.config}

    @property
    def styles(self) -> tuple[str, ...]:
        """Return the names of the styles that may be asked for; none where the decoder knows of none."""
        return tuple(self.config.get("styles") or ())

    # ---- of a drawing -------------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, t: Tensor, tokens: Tensor, embedding: Tensor, drop: Tensor | None = None,
        drafted: Tensor | None = None, style: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute what a scheduler steps with, such as logits of x_0 or a velocity.

        Args:
            x: x_t, as `start` gives it.
            t: [B], time as a share of all times in [0, 1].
            tokens: [B, K, C]; embedding: [B, E].
            drop: [B] bool, True where the null condition stands in; None: nowhere.
            drafted: what `draft` gave for these tokens; drafted here if it is not given.
            style: as of `SpeechCondition`; given only to a decoder that has `styles`. It is dropped where `drop` is.
        """
        raise NotImplementedError(f"{type(self).__name__} does not step")

    @abstractmethod
    def start(self, batch: int, generator: Generators, device: torch.device) -> Tensor:
        """Make what a drawing starts from, x_T, of the shape of x_0."""

    def draft(self, condition: SpeechCondition) -> Tensor | None:
        """Compute what a condition tells of the picture, once for all steps; None without a draft."""
        return None

    def draft_loss(self, drafted: Tensor, latents: Tensor) -> Tensor:
        """Compute the loss of a draft against the tokenizer's latents [B, d, h, w]: scalar."""
        raise NotImplementedError(f"{type(self).__name__} makes no draft")

    def set_timesteps(self, scheduler: Any, steps: int, device: torch.device) -> None:
        """Spread `steps` over the scheduler's times."""
        scheduler.set_timesteps(steps, device)

    @staticmethod
    def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Apply classifier-free guidance (Ho & Salimans 2022, Eq. 6)."""
        return unconditional.float() + scale * (conditional.float() - unconditional.float())

    def predict(
        self, x: Tensor, t: Tensor, condition: SpeechCondition, scale: float, drafted: Tensor | None = None
    ) -> Tensor:
        """Compute what the scheduler steps with, guided: one pass over the batch, doubled where there is guidance.

        Args:
            x: x_t of B pictures.
            t: scalar, time as a share of all times in [0, 1].
            scale: of the guidance; 1 is none.
        """
        share = t.to(x.device, torch.float32, non_blocking=True).expand(len(x))
        tokens, embedding = condition.tokens.to(self.dtype), condition.embedding.to(self.dtype)
        known = {"drafted": drafted, **({} if condition.style is None else {"style": condition.style})}
        if scale == 1:
            prediction: Tensor = self(x, share, tokens, embedding, **known)
            return prediction.float()
        drop = torch.arange(2, device=x.device).repeat_interleave(len(x)).bool()
        twice = [torch.cat([part, part]) for part in (x, share, tokens, embedding)]
        both = {name: None if part is None else torch.cat([part, part]) for name, part in known.items()}
        conditional, unconditional = self(*twice, drop, **both).chunk(2)
        return self.guide(conditional, unconditional, scale)

    @torch.no_grad()
    def sample(
        self, scheduler: Any, condition: SpeechCondition, start: Tensor, steps: int, guidance: float,
        generator: Generators = None, on_step: StepCallback | None = None,
    ) -> Tensor:  # fmt: skip
        """Draw x_0 from x_T: the sampling loop.

        Args:
            scheduler: of `build_scheduler`.
            condition: of B pictures.
            start: x_T.
            steps: at most as many as the scheduler has times.
            guidance: scale of classifier-free guidance; 1 is none.
            on_step: called with the step's number, its time and x after it; returns the x to go on with.
        """
        self.set_timesteps(scheduler, steps, start.device)
        drafted = self.draft(condition)
        x, total = start, scheduler.config["num_train_timesteps"]
        for number, t in enumerate(scheduler.timesteps):
            prediction = self.predict(x, t / total, condition, guidance, drafted)
            x = scheduler.step(prediction, t, x, generator=generator, return_dict=False)[0]
            if on_step is not None:
                x = on_step(number, t, x)
        return x

    @classmethod
    def picture(cls, x0: Tensor, tokenizer: Tokenizer) -> Tensor:
        """Decode x_0 to pictures [B, 3, H, W] in [-1, 1]."""
        return tokenizer.decode(x0) if cls.target == "codes" else tokenizer.decode_latents(x0)

    @classmethod
    def reconstruct(cls, pictures: Tensor, tokenizer: Tokenizer) -> Tensor:
        """Return pictures [B, 3, H, W] as they would look if every code or latent of theirs were drawn right."""
        return cls.picture(tokenizer.encode_as(pictures, cls.target), tokenizer)


def find_decoder(kind: str) -> type[Decoder]:
    """Return the decoder's class that a recipe's `decoder.kind` names.

    Raises:
        RecipeError: there is none of that name; names those there are.
    """
    return find_variant(DECODERS, kind, Decoder, "decoder.kind")  # type: ignore[type-abstract]
