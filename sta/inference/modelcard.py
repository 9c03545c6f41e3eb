"""The model card of a release: how it was made and what was measured, for people and for the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Template

from sta.config.cards import LanguageCard, load_teacher
from sta.config.recipe import Recipe
from sta.data.checksums import renew
from sta.data.corpora.base import DataCard, open_source
from sta.metrics.rows import METRICS, SPLITS, SYSTEMS, Report, Row, known_first
from sta.models.decoders.base import find_decoder

SHOWN = (
    *("attributes", "colours", "exact", "mood", "swap", "concept_top1", "concept_top5", "judge_top1", "style"),
    *("judge_style", "speech_top1", "r1_speech_to_image", "r10_speech_to_image", "r1_speech_to_text"),
    "r10_speech_to_text",
)
SHOWN_DISTURBED = (
    *("attributes", "mood", "concept_top1", "r1_speech_to_image", "r10_speech_to_image", "r10_speech_to_text"),
)

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
    languages, training = [c.code for c in cards], report.meta["training"]
    data = open_source(recipe.corpus, {c.code: c for c in cards}, recipe.seed).card()
    licences = licences_of(recipe, data)
    classifiers = [r.value for r in report.rows if r.metric == "classifier"]
    template = Template(Path(__file__).with_suffix(".md").read_text("utf-8"), keep_trailing_newline=True)
    text = template.render(
        _tables(report.rows, languages, split), recipe=recipe, cards=cards, languages=languages, report=report,
        data=data, licences=licences, unknown=UNKNOWN, teacher=load_teacher(recipe.teacher).name,
        decoder=find_decoder(recipe.decoder.kind).title, split_meaning=SPLIT_MEANING.get(split, f"the split '{split}'"),
        styles=_styles(release), minutes=_minutes(training),
        metadata=_metadata(recipe.name, languages, data, licences, report, split),
        commits=_by_stage(training, "commits"), machines=_by_stage(training, "machines"),
        fid=next((r for r in report.rows if r.metric == "fid"), None),
        right=METRICS["classifier"].text(sum(classifiers) / len(classifiers)) if classifiers else None,
    )  # fmt: skip
    renew(release, "README.md", text.encode())
    return release / "README.md"


def _styles(release: Path) -> str:
    """Return which styles the decoder of a release may be asked for, as a paragraph; nothing where it knows none."""
    path = release / "decoder" / "config.json"
    styles = json.loads(path.read_text(encoding="utf-8")).get("styles") if path.exists() else None
    return f'\n`style="{styles[0]}"` chooses how: {", ".join(styles)}; without it, one by chance.\n' if styles else ""


def licences_of(recipe: Recipe, data: DataCard) -> dict[str, str | None]:
    """Return the licence of each part that a release was made of, as the Hub writes it; None where it is not known."""
    found = dict(data.licences)
    if recipe.encoder.backbone is not None:
        found[f"backbone {recipe.encoder.backbone}"] = recipe.encoder.backbone_licence
    found |= load_teacher(recipe.teacher).licences
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
    return str(data.to_yaml())


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


def _tables(rows: Sequence[Row], languages: Sequence[str], split: str) -> dict[str, Any]:
    """Return the lines of the card's tables: the system by metrics, all systems, and under disturbances."""
    own = [r for r in rows if r.split == split]
    clean = {(r.metric, r.system, r.language): r for r in own if r.condition == "clean"}
    disturbed = {(r.condition, r.metric, r.language): r for r in own if r.condition != "clean" and r.system == "speech"}
    columns = [(m, code) for m in SHOWN_DISTURBED if m in (d[1] for d in disturbed) for code in languages]

    def cells(found: Mapping[tuple[str, str, str], Row], keys: Iterable[tuple[str, str, str]]) -> list[str]:
        return [found[key].text if key in found else "–" for key in keys]

    results = []
    for metric in SHOWN:
        keys = [(metric, "speech", code) for code in languages]
        if there := [clean[key] for key in keys if key in clean]:
            chance = METRICS[metric].text(there[0].chance)
            results.append([METRICS[metric].meaning, *cells(clean, keys), chance])
    measured = {metric for metric, _, _ in clean}
    marked = next((m for m in ("attributes", "concept_top1") if m in measured), "attributes")
    systems = known_first((system for metric, system, _ in clean if metric == marked), SYSTEMS)
    return {
        "results": results,
        "ladder": [[SYSTEMS.get(s, s), *cells(clean, ((marked, s, c) for c in languages))] for s in systems],
        "marked": "attributes right" if marked == "attributes" else METRICS[marked].meaning,
        "conditions": [
            [name, *cells(disturbed, ((name, *column) for column in columns))]
            for name in dict.fromkeys(d[0] for d in disturbed) if columns
        ],
        "condition_heads": ["condition", *(f"{metric}, {code}" for metric, code in columns)],
    }  # fmt: skip
