"""Published networks of timm, by their names on the Hub or from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError

from sta.config.published import locate
from sta.errors import WeightsError, first_line


def load_timm(name: str, key: str, **options: Any) -> Any:
    """Load a network by its name on the Hub, such as `timm/tf_efficientnet_lite0.in1k`, or from a folder of it.

    Args:
        name: a folder's name is that of the network's architecture, and it holds `model.safetensors`.
        key: of the recipe, that names it.
        options: of `timm.create_model`.

    Raises:
        WeightsError: it is not to be had.
    """
    place = Path(locate(name))
    weights = {"file": str(place / "model.safetensors")} if place.is_dir() else None
    try:
        return timm.create_model(place.name, pretrained=True, pretrained_cfg_overlay=weights, **options)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"{key} '{name}': timm cannot load it ({first_line(error)}); name one of its models on the Hub, or a "
            "folder of that name that holds model.safetensors"
        ) from error
