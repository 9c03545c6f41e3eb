"""Corpora of Parquet shards, whole and damaged."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sta.data.audio import wav_bytes

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "brown")
FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def sample(number: int, **changes: Any) -> dict[str, Any]:
    """A tone, a noisy picture that two samples share, and a caption, in the layout of Hugging Face."""
    picture, wave = number // 2, 0.3 * np.sin(np.arange(3200 + 1600 * (number % 5)) / (number % 50 + 2))
    pixels = np.random.default_rng(picture).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    colours = COLOURS[number % 7], COLOURS[number // 7 % 7]
    split = {0: "validation", 1: "test"}.get(picture % 10, "train")
    return {
        "id": f"s{number:04d}", "image": {"bytes": png(pixels), "path": f"{picture}.png"},
        "audio": {"bytes": wav_bytes(wave.astype(np.float32)), "path": None},
        "text": "a {} bird with {} wings".format(*colours), "language": "en", "speaker": None, "mood": None,
        "label": number % 3, "image_id": f"p{picture:04d}", "split": split, **changes,
    }  # fmt: skip


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], group: int = 10, **types: pa.DataType) -> Path:
    """Rows as one shard with row groups of `group` rows; audio and image are structs unless `types` says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        kind = types.get(name, FILE if name in ("audio", "image") else None)
        columns[name] = pa.array(values, kind)
    pq.write_table(pa.table(columns), path, row_group_size=group, write_page_checksum=True)
    return path


def cut(path: Path) -> None:
    """Leave two thirds of a file, as a copy that was broken off does."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def scratch(path: Path, group: int, column: str = "audio.bytes") -> None:
    """Overwrite some bytes in the middle of one column of one row group."""
    with pq.ParquetFile(path) as file:
        row_group = file.metadata.row_group(group)
        parts = [row_group.column(number) for number in range(row_group.num_columns)]
    part = next(part for part in parts if part.path_in_schema == column)
    data = bytearray(path.read_bytes())
    middle = (part.dictionary_page_offset or part.data_page_offset) + part.total_compressed_size // 2
    data[middle : middle + 16] = bytes(255 - byte for byte in data[middle : middle + 16])
    path.write_bytes(data)
