"""One self-contained page of a run, and a contact sheet of its pictures."""

from __future__ import annotations

import base64
import io
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image, ImageDraw, ImageFont

from sta.data.cache import write_atomically
from sta.metrics.rows import METRICS, SPLITS, SYSTEMS, Report, Row, known_first

LADDER = ("attributes", "colours", "exact", "mood")


@dataclass(frozen=True)
class Example:
    """One utterance to look at: what was said and what was drawn.

    `heard` says of which split, or in whose voice. `audio` is a WAV file's bytes. `read[i]` is what the attribute
    reader saw in `drawn[i]`; it may hold `mood`, and `read` may be empty where nothing was read.
    """

    caption: str
    language: str
    direction: str
    mood: str
    heard: str
    audio: bytes | None
    truth: Image.Image | None
    drawn: Sequence[Image.Image]
    said: Mapping[str, str]
    read: Sequence[Mapping[str, str]]

    def __post_init__(self) -> None:
        if self.read and len(self.read) != len(self.drawn):
            raise ValueError(f"{len(self.drawn)} drawn pictures but {len(self.read)} readings of them")

    @property
    def gloss(self) -> str:
        """What was said, in English: `bird, head red, wings blue`."""
        parts = [v if s == "kind" else f"{s} {v}" for s, v in self.said.items()]
        return ", ".join(parts) or self.caption


def write_page(path: Path | str, report: Report, examples: Sequence[Example], title: str) -> None:
    """Write one HTML file that needs no network: numbers, tables, and pictures with their marks."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = templates.get_template("page.html").render(
        title=title,
        meta=[(key, _plain(value)) for key, value in report.meta.items()],
        cards=_cards(report.rows),
        ladder=_ladder(report.rows),
        languages=[_language(name, report.rows) for name in dict.fromkeys(r.language for r in report.rows)],
        gallery=_gallery(examples),
    )
    write_atomically(Path(path), page.encode())


def _plain(value: Any) -> str:
    """A meta value as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _headline(rows: Iterable[Row], metric: str, system: str) -> list[Row]:
    """The undisturbed rows of a metric and system on the hardest split that has any."""
    found = [r for r in rows if (r.metric, r.system, r.condition) == (metric, system, "clean")]
    splits = known_first((r.split for r in found), reversed(SPLITS))
    return [r for r in found if r.split == splits[0]]


def _mean_cell(rows: Sequence[Row]) -> dict[str, Any]:
    """The mean over languages of a headline's rows, as text and as the length of a bar."""
    metric = METRICS[rows[0].metric]
    value = float(np.mean([r.value for r in rows]))
    chance = float(np.mean([r.chance for r in rows]))
    return {
        "value": metric.text(value),
        "chance": metric.text(chance) if math.isfinite(chance) else "",
        "share": _bar(value, metric.unit),
        "chance_share": _bar(chance, metric.unit),
        "split": rows[0].split,
    }


def _bar(value: float, unit: str) -> float | None:
    """Length of a bar in percent; None for a number without a natural end."""
    return round(100 * min(1.0, max(0.0, value)), 1) if unit == "%" and math.isfinite(value) else None


def _cards(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The summary: each metric of the system itself, on its hardest split."""
    cards = []
    for name, metric in METRICS.items():
        headline = _headline(rows, name, "speech")
        if headline:
            note = f"{headline[0].split}, {', '.join(dict.fromkeys(r.language for r in headline))}"
            cards.append({"metric": name, "meaning": metric.meaning, "unit": metric.unit, "note": note})
            cards[-1] |= _mean_cell(headline)
    return cards


def _ladder(rows: Sequence[Row]) -> dict[str, Any]:
    """The table from speech to its bounds and floors: systems by the metrics of `LADDER`."""
    metrics = [m for m in LADDER if any(r.metric == m for r in rows)]
    systems = []
    for name in known_first((r.system for r in rows), SYSTEMS):
        headlines = [_headline(rows, metric, name) for metric in metrics]
        if any(headlines):
            cells = [_mean_cell(found) if found else None for found in headlines]
            systems.append({"name": name, "meaning": SYSTEMS.get(name, ""), "cells": cells})
    return {"metrics": metrics, "systems": systems}


def _language(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """One language's tables, the system on undisturbed speech first."""
    own = [r for r in rows if r.language == name]
    systems = known_first((r.system for r in own), SYSTEMS)
    pairs = [(s, c) for s in systems for c in known_first((r.condition for r in own if r.system == s), ("clean",))]
    blocks = [_block(f"{s}, {c}", [r for r in own if (r.system, r.condition) == (s, c)]) for s, c in pairs]
    return {"name": name, "first": blocks[0], "rest": blocks[1:]}


def _block(caption: str, rows: Sequence[Row]) -> dict[str, Any]:
    """One table of metrics by splits."""
    splits = known_first((r.split for r in rows), SPLITS)
    cells = {(r.metric, r.split): _result(r) for r in rows}
    lines = []
    for name in known_first((r.metric for r in rows), METRICS):
        metric = METRICS[name]
        found = [cells.get((name, split)) for split in splits]
        lines.append({"metric": f"{name} {metric.unit}".strip(), "meaning": metric.meaning, "rows": found})
    return {"caption": caption, "splits": splits, "lines": lines}


def _result(row: Row) -> dict[str, Any]:
    """One cell of a results table."""
    chance = METRICS[row.metric].text(row.chance) if math.isfinite(row.chance) else ""
    return {"text": row.text, "chance": chance, "n": row.n}


def _gallery(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The examples grouped by language, in the order they come."""
    languages = dict.fromkeys(e.language for e in examples)
    return [{"language": x, "examples": [_shown(e) for e in examples if e.language == x]} for x in languages]


def _shown(example: Example) -> dict[str, Any]:
    """One example with its pictures and sound as data addresses."""
    read: Sequence[Mapping[str, str] | None] = example.read or [None] * len(example.drawn)
    return {
        "caption": example.caption,
        "language": example.language,
        "direction": example.direction,
        "mood": example.mood,
        "heard": example.heard,
        "gloss": example.gloss,
        "audio": _data_address("audio/wav", example.audio) if example.audio else "",
        "truth": _data_address("image/png", _png(example.truth)) if example.truth else "",
        "drawn": [_drawn(example, picture, seen) for picture, seen in zip(example.drawn, read, strict=True)],
    }


def _drawn(example: Example, picture: Image.Image, seen: Mapping[str, str] | None) -> dict[str, Any]:
    """One generated picture with a chip for each thing said, and the mood if it was read."""
    wanted = dict(example.said) | ({"mood": example.mood} if seen and "mood" in seen else {})
    read = {s: seen.get(s) for s in wanted} if seen is not None else {}
    chips = [{"slot": s, "said": wanted[s], "read": read[s], "right": read[s] == wanted[s]} for s in read]
    score = f"{sum(bool(c['right']) for c in chips)} of {len(chips)} right"
    alt = f"Drawn picture for: {example.gloss}" + (f"; {score}" if chips else "")
    return {"png": _data_address("image/png", _png(picture)), "chips": chips, "score": score, "alt": alt}


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_grid(path: Path | str, examples: Sequence[Example], columns: int = 2, side: int = 128) -> None:
    """Write one PNG: per example the real picture, those drawn for it, and a short caption below.

    Pillow's own font is Latin, so captions in other scripts are given by their English gloss.
    """
    if not examples:
        raise ValueError("no examples to show")
    font = ImageFont.load_default(13)
    width = max(len(e.drawn) + (e.truth is not None) for e in examples) * (side + 6) + 18
    height = side + 64
    sheet = Image.new(
        "RGB", (width * min(columns, len(examples)), height * math.ceil(len(examples) / columns)), "white"
    )
    for index, example in enumerate(examples):
        corner = (index % columns * width + 12, index // columns * height + 10)
        _paste_example(sheet, example, corner, side, font, width - 18)
    write_atomically(Path(path), _png(sheet))


def _paste_example(
    sheet: Image.Image, example: Example, corner: tuple[int, int], side: int, font: Any, width: int
) -> None:
    """Draw one example's pictures, the real one framed, and three lines below them."""
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    pictures = ([example.truth] if example.truth else []) + list(example.drawn)
    for place, picture in enumerate(pictures):
        shown = picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(shown, (left + place * (side + 6), top))
    if example.truth:
        draw.rectangle((left - 2, top - 2, left + side + 1, top + side + 1), outline="black", width=2)
    is_latin = all(ord(letter) < 0x250 for letter in example.caption)
    text = example.caption if is_latin else example.gloss
    characters = max(12, int(width / font.getlength("n")))
    lines = textwrap.wrap(text, characters, max_lines=2, placeholder=" …")
    label = f"{example.language}, {example.mood}, {example.heard}" + (", framed: real" if example.truth else "")
    draw.multiline_text((left, top + side + 4), "\n".join([label, *lines]), fill="black", font=font, spacing=2)
