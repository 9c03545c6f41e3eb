"""Locks: one process at a time, until it lets go or is gone."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sta.data import lock
from sta.data.lock import Lock
from tests.processes import HOLD, LIMIT, said_by, started

HOLD_AND_FORK = "import os\n" + HOLD.replace("print(", "os.fork() or (time.sleep(5), os._exit(0))\nprint(")


@pytest.mark.parametrize("script", [HOLD, HOLD_AND_FORK])
def test_a_killed_process_holds_nothing(tmp_path: Path, script: str) -> None:
    """Nor do those that it has forked, such as workers that load data."""
    with started(script, tmp_path / "made") as other:
        assert said_by(other) == "held\n"
        mine = Lock(tmp_path / "made")
        assert not mine.take()
        other.kill()
        assert other.wait(LIMIT) != 0
        assert mine.take()
        mine.release()
    assert list(tmp_path.iterdir()) == []


def test_what_is_let_go_is_free_and_leaves_nothing(tmp_path: Path) -> None:
    with Lock(tmp_path / "folder" / "made") as mine:
        assert mine.is_made() is False
        assert [path.name for path in (tmp_path / "folder").iterdir()] == ["made.lock"]
        script = HOLD.replace("assert Lock", "assert not Lock")
        with started(script, tmp_path / "folder" / "made") as other:
            assert said_by(other) == "held\n", "it was taken twice"
    assert list((tmp_path / "folder").iterdir()) == []
    with started(HOLD, tmp_path / "folder" / "made") as other:
        assert said_by(other) == "held\n"


def test_a_file_that_the_one_before_removes_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes between the opening and the locking, as where another process has just been done."""
    mine, whole = Lock(tmp_path / "made"), lock.fcntl.lockf
    removed: list[None] = []

    def late(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(mine.path.unlink())  # type: ignore[func-returns-value]
        whole(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "lockf", late)
    assert mine.take()
    assert mine.path.exists()
    mine.release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_is_always_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def none(descriptor: int, how: int) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    assert Lock(tmp_path / "made").take()
    monkeypatch.setattr(lock, "fcntl", None)
    with Lock(tmp_path / "made") as mine:
        assert mine.is_made() is False


def test_what_is_there_takes_no_lock(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    assert Lock(tmp_path / "made").is_made() is True
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
