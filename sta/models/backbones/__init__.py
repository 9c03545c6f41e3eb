"""Speech backbones: what turns a recording into acoustic frames, one file per variant behind `SpeechBackbone`.

A recipe's `encoder.backbone` is null for log-mel features that are trained here, the Hub name or folder of a speech
model of transformers, whose `model_type` chooses the class, or `module:Class`, a `SpeechBackbone` of anybody's own that
Python can import.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

from sta.errors import RecipeError
from sta.models.backbones.base import SpeechBackbone
from sta.models.backbones.log_mel import LogMelBackbone
from sta.models.backbones.pretrained import PretrainedBackbone, class_for

if TYPE_CHECKING:
    from sta.config.recipe import EncoderSettings

__all__ = ["SpeechBackbone", "backbone_class", "backbone_of", "build_backbone", "check_backbone", "describe_backbone"]


def backbone_class(name: str | None) -> type[SpeechBackbone]:
    """Return the class that a recipe's `encoder.backbone` names, without reading or downloading a model.

    For a model of transformers it is the class that all of them share, which knows what is cached of a recording.

    Raises:
        RecipeError: `module:Class` names no `SpeechBackbone`.
    """
    if name is None:
        return LogMelBackbone
    return _imported(name) if _is_entry_point(name) else PretrainedBackbone


def describe_backbone(name: str | None, frozen: bool, **layers: Any) -> dict[str, Any] | None:
    """Return what `build_backbone` builds the named backbone from; it is saved in the encoder's configuration.

    Args:
        name, frozen: as of a recipe's encoder.
        layers: `layers` and `pooling` of one that has layers.

    Raises:
        RecipeError: `module:Class` names no `SpeechBackbone`, or the model has no such layers.
        WeightsError: there is no such model on disk or on the Hub, or no backbone takes it.
    """
    if name is None:
        return None
    own = {"class": name} if _is_entry_point(name) else {}
    return own | backbone_class(name).describe(name, frozen, **layers)


def backbone_of(settings: EncoderSettings) -> dict[str, Any] | None:
    """Return the description of the backbone that a recipe's encoder has; see `describe_backbone`."""
    check_backbone(settings)
    layers = {"layers": settings.backbone_layers, "pooling": settings.frame_pooling}
    own = layers if backbone_class(settings.backbone).has_layers else {}
    return describe_backbone(settings.backbone, settings.freeze_backbone, **own)


def check_backbone(settings: EncoderSettings) -> None:
    """Refuse settings of a transformers model for another backbone.

    Raises:
        RecipeError: says which they are.
    """
    of_layers = settings.cache_frames or settings.backbone_layers is not None or settings.frame_pooling > 1
    if of_layers and not backbone_class(settings.backbone).has_layers:
        raise RecipeError(
            f"encoder.backbone {settings.backbone or 'null'}: cache_frames, backbone_layers and frame_pooling take a "
            "model of transformers, such as openai/whisper-base"
        )


def build_backbone(description: dict[str, Any] | None, width: int, **log_mel: Any) -> SpeechBackbone:
    """Build the untrained backbone of a description.

    Args:
        description: of `describe_backbone`.
        width: D of its frames.
        log_mel: further arguments of `LogMelBackbone`.
    """
    if description is None:
        return LogMelBackbone(width, **log_mel)
    settings = dict(description)
    name = settings.pop("class", None)
    chosen = _imported(name) if name else class_for(settings["config"], "of the encoder's configuration")
    return chosen(width, **settings)


def _is_entry_point(name: str) -> bool:
    return re.fullmatch(r"[\w.]+:\w+", name) is not None


def _imported(name: str) -> type[SpeechBackbone]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise RecipeError(
            f"encoder.backbone '{name}': cannot be imported ({error}); install its package, or name it in PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, SpeechBackbone)):
        raise RecipeError(
            f"encoder.backbone '{name}': {module} has no SpeechBackbone of this name; name a class that inherits from "
            "sta.models.backbones.SpeechBackbone"
        )
    return found
