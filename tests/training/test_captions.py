"""Corpora without transcripts: what cannot be learnt is said at once, and what can be is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from sta.cli.main import main
from sta.config.cards import load_teacher
from sta.config.recipe import load_recipe
from sta.data.rows import Corpus, write_shard
from sta.data.text import Pieces
from sta.errors import CorpusError
from sta.metrics.rows import Report
from sta.training.prepare import check_captions, text_readers, train_pieces
from sta.training.speech_features import group_rows
from sta.training.workspace import Captions, Workspace
from tests.parquet_fixtures import sample, write_parquet

WORDLESS = (
    "stages.distill.losses={ctc: 0, caption: 0, text: 0}", "stages.decoder.losses={caption: 0, text: 0}",
    "stages.distill.text_ratio=0", "stages.decoder.text_ratio=0",
)  # fmt: skip
BRAZIL = """
code: pt-br
name: Brazilian Portuguese
native_name: Português brasileiro
script: Latn
direction: ltr
normaliser: [nfc, lowercase]
sentencepiece: {vocab_size: 300}
speech: {voices: [pt-br], words_per_minute: 170}
test_sentence: um pássaro pequeno
"""
CLIP: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def workspace_of(folder: Path, texts: Sequence[str | None], *overrides: str, teacher: str = "garden-clip") -> Any:
    """Rows of English, the even ones, and Arabic."""
    rows = [sample(n, text=text, language=("en", "ar")[n % 2], split="train") for n, text in enumerate(texts)]
    (folder / "shards").mkdir()
    write_shard(rows, folder / "shards" / "00000.arrow")
    recipe, corpus = load_recipe("garden-tiny", overrides), Corpus(folder)
    cards = recipe.cards()
    captions = Captions(corpus, {code: card.normaliser for code, card in cards.items()})
    workspace = Workspace(recipe.model_copy(update={"teacher": teacher}), folder)
    workspace.cards, workspace.corpus, workspace.texts, workspace.cache = cards, corpus, captions, folder
    return workspace


ENGLISH_ALONE = [f"a bird number {n}" if n % 2 == 0 else None for n in range(40)]


def test_what_learns_from_texts_is_listed() -> None:
    assert text_readers(load_recipe("garden-tiny", WORDLESS)) == []
    assert text_readers(load_recipe("garden-tiny", [*WORDLESS, "stages.distill.losses.ctc=1"])) == [
        "stages.distill.losses.ctc"
    ]
    assert text_readers(load_recipe("garden-tiny", ["stages.decoder.losses.text=0"])) == [
        *(f"stages.distill.losses.{loss}" for loss in ("ctc", "caption", "text")),
        *(f"stages.{stage}.text_ratio" for stage in ("distill", "decoder")),
    ]


def test_a_language_without_texts_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CorpusError) as error:
        check_captions(workspace_of(tmp_path, ENGLISH_ALONE, *WORDLESS[1:]))
    assert str(error.value) == (
        f"{tmp_path}: no training row in language 'ar' has a text; add some, or set stages.distill.losses.ctc and "
        "stages.distill.losses.caption and stages.distill.losses.text to 0 and train on what the pictures show"
    )


def test_where_nothing_is_learnt_from_texts_no_pieces_are_needed(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, ENGLISH_ALONE, *WORDLESS)
    check_captions(workspace)
    train_pieces(workspace, tmp_path)
    assert all(Pieces.load(tmp_path / f"{code}.model").encode("x") == [] for code in ("en", "ar"))
    assert workspace.texts[1] == ""


def test_a_teacher_that_is_trained_here_needs_captions(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, [None] * 40, *WORDLESS)
    with pytest.raises(CorpusError, match="no row has a text, so teacher 'garden-clip' cannot be trained here; name a"):
        check_captions(workspace)
    del workspace.teacher_class
    workspace.teacher_card = load_teacher("vit-b-32")
    check_captions(workspace)


def test_a_normaliser_that_empties_captions_is_refused(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, ["..." if n % 2 else "a bird" for n in range(40)])
    with pytest.raises(CorpusError, match=r"language card 'ar': the normaliser \[.*\] leaves 0% of the captions"):
        check_captions(workspace)


def test_rows_without_speech_are_not_distilled(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, ENGLISH_ALONE)
    workspace.corpus.has_audio = np.arange(40) % 3 > 0
    assert group_rows(workspace, "pooled").tolist() == [n for n in range(40) if n % 3]


@pytest.mark.slow
def test_recordings_without_transcripts_are_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP needs no captions to show what a picture is like; from nothing to a report and a drawing.

    In a language whose card is given by its path and has a regional code.
    """
    torch.manual_seed(0)
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    model = open_clip.CLIP(CLIP["embed_dim"], CLIP["vision_cfg"], CLIP["text_cfg"])  # type: ignore[arg-type]
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (tmp_path / "clip.yaml").write_text(
        f"name: clip\narchitecture: local-dir:{folder}\nembedding_width: 8\nimage_size: 16\ntext_languages: [pt]\n"
        "licence: MIT\nsource: here\n"
    )
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "brazil.yaml").write_text(BRAZIL, encoding="utf-8")
    rows = [sample(n, text=None, language="pt-br") for n in range(60)]
    write_parquet(tmp_path / "birds.parquet", [{k: v for k, v in row.items() if k != "text"} for row in rows])
    (tmp_path / "silent.yaml").write_text(
        """
extends: garden-tiny
name: silent
languages: [./cards/brazil.yaml]
teacher: ./clip.yaml
corpus: {name: parquet, shards: birds.parquet, size: 16, licence: cc-by-4.0}
encoder: {width: 32, layers: 1, heads: 2, sharing: each}
tokenizer: {codes: 16, width: 16, factor: 4}
decoder: {width: 32, layers: 1, heads: 2}
stages:
  tokenizer: {steps: 2, batch: 4}
  distill: {steps: 3, batch: 4}
  decoder: {steps: 3, batch: 4}
evaluation: {items: 4, pictures: 1, samples: 1, conditions: [noise-10]}
"""
    )
    command = ["run", str(tmp_path / "silent.yaml"), "--out", str(tmp_path / "runs")]
    assert main(command) == 2
    assert "no training row in language 'pt-br' has a text" in capsys.readouterr().err
    assert main([*command, "name=wordless", *WORDLESS]) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "wordless"
    monkeypatch.chdir(tmp_path / "runs")  # from which the paths of the recipe would not be found
    workspace = Workspace(load_recipe(run / "recipe.yaml"), tmp_path / "runs")
    assert not workspace.corpus.has_text.any()
    assert workspace.pieces["pt-br"].size == 1
    report = Report.read(run / "evaluation" / "report.json")
    assert {r.condition for r in report.rows if r.metric == "r1_speech_to_image"} == {"clean", "noise-10"}
    card = (run / "release" / "README.md").read_text(encoding="utf-8")
    assert "license: other" in card
    assert "license_name: cc-by-4.0-and-mit" in card
    (tmp_path / "said.wav").write_bytes(rows[0]["audio"]["bytes"])
    draw = ["draw", str(tmp_path / "said.wav"), "--language", "pt-br", "--weights", str(run / "release")]
    assert main([*draw, "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "said.png").exists()
