"""Speak the Art: direct speech-to-image generation in any language."""

__version__ = "0.1.0"
