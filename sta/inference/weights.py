"""Where a release lies: in a folder, with the package, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sta.errors import WeightsError, first_line

SHIPPED = Path(__file__).parents[1] / "pretrained"  # releases that come with the package, by name
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")  # what a download takes


def packaged(path: Path) -> Path:
    """The release that ships under a name such as `garden`, where no folder of that name is here; else the path."""
    shipped = SHIPPED / path
    return shipped if not path.is_dir() and shipped.is_dir() else path


def local(name_or_path: str, **download: Any) -> Path:
    """The release's folder: the path itself, what ships by that name, or where the Hub's files were downloaded to.

    Args:
        download: how, as of huggingface_hub's `snapshot_download`.
    """
    folder = packaged(Path(name_or_path))
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name_or_path, **download))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"{name_or_path}: no such release folder, and no such name on the Hub that this machine can reach "
            f"({first_line(error)})"
        ) from error
