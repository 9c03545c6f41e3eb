"""Work that the processes of a launch share out comes out as if one had done it, and one of them has the last word."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sta.cli.main import main
from sta.distributed import ranks
from sta.errors import AudioError

WORLD = 2


def _rank(rank: int, world: int, port: int, work: Callable[[], Any], folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    (Path(folder) / str(rank)).write_text(json.dumps(work()))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(work: Callable[[], Any], folder: Path) -> list[Any]:
    """What `work` gives on each of two ranks that talk to each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (WORLD, port, work, str(folder)), nprocs=WORLD)
    return [json.loads((folder / str(rank)).read_text()) for rank in range(WORLD)]


def _seven() -> Any:
    done: list[int] = []

    def square(item: int) -> int:
        done.append(item)
        return item**2

    return {
        "made": list(ranks.parallel_map(range(7), square)),
        "done": done,
        "none": list(ranks.parallel_map([], square)),
    }


def test_each_rank_does_its_share_and_knows_all(tmp_path: Path) -> None:
    first, second = on_ranks(_seven, tmp_path)
    assert first["made"] == second["made"] == _seven()["made"] == [n**2 for n in range(7)]
    assert (first["done"], second["done"]) == ([0, 2, 4, 6], [1, 3, 5])
    assert first["none"] == second["none"] == []
    assert _seven()["done"] == list(range(7)), "alone, one does everything"


def _refuse(item: int) -> int:
    if item == 3:
        raise AudioError("the fourth cannot be read")
    return item


def _caught() -> Any:
    made = []
    try:
        for item in ranks.parallel_map(range(8), _refuse):
            made.append(item)
    except AudioError as error:
        return [made, str(error), list(ranks.parallel_map("ab", str.upper))]


def test_an_error_of_one_rank_is_one_of_all(tmp_path: Path) -> None:
    """At the end of its round, and what comes after is in step again."""
    assert on_ranks(_caught, tmp_path) == [[[0, 1], "the fourth cannot be read", ["A", "B"]]] * WORLD


def _by_main() -> Any:
    where = ranks.run_on_main(ranks.rank)
    try:
        ranks.run_on_main(lambda: _refuse(3))
    except AudioError as error:
        return [where, str(error)]


def test_what_the_main_rank_finds_holds_everywhere(tmp_path: Path) -> None:
    assert on_ranks(_by_main, tmp_path) == [[0, "the fourth cannot be read"]] * WORLD
    assert ranks.run_on_main(lambda: 5) == 5


def _last_words() -> Any:
    return [ranks.claim_error_report() for _ in range(2)]


def test_one_rank_has_the_last_word(tmp_path: Path) -> None:
    said = on_ranks(_last_words, tmp_path)
    assert sorted(word for words in said for word in words) == [False, False, False, True]


@pytest.mark.parametrize(("rank", "expected"), [("0", True), ("1", False)])
def test_before_they_have_joined_the_main_rank_has_it(
    rank: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert ranks.claim_error_report() is ranks.is_main() is expected


def test_only_an_error_of_the_network_says_that_another_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:14")
    assert not ranks.is_peer_lost(closed), "there is no other"
    monkeypatch.setattr(ranks, "_joined", lambda: True)
    assert ranks.is_peer_lost(closed)
    assert not ranks.is_peer_lost(RuntimeError("[enforce fail at gloo/allgather.cc:20] shapes do not fit"))


def test_what_is_not_shared_out_is_done_by_the_main_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["language", "check", "nowhere"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["speak"])
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main(["language", "check", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("sta: ")
