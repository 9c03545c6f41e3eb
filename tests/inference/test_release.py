"""What becomes of a run's release when its stages are done again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sta.errors import Interrupted
from sta.inference import release


@pytest.mark.parametrize("left", [False, True])
def test_a_stop_leaves_no_half_of_what_is_outdated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bool) -> None:
    """Half of a release, its record of the stages gone, would pass for one that an older version made."""
    folder, workspace = tmp_path / "release", SimpleNamespace(folder=tmp_path)
    folder.mkdir()
    (folder / "model_index.json").touch()
    (folder / release.PARTS).write_text(json.dumps({"decoder": "old"}))
    if left:
        (tmp_path / "release.partial" / "decoder").mkdir(parents=True)
    monkeypatch.setattr(release, "parts_of", lambda workspace: {"decoder": "new"})
    remove = shutil.rmtree

    def stopped(path: Path, **how: Any) -> None:
        if (path / release.PARTS).exists():
            (path / release.PARTS).unlink()
            raise Interrupted("stopped")
        remove(path, **how)

    monkeypatch.setattr(shutil, "rmtree", stopped)
    run: Any = workspace
    with pytest.raises(Interrupted):
        release.remove_outdated(run)
    assert not folder.exists()
    release.remove_outdated(run)


def test_what_is_outdated_is_removed_on_every_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, made in (("evaluation", "new"), ("evaluation-people", "old"), ("evaluation.old", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / release.PARTS).write_text(json.dumps({"decoder": made}))
    monkeypatch.setattr(release, "parts_of", lambda workspace: {"decoder": "new"})
    run: Any = SimpleNamespace(folder=tmp_path)
    release.remove_outdated(run)
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation", "evaluation.old"}
