"""Where published weights lie: on disk, in a folder of the user's, or on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

#: Environment variable: a folder that holds published models by their Hub names, such as `openai/whisper-base`.
MODELS = "STA_MODELS"


def locate(name: str) -> str:
    """Return where a published model is: the path `name` itself, `$STA_MODELS/<name>`, or its name on the Hub.

    Args:
        name: a path, or an id of the Hub such as `intfloat/multilingual-e5-small`.
    """
    if Path(name).exists() or MODELS not in os.environ:
        return name
    own = Path(os.environ[MODELS]).expanduser() / name
    return str(own) if own.exists() else name
