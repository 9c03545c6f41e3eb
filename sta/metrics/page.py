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
from sta.metrics.rows import MEAN, METRICS, SPLITS, SYSTEMS, Report, Row, by_condition, known_first, titled

LADDER = (
    *("attributes", "colours", "exact", "mood"),
    *("speech_top1", "r10_speech_to_text", "concept_top1", "concept_top5", "judge_top1", "style", "judge_style"),
)


@dataclass(frozen=True)
class Example:
    """One utterance to look at, and the pictures drawn for it.

    `source` names its split, or the voice; `release` what drew it, where a page has several. `audio` is a WAV file's
    bytes. `attributes` are those of the caption, and `predicted[i]` those that the classifier sees in `drawn[i]`, its
    mood too; empty where nothing was classified.
    """

    caption: str
    language: str
    direction: str
    mood: str
    source: str
    audio: bytes | None
    truth: Image.Image | None
    drawn: Sequence[Image.Image]
    attributes: Mapping[str, str]
    predicted: Sequence[Mapping[str, str]]
    release: str = ""

    def __post_init__(self) -> None:
        if self.predicted and len(self.predicted) != len(self.drawn):
            raise ValueError(f"{len(self.drawn)} drawn pictures but {len(self.predicted)} predictions for them")

    @property
    def section(self) -> str:
        """The part of a page that it stands in."""
        return f"{self.release}, {self.language}" if self.release else self.language

    @property
    def gloss(self) -> str:
        """The caption's attributes in English: `bird, head red, wings blue`."""
        parts = [v if s == "kind" else f"{s} {v}" for s, v in self.attributes.items()]
        return ", ".join(parts) or self.caption

    def chips(self, number: int) -> list[dict[str, Any]]:
        """Compare what was predicted for a drawn picture with each attribute of the caption, and the mood."""
        seen = self.predicted[number] if self.predicted else {}
        wanted = {**self.attributes, **({"mood": self.mood} if "mood" in seen else {})} if self.predicted else {}
        return [{"slot": s, "value": v, "seen": seen.get(s), "right": seen.get(s) == v} for s, v in wanted.items()]


def write_page(path: Path | str, report: Report, examples: Sequence[Example], title: str) -> None:
    """Write one HTML file that needs no network: numbers, tables, and pictures with their scores."""
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    templates.filters |= {
        "png": lambda picture: _data_address("image/png", _png(picture)),
        "wav": lambda audio: _data_address("audio/wav", audio),
    }
    page = templates.get_template("page.html").render(
        title=title, meta=[(key, _plain(value)) for key, value in report.meta.items()],
        cards=_cards(report.rows), ladder=_ladder(report.rows),
        languages=[_language(name, report.rows) for name in dict.fromkeys(r.language for r in report.rows)],
        gallery=[(x, [e for e in examples if e.section == x]) for x in dict.fromkeys(e.section for e in examples)],
    )  # fmt: skip
    write_atomically(Path(path), page.encode())


def _plain(value: Any) -> str:
    """Return a meta value as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _headline(rows: Iterable[Row], metric: str, system: str) -> list[Row]:
    """Select the undisturbed rows of a metric and system on the hardest split that has any."""
    found = [r for r in rows if (r.metric, r.system, r.condition) == (metric, system, "clean") and r.language != MEAN]
    splits = known_first((r.split for r in found), reversed(SPLITS))
    return [r for r in found if r.split == splits[0]]


def _mean_cell(rows: Sequence[Row]) -> dict[str, Any]:
    """Average a headline's rows over languages, as text and as the length of a bar."""
    metric = METRICS[rows[0].metric]
    value, chance = (float(np.mean(numbers)) for numbers in ([r.value for r in rows], [r.chance for r in rows]))
    return {
        "value": metric.text(value), "chance": metric.text(chance) if math.isfinite(chance) else "",
        "share": _bar(value, metric.unit), "chance_share": _bar(chance, metric.unit), "split": rows[0].split,
    }  # fmt: skip


def _bar(value: float, unit: str) -> float | None:
    """Return the length of a bar in percent; None for a number without a natural end."""
    return round(100 * min(1.0, max(0.0, value)), 1) if unit == "%" and math.isfinite(value) else None


def _cards(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Lay out the summary: each metric of the system itself, on its hardest split."""
    cards = []
    for name, metric in METRICS.items():
        if headline := _headline(rows, name, "speech"):
            note = f"{headline[0].split}, {', '.join(dict.fromkeys(r.language for r in headline))}"
            card = {"metric": name, "meaning": metric.meaning, "unit": metric.unit, "note": note}
            cards.append(card | _mean_cell(headline))
    return cards


def _ladder(rows: Sequence[Row]) -> dict[str, Any]:
    """Lay out the table from speech to its bounds and floors: systems by the metrics of `LADDER`."""
    metrics = [m for m in LADDER if any(r.metric == m for r in rows)]
    systems = []
    for name in known_first((r.system for r in rows), SYSTEMS):
        headlines = [_headline(rows, metric, name) for metric in metrics]
        if any(headlines):
            cells = [_mean_cell(found) if found else None for found in headlines]
            systems.append({"name": name, "meaning": SYSTEMS.get(name, ""), "cells": cells})
    return {"metrics": metrics, "systems": systems}


def _language(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Lay out one language's tables, the system on undisturbed speech first."""
    blocks = [_block(title, own) for title, own in by_condition([r for r in rows if r.language == name])]
    return {"name": name, "first": blocks[0], "rest": blocks[1:]}


def _block(caption: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Lay out one table of metrics by splits."""
    splits, cells = known_first((r.split for r in rows), SPLITS), {(r.metric, r.split): r for r in rows}
    lines = [
        {"metric": titled(m), "meaning": METRICS[m].meaning, "rows": [cells.get((m, split)) for split in splits]}
        for m in known_first((r.metric for r in rows), METRICS)
    ]
    return {"caption": caption, "splits": splits, "lines": lines}


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_grid(path: Path | str, examples: Sequence[Example], columns: int = 2, side: int = 128) -> None:
    """Write one PNG: per example the real picture, those drawn for it, and a short caption below.

    Pillow's own font has few letters but ASCII's, so other captions are given by their English gloss.
    """
    if not examples:
        raise ValueError("no examples to show")
    font = ImageFont.load_default(13)
    width = max(len(e.drawn) + (e.truth is not None) for e in examples) * (side + 6) + 18
    height, across = side + 64, min(columns, len(examples))
    sheet = Image.new("RGB", (width * across, height * math.ceil(len(examples) / columns)), "white")
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
    text = example.caption if example.caption.isascii() else example.gloss
    characters = max(12, int(width / font.getlength("n")))
    lines = textwrap.wrap(text, characters, max_lines=2, placeholder=" …")
    label = f"{example.section}, {example.mood}, {example.source}" + (", framed: real" if example.truth else "")
    draw.multiline_text((left, top + side + 4), "\n".join([label, *lines]), fill="black", font=font, spacing=2)
