"""Speech models of transformers: how they are described, built, loaded and frozen, and the sum over their layers."""

from __future__ import annotations

import importlib
import pkgutil
from abc import abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from sta.config.published import locate
from sta.data.audio import SAMPLE_RATE, sample_features
from sta.errors import WeightsError, first_line
from sta.models.backbones.base import SpeechBackbone
from sta.models.layers import length_mask
from sta.private import outside_deepspeed

#: Settings of a published configuration that are not followed: dropped layers would leave holes in the sum over all of
#: them, and an adapter comes after them and halves the frames.
OVERRIDES = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "add_adapter": False}
SHORTEST = 8_000  # samples of a batch: below .2 s the SpecAugment of models that are trained along raises an error


class PretrainedBackbone(SpeechBackbone):
    """Waveforms [B, T, 1] to frames [B, S, D]: a learned sum over the layers of a speech model, then a projection.

    The weights of the sum follow SUPERB (Yang et al. 2021). It is always over all layers, so layerdrop is off, also in
    a model that is trained along. A frozen model stays in evaluation mode; normalisation over a batch always does.

    Args:
        width: D.
        config: the model's configuration.
        normalise: whether it wants each waveform with mean 0 and variance 1.
        frozen: whether its weights are left as they are.

    Attributes:
        model_types: of transformers, those that the class takes.
        part: of the model as transformers loads it, where that holds more than the class uses.
    """

    feature_kind = "samples"
    features_per_second = SAMPLE_RATE
    cached_features = staticmethod(sample_features)
    model_types: ClassVar[tuple[str, ...]] = ()
    part: ClassVar[str] = ""

    def __init__(self, width: int, config: dict[str, Any], normalise: bool, frozen: bool):
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.normalise, self.frozen = normalise, frozen
        settings = {**config, **{key: value for key, value in OVERRIDES.items() if key in config}}
        with outside_deepspeed():
            model = AutoModel.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
        self.model = model.get_submodule(self.part)
        self.adapt_model()
        layers = self.model.config.num_hidden_layers
        self.layer_weights = nn.Parameter(self.first_layer_weights(layers))
        self.project = nn.Linear(self.model.config.hidden_size, width)
        self.norm = nn.LayerNorm(width)
        if self.frozen:
            self.model.requires_grad_(False)
        self.train(self.training)

    def adapt_model(self) -> None:
        """Change in the model, before it is frozen, what would make frames depend on padding; by default nothing."""

    @staticmethod
    def first_layer_weights(layers: int) -> Tensor:
        """Return the logits [layers + 1] from which the learned sum starts; layer 0 is what goes into the first."""
        return torch.zeros(layers + 1)

    @classmethod
    def takes(cls, config: dict[str, Any]) -> bool:
        """Tell whether the class can use models of a configuration of transformers."""
        return config["model_type"] in cls.model_types

    @classmethod
    def describe(cls, name: str, frozen: bool) -> dict[str, Any]:
        """Return the arguments of the class that takes the named model, from its configuration files alone.

        Raises:
            WeightsError: there is no such model on disk or on the Hub, or it is none that a class here takes.
        """
        from transformers import AutoConfig
        from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor

        try:
            config = AutoConfig.from_pretrained(locate(name)).to_dict()
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"encoder.backbone '{name}': its configuration is not to be had ({first_line(error)})"
            ) from error
        class_for(config, name)
        try:
            normalise = bool(getattr(AutoFeatureExtractor.from_pretrained(locate(name)), "do_normalize", True))
        except (OSError, ValueError):
            normalise = True
        return {"config": config, "normalise": normalise, "frozen": frozen}

    def load_published(self, name: str) -> None:
        """Load the published weights; they are float32 here, however they were stored.

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
        weights = model.get_submodule(self.part).state_dict()
        missing = {key.removeprefix(f"{self.part}.") for key in report["missing_keys"]} & weights.keys()
        missing.discard("masked_spec_embed")  # of SpecAugment, which few models are published with
        if missing:
            raise WeightsError(
                f"encoder.backbone '{name}': {len(missing)} of its weights are missing, such as {min(missing)}; "
                "download it again"
            )
        self.model.load_state_dict(weights)

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

    def forward(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames [B, S, D] and their lengths [B]."""
        wave = inputs.squeeze(-1) * length_mask(lengths, inputs.shape[1])
        if self.model.training:
            wave = F.pad(wave, (0, max(0, SHORTEST - wave.shape[1])))
        hidden, lengths = self.hidden_states(wave, lengths)
        mixed = sum(w * h for w, h in zip(self.layer_weights.softmax(0), hidden, strict=True))
        return self.norm(self.project(mixed)), lengths

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
