"""Loading of one trained network, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from diffusers.models.modeling_utils import ModelMixin

from sta.errors import WeightsError, first_line

Network = TypeVar("Network", bound=ModelMixin)


def load_network(kind: type[Network], folder: Path) -> Network:
    """A network in evaluation mode from its folder (config.json and safetensors).

    diffusers fills weights that a file lacks with fresh ones and warns; here that is an error.

    Raises:
        WeightsError: the folder is missing, truncated, or holds another network's weights.
    """
    if not (folder / "config.json").exists():
        raise WeightsError(f"{folder}: holds no {kind.__name__} (no config.json); make it again or copy it whole")
    try:
        network, info = kind.from_pretrained(
            folder, output_loading_info=True, low_cpu_mem_usage=False, use_safetensors=True
        )
    except Exception as error:  # safetensors, JSON, torch and diffusers each raise their own for a broken file
        first = first_line(error)
        raise WeightsError(f"{folder}: not a whole {kind.__name__} ({first}); make it again") from error
    wrong = [name for part in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info.get(part, [])]
    if wrong:
        raise WeightsError(f"{folder}: {len(wrong)} weights do not fit {kind.__name__} ({wrong[0]}); make it again")
    loaded: Network = network.eval()
    return loaded
