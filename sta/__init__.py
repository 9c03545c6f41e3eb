"""Speak the Art: direct speech-to-image generation in any language.

Importing the package loads nothing heavy; the names below are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sta.config.recipe import load_recipe
    from sta.inference.pipeline import SpeechToImagePipeline

__version__ = "0.1.0"
__all__ = ["SpeechToImagePipeline", "load_recipe"]

_HOMES = {"SpeechToImagePipeline": "sta.inference.pipeline", "load_recipe": "sta.config.recipe"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sta' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
