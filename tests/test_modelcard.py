"""The model card: what it must say, read back by the Hub's own library."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from sta.cards import load_language
from sta.data.sums import write_sums
from sta.metrics.rows import Interval, Report, Row
from sta.modelcard import DECODER_NAMES, write_card
from sta.models.decoders import DECODERS
from sta.recipe import load_recipe
from sta.release import verify

MACHINES = ["Some Processor, 2 x 1 threads"]
META = {
    "seed": 7, "fid_extractor": "reader-256-ff",
    "training": {
        "teacher": {"seconds": 60.0, "commits": ["abc123"], "machines": MACHINES},
        "decoder": {"seconds": 120.0, "commits": ["abc123", "def456"], "machines": MACHINES},
    },
}  # fmt: skip


def row(metric: str, value: float, language: str = "en", condition: str = "clean", system: str = "speech") -> Row:
    where = {"language": language, "split": "both", "condition": condition, "system": system}
    return Row.of(metric, Interval(value, value - 0.1, value + 0.1), 80, 0.25, **where)  # type: ignore[arg-type]


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    rows = [
        row("attributes", 0.912), row("attributes", 0.834, "ar"), row("mood", 0.95), row("reader", 0.999),
        row("attributes", 0.33, system="shuffled"), row("attributes", 0.71, condition="noise-10"),
        row("mood", 0.61, condition="noise-10"), Row.of("fid", Interval(12.5), 640, language="all", split="all",
                                                        condition="clean", system="speech"),
    ]  # fmt: skip
    write_sums(tmp_path)
    languages = [load_language(code) for code in ("en", "ar")]
    write_card(tmp_path, load_recipe("garden-mini"), languages, Report(META, rows))
    verify(tmp_path)
    return ModelCard.load(tmp_path / "README.md")


def test_the_hub_reads_its_metadata(card: ModelCard) -> None:
    data = card.data
    assert isinstance(data, ModelCardData)
    assert (data.language, data.license, data.library_name) == (["en", "ar"], "apache-2.0", "diffusers")
    results = {(r.metric_type, r.dataset_config): r.metric_value for r in data.eval_results or []}
    assert results == {("attributes", "en"): 0.912, ("attributes", "ar"): 0.834, ("mood", "en"): 0.95}


def test_it_says_how_it_was_made(card: ModelCard) -> None:
    for said in (
        "`sta run garden-mini`",
        "| commit | abc123 (teacher, decoder); def456 (decoder) |",
        "| seed | 7 |",
        "3 (teacher 1.0, decoder 2.0)",
        "| machine | Some Processor, 2 x 1 threads |",
    ):
        assert said in card.text


def test_it_says_what_was_measured(card: ModelCard) -> None:
    assert "| 91.2 (81.2–101.2) | 83.4 (73.4–93.4) | 25.0 |" in card.text
    assert "| the picture of another utterance | 33.0 (23.0–43.0) | – |" in card.text
    assert "| noise-10 | 71.0 (61.0–81.0) | – | 61.0 (51.0–71.0) | – |" in card.text
    assert "FID 12.5 against the same 640 test pictures, in reader-256-ff" in card.text
    assert "right on 99.9 % of the attributes" in card.text


def test_every_decoder_has_a_name() -> None:
    assert DECODER_NAMES.keys() == DECODERS.keys()
