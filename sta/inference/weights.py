"""Where a release lies: in a folder, with the package, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sta.errors import WeightsError

SHIPPED = Path(__file__).parents[1] / "pretrained"  # releases that come with the package, by name
DEFAULT = "garden"  # of these, the one that is drawn with where no other is named
GARDEN = "garden"  # of these, the one that knows attributes and moods, and reads
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")  # what a download takes


def shipped() -> list[Path]:
    """Return the folders of the releases that ship, the default first."""
    return sorted((path.parent for path in SHIPPED.glob("*/SHA256SUMS")), key=lambda path: path.name != DEFAULT)


def shipped_with(language: str) -> list[str]:
    """Return the names of the releases that ship and know a language."""
    return [path.name for path in shipped() if (path / "languages" / language / "language.json").exists()]


def classifier_of(release: Path) -> Path | None:
    """Return the folder of a release's attribute classifier, which version 0.1 called a reader; None without one."""
    return next((release / name for name in ("classifier", "reader") if (release / name).is_dir()), None)


def packaged(path: Path) -> Path:
    """Return the release that ships under a name such as `garden`, where no such folder is here; else the path."""
    shipped = SHIPPED / path
    return shipped if not path.is_dir() and shipped.is_dir() else path


def local(name_or_path: str, **download: Any) -> Path:
    """Return a release's folder: the path itself, what ships by that name, or where `owner/name` of the Hub lies then.

    `download` says how, as of huggingface_hub's `snapshot_download`.
    """
    folder = packaged(Path(name_or_path))
    if folder.is_dir():
        return folder
    if name_or_path.count("/") != 1 or name_or_path[0] in "/.~":
        raise WeightsError(
            f"{name_or_path}: no such folder; name one, such as runs/garden-mini/release, or owner/name on the Hub"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name_or_path, **download))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise WeightsError(f"{name_or_path}: no such folder, and no such name on the Hub") from error
    except OSError as error:  # also of HTTP, and of what is not in the cache
        raise WeightsError(
            f"{name_or_path}: no such folder, and the Hub, where it may be a name, cannot be reached or refuses"
        ) from error
