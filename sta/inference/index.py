"""`model_index.json` of a release: of which class each part is, and the defaults of a call.

What a release names is looked up, never imported: in this package by the class's name, wherever an older version had
it; among diffusers' schedulers; and in modules of others that are imported already, or that the caller trusts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Container
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from sta.config.recipe import DECODERS
from sta.config.variants import known_variants
from sta.errors import ArgumentError, WeightsError, first_line
from sta.inference import arguments
from sta.models.autoencoder import Autoencoder
from sta.models.decoders.base import Decoder, find_decoder
from sta.models.loading import load_network
from sta.models.scheduler import MaskReplaceScheduler
from sta.models.vq import Tokenizer, VQTokenizer

INDEX = "model_index.json"
BASES: dict[str, type] = {"decoder": Decoder, "tokenizer": Tokenizer, "scheduler": SchedulerMixin}
RENAMED = {"num_hearings": "num_tta_samples"}  # defaults as version 0.1 called them -> today's names


def read_index(folder: Path) -> dict[str, Any]:
    """Read a release's index, whose defaults of a call must draw."""
    path = folder / INDEX
    if not path.exists():
        raise WeightsError(f"{folder}: not a release, it has no {INDEX}; `sta run RECIPE` makes one")
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        index = {RENAMED.get(key, key): value for key, value in read.items()}
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: not a JSON object ({first_line(error)}); copy the release again") from error
    try:
        for name in ("num_inference_steps", "num_tta_samples"):
            arguments.whole(name, index.setdefault(name, 1))
        arguments.guidance(index.get("guidance_scale"))
    except ArgumentError as error:
        raise WeightsError(f"{path}: {error}; copy the release again") from error
    return index


def load_parts(folder: Path, index: dict[str, Any], given: Container[str], trusted: bool) -> dict[str, Any]:
    """Load the parts of a release but those that are given, in evaluation mode.

    `trusted`: a module is imported because the index names it.
    """
    parts: dict[str, Any] = {}
    for name in BASES:
        entry = index.get(name)
        if name in given:
            continue
        if name == "scheduler" and entry == [None, None]:
            parts[name] = None
        elif name == "scheduler":
            parts[name] = _load_scheduler(_class_of(folder, name, entry, trusted), folder / name)
        else:
            parts[name] = load_network(_class_of(folder, name, entry, trusted), folder / name)
    return parts


def _class_of(folder: Path, part: str, entry: Any, trusted: bool) -> Any:
    """Return the class of a part, by what the index says of it: a module or library, and a class's name."""
    module, name = entry if isinstance(entry, list) and len(entry) == 2 else ("", entry)
    found = _find(str(module), str(name), trusted)
    if not (isinstance(found, type) and issubclass(found, BASES[part])):
        raise WeightsError(
            f"{folder / INDEX}: names {module}.{name} as its {part}, which is no {BASES[part].__name__} that is known "
            f"here; `import {module}` before, or trust the release (trust_remote_code, --trust-remote-code)"
        )
    return found


def _find(module: str, name: str, trusted: bool) -> Any:
    if module == "diffusers":
        return getattr(diffusers, name, None)
    if module.partition(".")[0] == "sta":
        decoders = (find_decoder(kind) for kind in known_variants(DECODERS, Decoder))
        return {kind.__name__: kind for kind in (*decoders, VQTokenizer, Autoencoder, MaskReplaceScheduler)}.get(name)
    if trusted and module not in sys.modules:
        try:
            import_module(module)
        except (ImportError, ValueError) as error:
            raise WeightsError(f"{module}: cannot be imported ({first_line(error)}); install what has it") from error
    return getattr(sys.modules.get(module), name, None)


def _load_scheduler(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # diffusers raises many kinds for a broken folder
        raise WeightsError(f"{folder}: not a whole {kind.__name__} ({first_line(error)}); copy it again") from error
