"""What this machine can do, for `sta doctor`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from sta.config import yamlfile
from sta.config.cards import LanguageCard, load_language
from sta.config.variants import known_variants
from sta.data.corpora.garden.prosody import other_speakers
from sta.data.synthesis.base import ENGINES, Synthesiser, synthesiser
from sta.data.synthesis.espeak import speakers
from sta.errors import StaError, VoiceError
from sta.training.runtime import has_fast_bf16

PACKAGES = ("torch", "transformers", "open_clip_torch", "diffusers", "accelerate", "deepspeed", "datasets", "evaluate")
GIB = 2**30


def report() -> Iterator[str]:
    """Return one line per finding."""
    yield "packages: " + ", ".join(f"{p} {_version(p)}" for p in PACKAGES)
    yield from _devices()
    yield from _voices()
    yield from _engines()
    free = shutil.disk_usage(Path.cwd()).free / GIB
    yield f"disk: {free:.0f} GiB free here" + ("" if free > 3 else "; garden-mini takes 2")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _devices() -> Iterator[str]:
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0))
    yield f"processor: {cores} cores, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f} GiB"
    for gpu in gpus:
        yield f"gpu: {gpu.name}, {gpu.total_memory / GIB:.0f} GiB"
    yield f"precision: {'bf16' if has_fast_bf16() else 'fp32 (no bfloat16 instructions)'}"
    if gpus or cores > 1:
        yield f"launch: accelerate launch --config_file {launch_options(len(gpus))} -m sta run RECIPE"
    compiler = shutil.which("c++") or shutil.which("g++")
    yield f"deepspeed: {'compiler ' + compiler if compiler else 'no C++ compiler, which its CPU kernels need'}"


def launch_options(gpus: int) -> str:
    """Return the launch file of a machine with so many GPUs; those for several are of eight, and are told how many."""
    name = {0: "cpu-2", 1: "gpu-1"}.get(gpus, "gpu-8")
    file = yamlfile.packaged("recipes") / "accelerate" / f"{name}.yaml"
    return f"{file}" if gpus in (0, 1, 8) else f"{file} --num_processes {gpus}"


def _voices() -> Iterator[str]:
    for code in yamlfile.names("languages"):
        try:
            card = load_language(code)
            synthesiser(card.speech.synthesiser)
            train, test = speakers(card.speech.voices, card.speech.test_voices)
            yield f"voices: {card.name} ({code}), {len(train)} to train and {len(test)} to test"
            if card.speech.other_engines:
                yield f"other voices: {card.name} ({code}), {_other_voices(card)}"
        except StaError as error:
            yield f"voices: {code}: {error}"


def _engines() -> Iterator[str]:
    """Say which synthesisers are here, and what brings the others."""
    for name in known_variants(ENGINES, Synthesiser):
        try:
            yield f"engine: {name}, {synthesiser(name).version()}"
        except VoiceError as error:
            yield f"engine: {name} is missing: {error}"


def _other_voices(card: LanguageCard) -> str:
    """Say which voices of other engines a recipe may train on, or which of them is missing."""
    try:
        return f"{len(other_speakers(card))} to train, of {', '.join(card.speech.other_engines)}"
    except VoiceError as error:
        return f"where a recipe asks for them (corpus.other_engines): {error}"
