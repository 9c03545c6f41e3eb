"""The model card of a release: how it was made and what was measured, for people and for the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sta.config.cards import LanguageCard, load_teacher
from sta.config.recipe import Recipe
from sta.data.checksums import renew
from sta.data.corpora.base import DataCard, open_source
from sta.metrics.rows import METRICS, SPLITS, SYSTEMS, Report, Row, known_first
from sta.models.decoders.base import find_decoder
from sta.models.teachers.base import teacher_class

SHOWN = (
    *("attributes", "colours", "exact", "mood", "swap", "concept_top1", "concept_top5", "judge_top1", "style"),
    *("judge_style", "speech_top1", "r1_speech_to_image", "r10_speech_to_image", "r1_speech_to_text"),
    "r10_speech_to_text",
)
SHOWN_DISTURBED = (
    *("attributes", "mood", "concept_top1", "r1_speech_to_image", "r10_speech_to_image", "r10_speech_to_text"),
)

CARD = """\
---
{metadata}---

# {name}

Draws what is said in {languages}: speech in, picture out. A speech encoder that was distilled against the image-text
model {teacher} gives a few tokens, and {decoder} draws from them.

```python
from sta import SpeechToImagePipeline

pipe = SpeechToImagePipeline.from_pretrained("path/to/this/folder")
pipe("said.wav", language="{code}").images[0].save("drawn.png")
```

## How it was made

`sta run {recipe}` makes it from nothing; `recipe.yaml` beside this card has every setting.

| | |
|---|---|
| commit | {commit} |
| seed | {seed} |
| data | {data} |
| licences | {licences} |
| minutes of training | {minutes} |
| machine | {machine} |

## What was measured

In percent, with 95 % bootstrap intervals, on {split_meaning}.

{results}
{ladder}{conditions}
FID {fid}.

## Limits

It knows the world that it was trained on and nothing else{world}. SHA256SUMS lists every file.
"""

UNKNOWN = "unknown"
SPLIT_MEANING = {
    "both": "voices and combinations of attributes that training never had",
    "combination": "combinations of attributes that training never had",
    "voice": "voices that training never heard",
    "engine": "synthesisers that training never heard",
    "people": "recordings of people",
    "phrase": "texts that training never had",
    "concept": "concepts that training never had",
    "style": "a style that training never had",
    "seen": "voices and combinations of the training, in recordings of their own",
}


def write_card(release: Path, recipe: Recipe, cards: Sequence[LanguageCard], report: Report) -> Path:
    """Write `README.md` to a release from its recipe and its report, and renew the checksums."""
    split = known_first((r.split for r in report.rows), reversed(SPLITS))[0]
    languages = [c.code for c in cards]
    data = open_source(recipe.corpus, {c.code: c for c in cards}, recipe.seed).card()
    licences = licences_of(recipe, data)
    text = CARD.format(
        metadata=_metadata(recipe.name, languages, data, licences, report, split), name=recipe.name,
        languages=" and ".join(c.name for c in cards), code=languages[0],
        teacher=load_teacher(recipe.teacher).name, decoder=find_decoder(recipe.decoder.kind).title, recipe=recipe.name,
        commit=_by_stage(report.meta["training"], "commits"), seed=report.meta["seed"],
        data=data.description, minutes=_minutes(report.meta["training"]),
        licences="; ".join(f"{part}: {licence or UNKNOWN}" for part, licence in licences.items()),
        machine=_by_stage(report.meta["training"], "machines"),
        split_meaning=SPLIT_MEANING.get(split, f"the split '{split}'"),
        results=_results(report.rows, languages, split), ladder=_ladder(report.rows, languages, split),
        conditions=_conditions(report.rows, languages, split),
        fid=next((_fid(r, report) for r in report.rows if r.metric == "fid"), "was not measured"),
        world=_limits(data, report.rows),
    )  # fmt: skip
    renew(release, "README.md", text.encode())
    return release / "README.md"


def licences_of(recipe: Recipe, data: DataCard) -> dict[str, str | None]:
    """Return the licence of each part that a release was made of, as the Hub writes it; None where it is not known."""
    teacher, found = load_teacher(recipe.teacher), dict(data.licences)
    if recipe.encoder.backbone is not None:
        found[f"backbone {recipe.encoder.backbone}"] = recipe.encoder.backbone_licence
    if not teacher_class(teacher).trained_here:
        found[f"teacher {teacher.name}"] = teacher.licence
    return {part: licence and licence.lower() for part, licence in found.items()}


def _metadata(
    name: str, languages: list[str], corpus: DataCard, licences: dict[str, str | None], report: Report, split: str
) -> str:
    """Return the header that the Hub reads: a licence that several parts do not share is `other`, with their names."""
    results = [
        EvalResult(
            task_type="audio-to-image", dataset_type=corpus.dataset, dataset_name=f"{corpus.name}, {split}",
            dataset_config=r.language, dataset_split=r.split, metric_type=r.metric, metric_value=round(r.value, 4),
        )
        for r in report.rows
        if (r.system, r.condition, r.split) == ("speech", "clean", split) and r.metric in SHOWN
    ]  # fmt: skip
    names = sorted({licence or UNKNOWN for licence in licences.values()})
    plain = names[0] if len(names) == 1 and names != [UNKNOWN] else None
    data = ModelCardData(
        language=list(dict.fromkeys(code.partition("-")[0] for code in languages)), license=plain or "other",
        license_name=None if plain else "-and-".join(names), library_name="speak-the-art", model_name=name,
        datasets=[corpus.dataset] if "/" in corpus.dataset else None, eval_results=results or None,
        tags=["speech-to-image", "audio-to-image", "speech", "diffusion"],
    )  # fmt: skip
    return data.to_yaml() + "\n"


def _by_stage(training: dict[str, dict[str, Any]], what: str) -> str:
    """Return the commit, or the machine, of all stages, or each with the stages that had it."""
    stages: dict[str, list[str]] = {}
    for stage, facts in training.items():
        for one in facts[what] or [None]:
            stages.setdefault(one or "unknown", []).append(stage)
    if len(stages) == 1:
        return next(iter(stages))
    return "; ".join(f"{one} ({', '.join(names)})" for one, names in stages.items())


def _minutes(training: dict[str, dict[str, Any]]) -> str:
    parts = ", ".join(f"{stage} {facts['seconds'] / 60:.1f}" for stage, facts in training.items())
    return f"{sum(facts['seconds'] for facts in training.values()) / 60:.0f} ({parts}); the corpus takes more"


def _results(rows: Sequence[Row], languages: list[str], split: str) -> str:
    found = {(r.metric, r.language): r for r in rows if _is(r, "speech", "clean", split)}
    return _table(
        ["", *languages, "chance"],
        [
            [METRICS[m].meaning, *(_cell(found.get((m, code))) for code in languages), _chance(found, m)]
            for m in SHOWN
            if any((m, code) in found for code in languages)
        ],
    )


def _ladder(rows: Sequence[Row], languages: list[str], split: str) -> str:
    metric = next((m for m in ("attributes", "concept_top1") if any(r.metric == m for r in rows)), "attributes")
    found = {(r.system, r.language): r for r in rows if r.metric == metric and _is(r, None, "clean", split)}
    systems = known_first((system for system, _ in found), SYSTEMS)
    if not systems:
        return ""
    lines = [[SYSTEMS.get(s, s), *(_cell(found.get((s, code))) for code in languages)] for s in systems]
    table = _table(["system", *languages], lines)
    what = "attributes right" if metric == "attributes" else METRICS[metric].meaning
    return f"\nWhere the loss is ({what}, the same recordings):\n\n{table}\n"


def _conditions(rows: Sequence[Row], languages: list[str], split: str) -> str:
    disturbed = [r for r in rows if r.condition != "clean" and _is(r, "speech", None, split)]
    found = {(r.condition, r.metric, r.language): r for r in disturbed}
    names = list(dict.fromkeys(r.condition for r in disturbed))
    measured = {metric for _, metric, _ in found}
    shown = [(metric, code) for metric in SHOWN_DISTURBED if metric in measured for code in languages]
    if not shown:
        return ""
    lines = [[name, *(_cell(found.get((name, *column))) for column in shown)] for name in names]
    heads = ["condition", *(f"{metric}, {code}" for metric, code in shown)]
    return f"\nDisturbed, or spoken otherwise:\n\n{_table(heads, lines)}\n"


def _is(row: Row, system: str | None, condition: str | None, split: str) -> bool:
    return row.split == split and system in (None, row.system) and condition in (None, row.condition)


def _cell(row: Row | None) -> str:
    return row.text if row else "–"


def _chance(found: dict[tuple[str, str], Row], metric: str) -> str:
    return next((METRICS[metric].text(r.chance) for (m, _), r in found.items() if m == metric), "")


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def _fid(row: Row, report: Report) -> str:
    return f"{row.text} against the same {row.n} test pictures, in {report.meta['fid_extractor']}"


def _limits(corpus: DataCard, rows: Sequence[Row]) -> str:
    right = [r.value for r in rows if r.metric == "classifier"]
    said = f": {corpus.limits}" if corpus.limits else ""
    if right:
        share = METRICS["classifier"].text(sum(right) / len(right))
        said += (
            f". The attribute classifier that marks the pictures is right on {share} % of the attributes of real ones"
        )
    return said
