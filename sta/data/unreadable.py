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
from sta.data.rows import Corpus, Sample, payload, read_picture
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


#: A row, or what is known to be lost.
Found = Sample | Unreadable


def readable(found: Iterable[Found], report: Path, trusted: bool = False) -> Iterator[Sample]:
    """Yield the rows that can be read, or are `trusted` to be; `report` lists the others at the end, if any."""
    aside = []
    for item in found:
        entry = item if isinstance(item, Unreadable) else None if trusted else _check(item)
        if entry is not None:
            aside.append(entry)
        elif isinstance(item, Sample):
            yield item
    report.unlink(missing_ok=True)
    if aside:
        write_atomically(report, "".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in aside).encode())


def _check(sample: Sample) -> Unreadable | None:
    row = sample.row
    if payload(row["image"]) is None:
        return Unreadable(row["id"], sample.origin, "the sample has no image", None)
    for column, read in (("audio", read_audio), ("image", read_picture)):
        source = payload(row.get(column))
        try:
            if source is not None:
                read(source)
        except (AudioError, CorpusError) as error:
            return Unreadable(row["id"], sample.origin, str(error), hash_of(source))
    return None


def hash_of(source: bytes | str | os.PathLike[str] | None) -> str | None:
    """Return the SHA-256 of bytes or of a file, hex; None if it cannot be read."""
    if source is None:
        return None
    try:
        return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else file_hash(source)
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return None


def read_report(folder: Path, name: str = REPORT) -> list[Unreadable]:
    """Return the entries of a folder's report; none where there is no report."""
    return [Unreadable(**json.loads(line)) for line in read_values(folder / name)]


def settle(folder: Path, limits: Sequence[tuple[int, float]], beside: Path) -> None:
    """Join the shards' reports, and remove the folder with a CorpusError if too much was lost.

    Args:
        limits: how many shards a part of the corpus has, and the largest share of its samples that may be lost.
        beside: where the report goes, instead of the folder, if the run stops.
    """
    reports = sorted((folder / "unreadable").glob("*.jsonl"))
    beside.unlink(missing_ok=True)
    if not reports:
        return
    write_atomically(folder / REPORT, b"".join(report.read_bytes() for report in reports))
    shard_of, first = Corpus(folder).shard_of, 0
    for shards, limit in limits:
        last = first + shards
        mine = [report.name for report in reports if first <= int(report.stem) < last]
        entries = [entry for name in mine for entry in read_report(folder / "unreadable", name)]
        kept = int(((shard_of >= first) & (shard_of < last)).sum())
        lost = rows_lost(entries, kept, shards)
        if lost > limit * (lost + kept):
            (folder / REPORT).replace(beside)
            shutil.rmtree(folder)
            one = entries[0]
            raise CorpusError(
                f"{lost} of {lost + kept} samples cannot be read, more than corpus.max_unreadable {limit:g} allows: "
                f"{beside} lists them, the first is {one.id or one.shard} ({one.reason.rstrip('.')}); mend them, or "
                "raise corpus.max_unreadable"
            )
        first = last


def rows_lost(entries: Sequence[Unreadable], kept: int, shards: int) -> int:
    """Count the samples that the entries are; one that nobody can count is as large as the others are on average."""
    known = sum(entry.rows for entry in entries if entry.rows is not None)
    uncounted = sum(entry.rows is None for entry in entries)
    average = (kept + known) / max(1, shards - uncounted)
    return known + uncounted * max(1, round(average))
