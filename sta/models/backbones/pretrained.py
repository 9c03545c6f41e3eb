"""Speech models of transformers: how they are described, built, loaded and frozen, and the sum over their layers.

Frames of a frozen model never change, so that they may be computed once: `PretrainedBackbone.layer_frames` gives what
is kept, and its `reader`, a `LayerSum` with the same trainable parts, goes on from there.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from sta.config.published import locate
from sta.data.audio import SAMPLE_RATE, sample_features
from sta.errors import RecipeError, WeightsError, first_line
from sta.models.backbones.base import SpeechBackbone
from sta.models.layers import length_mask, pooled
from sta.models.precision import in_half
from sta.private import outside_deepspeed

#: Settings of a published configuration that are not followed: dropped layers would leave holes in the sum over all of
#: them, and an adapter comes after them and halves the frames.
OVERRIDES = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "add_adapter": False}
FRAMES_PER_SECOND = 50  # of most models, before they are pooled
SHORTEST = 8_000  # samples of a batch: below .2 s the SpecAugment of models that are trained along raises an error


class LayerSum(SpeechBackbone):
    """States of a model's layers, side by side [B, S, L*C], to frames [B, S, D]: a learned sum, then a projection.

    The weights of the sum follow SUPERB (Yang et al. 2021). Each channel has mean 0 and deviation 1 over the recordings
    that a training starts with: some channels of Whisper are hundreds of times as large as others, and with these as
    they are little is learnt.

    Args:
        width: D.
        channels: C.
        logits: [L], of the weights to start from.
    """

    mean: Tensor
    deviation: Tensor
    feature_kind = "frames"
    features_per_second = FRAMES_PER_SECOND
    cached_features = staticmethod(sample_features)
    has_layers = True

    def __init__(self, width: int, channels: int, logits: Tensor):
        super().__init__()
        self.layer_weights = nn.Parameter(logits)
        self.project = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mean", torch.zeros(len(logits), channels))
        self.register_buffer("deviation", torch.ones(len(logits), channels))

    def inputs(self, features: Tensor) -> Tensor:
        """Return cached frames, float16, as float32."""
        return features.float()

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames [B, S, D] and their lengths [B]."""
        states, lengths = self.states(inputs, lengths)
        return self.weigh(states), lengths

    def states(self, inputs: Tensor, lengths: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Return the states of the layers that are summed, [B, S, C] each, and their lengths [B]."""
        return inputs.chunk(len(self.layer_weights), -1), lengths

    @torch.no_grad()
    def start_from(self, inputs: Tensor, lengths: Tensor) -> None:
        """Take mean and deviation of the channels from some recordings."""
        states, lengths = self.states(inputs, lengths)
        valid = length_mask(lengths, states[0].shape[1])
        for layer, state in enumerate(states):
            deviation, mean = torch.std_mean(state[valid].float(), 0)
            self.mean[layer], self.deviation[layer] = mean, deviation.clamp_min(1e-5)

    def weigh(self, states: Sequence[Tensor]) -> Tensor:
        """Return the sum of the layers' states [B, S, C], projected to [B, S, D].

        Weights and deviations go into the projection: they are few, and the states are the most that a step reads.
        """
        scales = self.layer_weights.softmax(0)[:, None] / self.deviation  # [L, C]
        parts = zip(states, self.mean, scales, strict=True)
        mixed = sum(F.linear(state - mean, self.project.weight * scale) for state, mean, scale in parts)
        return self.norm(mixed + self.project.bias)  # type: ignore[no-any-return]

    def reader(self) -> LayerSum:
        """Return what reads cached frames, with the same trainable parts."""
        made = LayerSum(self.project.out_features, self.project.in_features, self.layer_weights)
        made.layer_weights, made.project, made.norm = self.layer_weights, self.project, self.norm
        made.mean, made.deviation = self.mean, self.deviation
        return made


class PretrainedBackbone(LayerSum):
    """Waveforms [B, T, 1] to frames [B, S, D]: a learned sum over the layers of a speech model, then a projection.

    Layerdrop is off, also in a model that is trained along, since the sum wants every layer. A frozen model stays in
    evaluation mode, and its weights are rounded to half precision, in which they are kept; normalisation over a batch
    always is in evaluation mode.

    Args:
        width: D.
        config: the model's configuration.
        normalise: whether it wants each waveform with mean 0 and variance 1.
        frozen: whether its weights are left as they are.
        layers: numbers of the states that are summed, 0 of what goes into the first layer; None: all.
        pooling: how many neighbouring frames are averaged to one.

    Attributes:
        model_types: of transformers, those that the class takes.
        part: of the model as transformers loads it, where that holds more than the class uses.
    """

    feature_kind = "samples"
    features_per_second = SAMPLE_RATE
    model_types: ClassVar[tuple[str, ...]] = ()
    part: ClassVar[str] = ""

    def __init__(
        self, width: int, config: dict[str, Any], normalise: bool, frozen: bool, layers: Sequence[int] | None = None,
        pooling: int = 1,
    ):  # fmt: skip
        from transformers import AutoConfig, AutoModel

        settings = {**config, **{key: value for key, value in OVERRIDES.items() if key in config}}
        with outside_deepspeed():
            model = AutoModel.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
        model = model.get_submodule(self.part)
        logits = self.first_layer_weights(model.config.num_hidden_layers)
        layers = range(len(logits)) if layers is None else layers
        super().__init__(width, model.config.hidden_size, logits[list(layers)])
        self.model, self.normalise, self.frozen, self.layers, self.pooling = model, normalise, frozen, layers, pooling
        self.adapt_model()
        if self.frozen:
            self.model.requires_grad_(False)
        self.train(self.training)

    def adapt_model(self) -> None:
        """Change in the model, before it is frozen, what makes frames depend on padding; drop what is not needed."""

    @staticmethod
    def first_layer_weights(layers: int) -> Tensor:
        """Return the logits [layers + 1] from which the learned sum starts; layer 0 is what goes into the first."""
        return torch.zeros(layers + 1)

    @classmethod
    def takes(cls, config: dict[str, Any]) -> bool:
        """Tell whether the class can use models of a configuration of transformers."""
        return config["model_type"] in cls.model_types

    @classmethod
    def describe(cls, name: str, frozen: bool, layers: Sequence[int] | None = None, pooling: int = 1) -> dict[str, Any]:
        """Return the arguments of the class that takes the named model, from its configuration files alone.

        Raises:
            RecipeError: it has no such layers.
            WeightsError: there is no such model on disk or on the Hub, or it is none that a class here takes.
        """
        from transformers import AutoConfig
        from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor

        try:
            published = AutoConfig.from_pretrained(locate(name))
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"encoder.backbone '{name}': its configuration is not to be had ({first_line(error)})"
            ) from error
        config = published.to_dict()
        class_for(config, name)
        if layers is not None and not set(layers) <= set(range(published.num_hidden_layers + 1)):
            raise RecipeError(
                f"encoder.backbone_layers {list(layers)}: '{name}' has states 0 to {published.num_hidden_layers}"
            )
        try:
            normalise = bool(getattr(AutoFeatureExtractor.from_pretrained(locate(name)), "do_normalize", True))
        except (OSError, ValueError):
            normalise = True
        made: dict[str, Any] = {"config": config, "normalise": normalise, "frozen": frozen}
        made |= {} if layers is None else {"layers": list(layers)}
        return made | ({} if pooling == 1 else {"pooling": pooling})

    def load_published(self, name: str) -> None:
        """Load the published weights; they are float32 here, however they were stored, and of half precision if frozen.

        Raises:
            WeightsError: they are not there, are damaged or are not all there.
        """
        from transformers import AutoConfig, AutoModel

        try:
            with outside_deepspeed():
                config = AutoConfig.for_model(**self.model.config.to_dict())
                model, report = AutoModel.from_pretrained(locate(name), config=config, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            where = "folder" if Path(name).exists() else "name"
            raise WeightsError(
                f"encoder.backbone '{name}': this {where} does not load as a transformers speech model "
                f"({first_line(error)})"
            ) from error
        found = model.get_submodule(self.part).state_dict()
        weights = {key: found[key] for key in self.model.state_dict()}
        missing = {key.removeprefix(f"{self.part}.") for key in report["missing_keys"]} & weights.keys()
        missing.discard("masked_spec_embed")  # of SpecAugment, which few models are published with
        if missing:
            raise WeightsError(
                f"encoder.backbone '{name}': {len(missing)} of its weights are missing, such as {min(missing)}; "
                "download it again"
            )
        self.model.load_state_dict(in_half(weights) if self.frozen else weights)

    def train(self, mode: bool = True) -> PretrainedBackbone:
        """Set the training mode of what is not frozen."""
        super().train(mode)
        for module in self.model.modules():
            if self.frozen or isinstance(module, nn.BatchNorm1d):
                module.train(False)
        return self

    def inputs(self, features: Tensor) -> Tensor:
        """Return int16 samples [B, T, 1] as floats in [-1, 1]."""
        return features.float() / 32767

    @property
    def frozen_part(self) -> nn.Module | None:
        """The model, if it is frozen."""
        return self.model if self.frozen else None

    def reader(self) -> LayerSum:
        """Return what reads cached frames, with the same trainable parts; of a model that is trained, itself."""
        return super().reader() if self.frozen else self

    @torch.no_grad()
    def layer_frames(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the reader reads: float16 [B, S, L*C], and lengths [B]."""
        states, lengths = self.states(inputs, lengths)
        largest = torch.finfo(torch.half).max
        return torch.cat(list(states), -1).clamp(-largest, largest).half(), lengths

    def states(self, inputs: Tensor, lengths: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Return the states of the layers that are summed, [B, S, C] each, pooled, and their lengths [B]."""
        wave = inputs.squeeze(-1) * length_mask(lengths, inputs.shape[1])
        if self.model.training:
            wave = F.pad(wave, (0, max(0, SHORTEST - wave.shape[1])))
        hidden, lengths = self.hidden_states(wave, lengths)
        return [pooled(hidden[layer], lengths, self.pooling) for layer in self.layers], -(-lengths // self.pooling)

    @abstractmethod
    def hidden_states(self, wave: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return what goes into the first layer and comes out of each, [B, S, C], and their lengths [B].

        Args:
            wave: [B, T], zero in the padding.
            lengths: [B], in samples.
        """


@cache
def _classes() -> tuple[type[PretrainedBackbone], ...]:
    """Return the classes of this package that take models of transformers; every module of it may hold one."""
    package = importlib.import_module("sta.models.backbones")
    for module in pkgutil.iter_modules(package.__path__, "sta.models.backbones."):
        importlib.import_module(module.name)
    return tuple(c for c in PretrainedBackbone.__subclasses__() if c.__module__.startswith("sta.models.backbones."))


def class_for(config: dict[str, Any], name: str) -> type[PretrainedBackbone]:
    """Return the class that takes models of a configuration.

    Raises:
        WeightsError: there is none.
    """
    for known in _classes():
        if known.takes(config):
            return known
    kinds = ", ".join(sorted(kind for known in _classes() for kind in known.model_types))
    raise WeightsError(
        f"encoder.backbone '{name}': a {config['model_type']} model is no speech backbone that works here; use one of "
        f"{kinds}"
    )


def frame_width(description: dict[str, Any] | None) -> int:
    """Return L*C, the width of the frames that are cached of a described model."""
    from transformers import AutoConfig

    assert description is not None
    config = AutoConfig.for_model(**description["config"])
    return int(config.hidden_size * len(description.get("layers") or range(config.num_hidden_layers + 1)))
