"""Loading of one trained network, whole or not at all, from this version's folders and from older ones."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file, save
from torch import Tensor

from sta.data.cache import write_atomically
from sta.errors import WeightsError, first_line
from sta.models.precision import from_int8, in_half

Network = TypeVar("Network", bound=ModelMixin)

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # of weights that are split over several files
FROZEN_FILE = "frozen-{}.safetensors"  # of a frozen model's weights, once for all networks that stand on it
#: Parts of the names of weights that were saved by version 0.1 -> today's.
RENAMED_WEIGHTS = {
    r"\bamong\b": "self_attention", r"\breading\b": "cross_attention", r"\bnorm_reading\b": "norm_cross_attention",
    r"\bforward_net\b": "feed_forward", r"\bread_tokens\b": "token_proj", r"\btoken_role\b": "token_embedding",
    r"\bread_embedding\b": "embedding_proj", r"\bread_time\b": "time_mlp", r"\bmodulate\b": "adaln",
    r"\bread_draft\b": "draft_proj", r"^(trunk\.(?:draft\.)?)place$": r"\1position_embedding",
    r"^join\b": "patch_embed", r"^readers\b": "query_layers", r"^read\b": "ctc_embedding",
    r"^(context\.\d+)\.near\b": r"\1.convolution", r"^(context\.\d+)\.far\b": r"\1.transformer",
    r"^no_prosody$": "null_prosody",
}  # fmt: skip
#: Keys of a network's configuration in version 0.1 -> today's.
RENAMED_SETTINGS = {"group": "patch_size"}


def named_by_content(data: bytes) -> str:
    """Return sixteen hex digits that name what a file holds."""
    return hashlib.sha256(data).hexdigest()[:16]


def half_file(weights: Mapping[str, Tensor]) -> tuple[str, bytes]:
    """Return weights in half precision as a safetensors file, after sixteen hex digits that name what it holds."""
    data = save({k: w.cpu().contiguous() for k, w in in_half(weights).items()}, metadata={"format": "pt"})
    return named_by_content(data), data


def save_beside(network: ModelMixin, folder: Path, frozen: Mapping[str, Tensor], shared: Path) -> None:
    """Write a network without its frozen weights, which go in half precision to a file of the folder `shared`.

    The file is named after what it holds, so that all networks there that have the same weights have one file.

    Args:
        network: does not hold the frozen weights any more.
        frozen: by their names in the network; none: the network is written as ever.
    """
    network.save_pretrained(folder)
    if not frozen:
        return
    digits, data = half_file(frozen)
    path = shared / FROZEN_FILE.format(digits)
    if not path.exists():
        write_atomically(path, data)
    places = dict.fromkeys(network.state_dict(), WEIGHTS) | dict.fromkeys(frozen, os.path.relpath(path, folder))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2, sort_keys=True) + "\n")


def rename_frozen(path: Path, folder: Path) -> None:
    """Name a frozen model's file, rewritten since, after what it holds now, for all networks below a folder."""
    renamed = path.with_name(FROZEN_FILE.format(named_by_content(path.read_bytes())))
    path.rename(renamed)
    for index in folder.rglob(INDEX):
        index.write_text(index.read_text(encoding="utf-8").replace(path.name, renamed.name), encoding="utf-8")


def load_network(kind: type[Network], folder: Path) -> Network:
    """Load a network in evaluation mode from its folder (config.json and safetensors).

    diffusers fills weights that a file lacks with fresh ones and warns; here that is an error.
    """
    if not (folder / "config.json").exists():
        raise WeightsError(f"{folder}: holds no {kind.__name__} (no config.json); make it again or copy it whole")
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        known = inspect.signature(kind.__init__).parameters
        network = kind.from_config({k if k in known else RENAMED_SETTINGS.get(k, k): v for k, v in settings.items()})
        expected = network.state_dict()
        weights = {name if name in expected else _renamed(name): weight for name, weight in _read_weights(folder)}
    except Exception as error:  # safetensors, JSON, torch and diffusers each raise their own for a broken file
        raise WeightsError(f"{folder}: not a whole {kind.__name__} ({first_line(error)}); make it again") from error
    wrong = [
        *(expected.keys() ^ weights.keys()),
        *(k for k in expected.keys() & weights if not _fits(weights[k], expected[k])),
    ]
    if wrong:
        raise WeightsError(f"{folder}: {len(wrong)} weights do not fit {kind.__name__} ({min(wrong)}); make it again")
    network.load_state_dict(weights)
    loaded: Network = network.eval()
    return loaded


def _fits(weight: Tensor, expected: Tensor) -> bool:
    """Return whether a weight has the shape and the kind of number that are expected."""
    return weight.shape == expected.shape and weight.is_floating_point() == expected.is_floating_point()


def _read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = [folder / WEIGHTS]
    if (folder / INDEX).exists():
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    return (one for file in files for one in from_int8(load_file(file)).items())


def _renamed(name: str) -> str:
    for old, new in RENAMED_WEIGHTS.items():
        name = re.sub(old, new, name)
    return name
