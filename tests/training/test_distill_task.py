"""The distill stage: its losses reach every part, and what a recipe or a corpus leaves out is left out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sta.config.recipe import DistillStage, Recipe, load_recipe
from sta.errors import RecipeError, StaError
from sta.training.losses.base import targets_of
from sta.training.tasks.distill import (
    Distillation,
    DistillBatch,
    DistillTask,
    ExampleCorpus,
    sizes_of,
    written_captions,
)
from tests.training.facts import FACTS

NAME = "distill-pooled"
EVERY = {"ctc", "kl", "image", "text", "caption", "attributes", "mood", "text_branch"}


def recipe(*overrides: str, **losses: float) -> Recipe:
    said = ", ".join(f"{name}: {weight}" for name, weight in ({"attributes": 1.0} | losses).items())
    small = ["encoder.width=16", "encoder.heads=2", "bottleneck.width=8", "stages.distill.batch=4"]
    return load_recipe("garden-tiny", [*small, f"stages.distill.losses={{{said}}}", *overrides])


def made(*overrides: str, **losses: float) -> tuple[Distillation, DistillBatch]:
    """The network of a recipe, and a batch of noise, without augmentation."""
    of = recipe("stages.distill.augment=0", "stages.distill.gain=0", *overrides, **losses)
    network = DistillTask.build_network(of, FACTS, NAME).train()
    torch.manual_seed(0)
    return network, DistillTask.example_batch(of, FACTS, NAME, 4, 1.5)


def reached(module: Distillation, loss: Tensor) -> set[str]:
    module.zero_grad()
    loss.backward(retain_graph=True)
    return {n for n, p in module.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}


def own(module: Distillation, loss: str) -> set[str]:
    """The parameters that a loss has itself."""
    return {name for name, _ in module.named_parameters() if name.startswith(f"losses.{module.names.index(loss)}.")}


@pytest.fixture(scope="module")
def heard() -> tuple[Distillation, dict[str, Tensor]]:
    module, batch = made("stages.distill.acoustic_dropout=0")
    return module, module(batch)


@pytest.mark.parametrize("loss", sorted(EVERY))
def test_every_loss_reaches_the_encoder(loss: str, heard: tuple[Distillation, dict[str, Tensor]]) -> None:
    module, losses = heard
    assert set(losses) == EVERY
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    names = reached(module, losses[loss])
    if loss == "text_branch":
        assert {"encoder.ctc_embedding.weight", "encoder.null_prosody", "bottleneck.queries"} <= names
        assert not any("acoustics" in name for name in names)
        return
    assert {name for name, _ in module.named_parameters() if name.startswith("encoder.acoustics.")} <= names
    assert ("bottleneck.queries" in names) == (loss != "ctc")
    for other in module.names:
        assert not own(module, other) & names or other == loss


def test_together_the_losses_reach_every_parameter() -> None:
    module, batch = made("stages.distill.acoustic_dropout=0.5", "stages.distill.augment=1", "stages.distill.gain=12")
    losses = module(batch)
    assert reached(module, torch.stack(list(losses.values())).sum()) == {n for n, _ in module.named_parameters()}


def test_losses_that_weigh_nothing_are_not_computed_and_their_targets_not_read() -> None:
    class Silent(ExampleCorpus):
        def _refuse(self, rows: np.ndarray) -> Any:
            raise AssertionError("it was read")

        moods = attributes = text_features = captions = _refuse

    of = recipe(mood=0, caption=0, attributes=0, text_branch=0, text=0, ctc=0)
    module = DistillTask.build_network(of, FACTS, NAME)
    corpus = Silent(sizes_of(of, FACTS, "pooled"), FACTS, of.stages.distill, 1.0)
    assert set(targets_of(module.losses_of("speech"), corpus, np.arange(4), 0)) == {"image", "kl"}
    _, batch = made(mood=0, caption=0, attributes=0, text_branch=0, text=0, ctc=0)
    assert set(module(batch)) == {"image", "kl"}


def test_with_ctc_off_there_is_no_head_no_text_branch_and_nothing_is_hidden() -> None:
    """All of the frames go on; acoustics that were hidden would leave nothing."""
    module, batch = made("stages.distill.acoustic_dropout=1.0", ctc=0)
    assert batch.written is None
    assert module.encoder.ctc is None
    losses = module(batch)
    assert set(losses) == EVERY - {"ctc", "text_branch"}
    heard, read = module._encode(batch)
    assert read is None
    frames = heard.encoder.mask.sum(1) - 1
    expected = module.encoder.acoustics.output_lengths(batch.lengths)
    assert expected is not None
    assert frames.tolist() == expected.tolist()
    acoustic = {name for name, _ in module.named_parameters() if name.startswith("encoder.acoustics.")}
    assert acoustic <= reached(module, losses["image"])


def test_while_ctc_warms_up_recordings_train_what_it_reads_and_captions_the_rest() -> None:
    module, batch = made("stages.distill.ctc_warmup=0.5")
    whole, found = module(batch), module(replace(batch, targets={"ctc": batch.targets["ctc"]}))
    assert set(found) == {"ctc", "text_branch"}
    torch.testing.assert_close(found["ctc"], whole["ctc"])
    acoustic = {name for name, _ in module.named_parameters() if name.startswith("encoder.acoustics.")}
    read, written = reached(module, found["ctc"]), reached(module, found["text_branch"])
    assert acoustic | {"encoder.ctc.weight"} <= read
    assert not read & {name for name, _ in module.named_parameters() if name.startswith("bottleneck.")}
    assert {"bottleneck.queries", "encoder.ctc_embedding.weight"} <= written
    assert not acoustic & written


@pytest.mark.parametrize("off", ["losses.ctc", "losses.text_branch", "text_ratio"])
def test_a_warm_up_in_which_nothing_trains_the_bottleneck_is_refused(off: str) -> None:
    of = recipe("stages.distill.ctc_warmup=0.5", f"stages.distill.{off}=0")
    with pytest.raises(RecipeError, match=r"stages\.distill\.ctc_warmup: while recordings train the CTC head alone"):
        DistillTask.check(of)


def test_where_acoustics_go_no_further_all_of_them_are_hidden() -> None:
    module, batch = made("encoder.acoustics_above_ctc=false", "stages.distill.acoustic_dropout=0")
    heard, _ = module._encode(batch)
    assert heard.acoustic is not None
    assert not heard.acoustic.any()


def test_an_encoder_knows_which_of_its_languages_are_read_by_their_sounds() -> None:
    module, _ = made("languages=[en]", "encoder.phonemes=[fr, en]")
    assert module.encoder.config.phonemes == ["en"]


@pytest.mark.parametrize("setting", ["acoustics_above_ctc=false", "drop_blanks=true"])
def test_what_takes_a_ctc_head_is_refused_without_one(setting: str) -> None:
    said = f"encoder.{setting.replace('=', ': ')} takes a CTC head, and there is none; set it to"
    with pytest.raises(RecipeError, match=re.escape(said)):
        DistillTask.check(recipe(f"encoder.{setting}", ctc=0))


def test_captions_that_are_missing_change_no_loss_but_by_their_number() -> None:
    """A batch of two recordings with a caption and two without: the losses of captions are those of the two."""

    class Some(ExampleCorpus):
        def has_text(self, rows: np.ndarray) -> np.ndarray:
            return np.asarray(rows) < 2

        teacher_reads = has_text

        def captions(self, rows: np.ndarray) -> list[list[int]]:
            return [[1, 2, 3 + row] if row < 2 else [] for row in rows.tolist()]

    module, batch = made("stages.distill.acoustic_dropout=0", text_branch=0)
    module.eval()
    of, spoken = recipe(text_branch=0), module.losses_of("speech")
    corpus = Some(sizes_of(of, FACTS, "pooled"), FACTS, of.stages.distill, 1.0)
    both = replace(batch, targets=targets_of(spoken, corpus, np.arange(4), 0))
    corpus.rng = np.random.default_rng(0)
    first = replace(
        batch, features=batch.features[:2], lengths=batch.lengths[:2], language=batch.language[:2],
        targets=targets_of(spoken, corpus, np.arange(2), 0),
    )  # fmt: skip
    with torch.no_grad():
        some, whole = module(both), module(first)
    for name in ("ctc", "caption"):
        torch.testing.assert_close(some[name], whole[name])


@pytest.mark.parametrize(("overrides", "count"), [((), 4), (("stages.distill.text_ratio=0.5",), 2)])
def test_the_text_branch_reads_its_share(overrides: tuple[str, ...], count: int) -> None:
    assert written_captions(recipe(*overrides).stages.distill) == count


@pytest.mark.parametrize("off", ["ctc", "text_branch"])
def test_the_text_branch_reads_nothing_where_it_weighs_nothing(off: str) -> None:
    assert written_captions(recipe(**{off: 0}).stages.distill) == 0


def test_captions_too_few_to_share_out_are_said() -> None:
    few = recipe("stages.distill.text_ratio=0.5")
    DistillTask.check_shares(few, 2)
    with pytest.raises(StaError, match="is 2 written captions a step, too few for 3 shares of it"):
        DistillTask.check_shares(few, 3)


def test_the_default_losses_are_those_of_the_docs() -> None:
    assert {name for name, weight in DistillStage.model_fields["losses"].default.items() if weight} == EVERY - {
        "attributes"
    }
