"""Ranks that fill a folder together: what one does is done for all, and what goes wrong on one goes wrong on all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sta.distributed.sharding import BatchShard
from sta.distributed.team import Team
from sta.errors import CorpusError, StaError
from tests.processes import LIMIT, said_by, started, wait_for
from tests.touching import kill, touch


def together(world: int, work: Callable[[Team], object]) -> list[Any]:
    """What `work` gives, or raises, on each rank of a launch; the ranks are threads."""
    barrier, said = threading.Barrier(world, timeout=20), dict[int, object]()

    def team(rank: int) -> Team:
        def gather(mine: object) -> list[object]:
            said[rank] = mine
            barrier.wait()
            every = [said[r] for r in range(world)]
            barrier.wait()
            return every

        return Team(BatchShard(rank, world), gather=gather)

    def attempt(rank: int) -> object:
        try:
            return work(team(rank))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(attempt, range(world)))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_first_joins_what_all_have_filled(tmp_path: Path, world: int) -> None:
    def join(partial: Path) -> None:
        names = sorted(path.name for path in partial.iterdir())
        (partial / "all").write_text(" ".join(names))

    def work(team: Team) -> Path:
        return team.build(tmp_path / "made", lambda p: (p / str(team.shard.rank)).touch(), join)

    assert together(world, work) == [tmp_path / "made"] * world
    assert (tmp_path / "made" / "all").read_text() == " ".join(map(str, range(world)))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert together(world, work) == [tmp_path / "made"] * world, "it is not made again"


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_on_one_rank_is_the_error_of_all(tmp_path: Path, bad: int) -> None:
    def work(team: Team) -> Path:
        def fill(partial: Path) -> None:
            (partial / str(team.shard.rank)).touch()
            if team.shard.rank == bad:
                raise CorpusError("column 'audio' is missing")

        return team.build(tmp_path / "made", fill)

    errors = together(2, work)
    assert all(isinstance(error, CorpusError) for error in errors)
    assert {str(error) for error in errors} == {"column 'audio' is missing"}
    assert [path.name for path in tmp_path.iterdir()] == ["made.partial"], "what was filled is there for the next time"


def test_an_error_in_joining_is_the_error_of_all(tmp_path: Path) -> None:
    def full(partial: Path) -> None:
        raise OSError(28, "No space left on device")

    errors = together(2, lambda team: team.build(tmp_path / "made", lambda partial: None, full))
    assert {str(error) for error in errors} == {
        f"{tmp_path / 'made'}: cannot be written (No space left on device); free space or choose another --out"
    }
    assert list(tmp_path.iterdir()) == [], "nothing was filled"


def test_an_error_that_cannot_be_sent_is_sent_in_words() -> None:
    class Odd(Exception):
        """Of a class that no other process could find."""

    def work(team: Team) -> None:
        with team.agreed():
            if team.shard.rank == 1:
                raise Odd("so odd")

    first, second = together(2, work)
    assert isinstance(second, Odd)
    assert isinstance(first, StaError)
    assert str(first) == "Odd: so odd"


def test_a_worker_that_is_killed_is_one_sentence() -> None:
    with pytest.raises(StaError, match=r"^touching: one of \d+ processes was killed, as .* memory is full") as error:
        Team().each("touching", "files", 1, kill, [()])
    assert "\n" not in str(error.value)


# ---- two launches -------------------------------------------------------------------------------------------

SLOWLY = """
import sys, time
from pathlib import Path
from sta.distributed.team import Team

def fill(partial):
    with (partial / "filled").open("a") as file:
        file.write(sys.argv[2])
    (Path(sys.argv[1]) / sys.argv[2]).touch()
    while not (Path(sys.argv[1]) / "go").exists():
        time.sleep(0.05)

Team().build(Path(sys.argv[1]) / "made", fill)
"""


def test_a_second_launch_waits_for_what_the_first_makes(tmp_path: Path) -> None:
    with started(SLOWLY, tmp_path, "a") as first:
        wait_for((tmp_path / "a").exists)
        with started(SLOWLY, tmp_path, "b") as second:
            said = said_by(second)
            (tmp_path / "go").touch()
            assert (first.wait(LIMIT), second.wait(LIMIT)) == (0, 0)
    assert said == f"sta: {tmp_path / 'made'}: another process is making it; waiting until it is there\n"
    assert (tmp_path / "made" / "filled").read_text() == "a"
    assert {path.name for path in tmp_path.iterdir()} == {"made", "a", "go"}


@pytest.mark.parametrize("world", [1, 2])
def test_what_a_killed_launch_was_making_is_made_by_the_one_that_waits(
    tmp_path: Path, world: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with started(SLOWLY, tmp_path, "a") as first:
        wait_for((tmp_path / "a").exists)
        killer = threading.Timer(2, first.kill)
        killer.start()
        begun = time.monotonic()
        made = together(world, lambda team: team.build(tmp_path / "made", lambda partial: None))
        assert time.monotonic() - begun > 1
    assert made == [tmp_path / "made"] * world
    assert (tmp_path / "made" / "filled").read_text() == "a", "what it had filled is kept"
    assert {path.name for path in tmp_path.iterdir()} == {"made", "a"}
    assert capsys.readouterr().err.count("another process is making it") == 1


def test_each_rank_does_its_share_of_the_tasks(tmp_path: Path) -> None:
    tasks = [(tmp_path, number) for number in range(5)]
    Team(BatchShard(1, 2)).each("touching", "files", 5, touch, tasks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-1", "3-1"]
