"""Releases: a run's trained parts as one folder in diffusers' layout, with checksums, verified by loading it back."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sta.config.recipe import Recipe, dump_recipe
from sta.data.cache import build_folder, write_atomically, write_json
from sta.data.checksums import SUMS, first_fault, write_sums
from sta.errors import WeightsError
from sta.inference.packs import LanguagePack
from sta.inference.pipeline import SpeechToImagePipeline
from sta.inference.weights import DEFAULT, SHIPPED
from sta.models.autoencoder import tokenizer_class
from sta.models.decoders.base import find_decoder
from sta.models.loading import FROZEN_FILE, load_network, rename_frozen
from sta.models.precision import in_half, in_int8

if TYPE_CHECKING:
    from sta.training.workspace import Workspace

CLASSIFIER = "classifier"
PARTS = "parts.json"
KEPT = "release.weights"
IN = {"half": in_half, "int8": in_int8}  # a recipe's release.weights -> what keeps them so
PRETRAINED = SHIPPED / DEFAULT  # what is drawn with where no other release is named


def assemble(workspace: Workspace) -> SpeechToImagePipeline:
    """Build the pipeline of a run from what its stages left."""
    # Drawing needs nothing of training, whose imports (datasets, open_clip) take more than a second.
    from sta.training.speech_features import load_speech
    from sta.training.workspace import fingerprint

    recipe = workspace.recipe
    folder = workspace.final("decoder") / "decoder"
    decoder = load_network(find_decoder(recipe.decoder.kind), folder)
    pipe = SpeechToImagePipeline(
        decoder,
        load_network(tokenizer_class(recipe.tokenizer.codes), workspace.final("tokenizer") / "tokenizer"),
        decoder.build_scheduler(recipe.decoder, recipe.sampling),
        token_space=fingerprint(folder),
        num_inference_steps=recipe.sampling.steps,
        guidance_scale=recipe.sampling.guidance,
        num_tta_samples=recipe.sampling.tta_samples,
    )
    for group, codes in recipe.groups.items():
        encoder, bottleneck = load_speech(workspace, group, "decoder")
        for code in codes:
            pipe.add_pack(LanguagePack(workspace.cards[code], workspace.pieces[code], group, encoder, bottleneck))
    return pipe


def parts_of(workspace: Workspace) -> dict[str, str]:
    """Return stage -> fingerprint of what it left, and how the release keeps it if not in half precision.

    What is made of a run's stages keeps it in `PARTS`.
    """
    from sta.training.stages import stage_names
    from sta.training.workspace import fingerprint

    parts = {name: fingerprint(workspace.final(name)) for name in stage_names(workspace.recipe)[1:]}
    kept = workspace.recipe.release.weights
    return parts if kept == "half" else {**parts, KEPT: kept}


def outdated(workspace: Workspace, folder: Path) -> str | None:
    """Return what changed since a folder was made of a run's stages, in words; None if nothing did.

    One without `PARTS`, which an older version made, passes for new.
    """
    path = folder / PARTS
    if not path.exists():
        return None
    now = parts_of(workspace)
    try:
        before = json.loads(path.read_bytes())
    except ValueError:  # cut short
        before = {}
    if before == now:
        return None
    again = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return f"{folder}: made before {', '.join(again)} was {'changed' if again == [KEPT] else 'done again'}"


def remove_outdated(workspace: Workspace) -> None:
    """Remove the release and the evaluations of stages that were done again since, with a line."""
    evaluations = [p for p in sorted(workspace.folder.glob("evaluation*")) if p.is_dir() and not p.suffix]
    for folder in (*evaluations, workspace.folder / "release"):
        if words := outdated(workspace, folder):
            print(f"{words}; made anew", file=sys.stderr)
            aside = folder.with_name(folder.name + ".partial")  # half of it must not pass for one of an older version
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(folder.replace(aside))


def write_release(workspace: Workspace) -> Path:
    """Write `release/` of a run, whole or not at all, and load it back.

    Weights are kept as the recipe's `release` says; on Garden the attribute classifier that scores pictures goes along.
    """
    from sta.training.stages import stage_names

    def fill(folder: Path) -> None:
        assemble(workspace).save_pretrained(folder)
        if CLASSIFIER in stage_names(workspace.recipe):
            shutil.copytree(workspace.final(CLASSIFIER) / CLASSIFIER, folder / CLASSIFIER)
        reduce(folder, IN[workspace.recipe.release.weights])
        write_atomically(folder / "recipe.yaml", dump_recipe(portable(workspace.recipe)).encode())
        write_json(folder / PARTS, parts_of(workspace))
        write_sums(folder)

    folder = build_folder(workspace.folder / "release", fill)
    verify(folder)
    return folder


def portable(recipe: Recipe) -> Recipe:
    """Return a recipe whose corpus names by their last parts the paths that make no other corpus wherever they lie."""
    settings = {key: getattr(recipe.corpus, key) for key in recipe.corpus.card_only}
    paths = {key: Path(value).name for key, value in settings.items() if value is not None and os.path.isabs(value)}
    return recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update=paths)})


def reduce(folder: Path, kept: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite all weights of a release as `kept` returns them; a frozen model's file is named after what it holds then.

    Raises:
        WeightsError: a weight is not finite; names the tensor.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        weights = load_file(path)
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise WeightsError(f"{path}: {name} is not finite; train again with a smaller lr")
        save_file(kept(weights), path, metadata={"format": "pt"})
    for path in sorted(folder.rglob(FROZEN_FILE.format("*"))):
        rename_frozen(path, folder)


def verify(folder: Path) -> None:
    """Check every file against SHA256SUMS; a WeightsError names one that is missing or changed."""
    sums = folder / SUMS
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder; name a release, such as runs/garden-mini/release")
    if not sums.exists():
        raise WeightsError(
            f"{folder}: not a release, it has no {SUMS}; `sta run RECIPE` writes one to runs/<name>/release"
        )
    fault = first_fault(folder)
    if fault is not None:
        path, what = fault
        where = {"missing": " from the release", "truncated or changed": " since the release was made"}.get(what, "")
        raise WeightsError(f"{path}: {what}{where}; copy the release again")


def load_release(folder: Path, trust_remote_code: bool = False) -> SpeechToImagePipeline:
    """Verify and load a release, to the GPU where there is one."""
    verify(folder)
    pipe = SpeechToImagePipeline.from_pretrained(folder, trust_remote_code)
    return pipe.to("cuda") if torch.cuda.is_available() else pipe
