"""What cannot be read of a corpus is set aside: each sample with its reason, and above a stated share the run stops.

Every shard that is prepared leaves the samples that it lost in `unreadable/<shard>.jsonl`; together they are
`unreadable.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sta.data.audio import read_audio
from sta.data.cache import write_atomically
from sta.data.checksums import file_hash
from sta.data.jsonlines import read_values
from sta.data.rows import Corpus, Row, payload, read_picture, write_shard
from sta.errors import AudioError, CorpusError

REPORT = "unreadable.jsonl"


@dataclass(frozen=True)
class Unreadable:
    """One entry of the report.

    Attributes:
        id: of the sample; None: the entry is of a torn shard.
        shard: the file that names the sample, with the line where it has lines.
        reason: one sentence.
        sha256: of the recording or picture, or the torn shard; None where it is not there.
        rows: how many rows are lost; None: nobody can tell.
    """

    id: str | None
    shard: str
    reason: str
    sha256: str | None
    rows: int | None = 1


#: A row and the file that names it, or what is known to be lost.
Found = tuple[Row, str] | Unreadable


def write_readable(found: Iterable[Found], number: int, folder: Path) -> int:
    """Write shard `number` of the rows that can be read, unless it is there; returns how many shards that is: 1."""
    path = folder / "shards" / f"{number:05d}.arrow"
    for part in ("shards", "unreadable"):
        (folder / part).mkdir(exist_ok=True)
    if not path.exists():
        write_shard(readable(found, folder / "unreadable" / f"{number:05d}.jsonl"), path)
    return 1


def readable(found: Iterable[Found], report: Path) -> Iterator[Row]:
    """The rows that can be read; at their end the others are in `report`, which is there only if there are any."""
    aside = []
    for item in found:
        entry = item if isinstance(item, Unreadable) else _check(*item)
        if entry is not None:
            aside.append(entry)
        elif not isinstance(item, Unreadable):
            yield item[0]
    report.unlink(missing_ok=True)
    if aside:
        write_atomically(report, "".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in aside).encode())


def _check(row: Row, shard: str) -> Unreadable | None:
    for column, read in (("audio", read_audio), ("image", read_picture)):
        source = payload(row[column])
        if source is None:
            return Unreadable(row["id"], shard, f"the sample has no {column}", None)
        try:
            read(source)
        except (AudioError, CorpusError) as error:
            return Unreadable(row["id"], shard, str(error), hash_of(source))
    if not row["text"].strip():
        return Unreadable(row["id"], shard, "the caption is empty", hash_of(payload(row["audio"])))
    return None


def hash_of(source: bytes | str | os.PathLike[str] | None) -> str | None:
    """SHA-256 of bytes or of a file, hex; None if it cannot be read."""
    if source is None:
        return None
    try:
        return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else file_hash(source)
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return None


def read_report(folder: Path) -> list[Unreadable]:
    """The entries of a folder's report; none where there is no report."""
    return [Unreadable(**json.loads(line)) for line in read_values(folder / REPORT)]


def settle(folder: Path, limit: float, beside: Path) -> None:
    """Join the shards' reports, and go no further if too much was lost.

    Args:
        limit: the largest share of samples that may be lost.
        beside: where the report goes, instead of the folder, if the run stops.

    Raises:
        CorpusError: more than `limit` of the samples cannot be read; the folder is gone.
    """
    parts = sorted((folder / "unreadable").glob("*.jsonl"))
    beside.unlink(missing_ok=True)
    if not parts:
        return
    write_atomically(folder / REPORT, b"".join(part.read_bytes() for part in parts))
    corpus, entries = Corpus(folder), read_report(folder)
    lost = rows_lost(entries, len(corpus), corpus.shards)
    total = lost + len(corpus)
    if lost <= limit * total:
        return
    (folder / REPORT).replace(beside)
    shutil.rmtree(folder)
    first = entries[0]
    raise CorpusError(
        f"{lost} of {total} samples cannot be read, more than corpus.max_unreadable {limit:g} allows: {beside} lists "
        f"them, the first is {first.id or first.shard} ({first.reason.rstrip('.')}); mend them, or raise "
        "corpus.max_unreadable"
    )


def rows_lost(entries: Sequence[Unreadable], kept: int, shards: int) -> int:
    """How many samples the entries are; a shard that nobody can count is as large as the others are on average."""
    known = sum(entry.rows for entry in entries if entry.rows is not None)
    uncounted = sum(entry.rows is None for entry in entries)
    average = (kept + known) / max(1, shards - uncounted)
    return known + uncounted * max(1, round(average))
