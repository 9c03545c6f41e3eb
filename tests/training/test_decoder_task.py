"""The decoder stage's batches, where the written share is spread over the ranks, and its two losses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sta.config.recipe import load_recipe
from sta.distributed.sharding import BatchShard
from sta.models.bottleneck import SpeechBottleneck
from sta.models.captioner import Captioner
from sta.training.tasks import decoder as decoder_task
from sta.training.tasks.decoder import DecoderTask, _Denoising, text_mask
from tests.conftest import tiny_encoder
from tests.release_fixtures import tiny_objective


@pytest.mark.parametrize(("size", "share", "count"), [(16, 0.25, 4), (16, 0.5, 8), (10, 0.3, 3), (8, 0, 0), (8, 1, 8)])
def test_the_share_is_met(size: int, share: float, count: int) -> None:
    assert text_mask(size, share).sum() == count


@given(st.integers(1, 64), st.floats(0, 1))
def test_the_share_is_met_to_one_place(size: int, share: float) -> None:
    assert abs(text_mask(size, share).sum() - size * share) < 1 + 1e-6


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_reads_and_hears(world: int) -> None:
    written = text_mask(16, 0.25)
    parts = [BatchShard(rank, world).of(written) for rank in range(world)]
    assert [part.sum() for part in parts] == [4 // world] * world


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_words_reach_the_bottleneck_where_they_weigh(weight: float) -> None:
    encoder, (loss, x0) = tiny_encoder({"en": 5}), tiny_objective("latent-diffusion")
    bottleneck = SpeechBottleneck(encoder.config.width, 3, tokens=2, width=3, layers=1, heads=2)
    stage = load_recipe("garden-mini", [f"stages.decoder.losses.caption={weight}"]).stages.decoder
    module = _Denoising(loss, {"pooled": encoder}, {"pooled": bottleneck}, stage, 0.03)
    unit = torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    batch = {
        "group": torch.tensor(0), "frames": torch.randn(4, 6, encoder.config.width),
        "frames_mask": torch.ones(4, 6, dtype=torch.bool), "heard": torch.arange(4), "read": torch.arange(0),
        "language": torch.zeros(4, dtype=torch.long),
        "x0": x0[:4], "text": unit, "text_bank": unit,
        "pieces": torch.tensor([1, 2, 3, 4, 5]), "counts": torch.tensor([1, 2, 1, 1]),
    }  # fmt: skip
    losses = module(batch)
    assert ("caption" in losses) == bool(weight)
    if weight:
        losses["caption"].backward()
        assert bottleneck.queries.grad is not None
        assert bottleneck.queries.grad.abs().max() > 0
        assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize(("share", "stores"), [(0.0, 2), (0.25, 2), (1.0, 2), (0.5, 1)])
def test_a_share_of_the_recordings_is_heard_disturbed(share: float, stores: int) -> None:
    task: Any = object.__new__(DecoderTask)
    task.workspace = SimpleNamespace(recipe=SimpleNamespace(seed=1))
    task.stage = SimpleNamespace(augment_ratio=share)
    task.frames = {"pooled": [np.zeros(400), np.ones(400)][:stores]}
    heard = [float(task._heard("pooled", place, step=3)) for place in range(400)]
    assert abs(np.mean(heard) - share * (stores == 2)) < 0.07
    assert heard == [float(task._heard("pooled", place, step=3)) for place in range(400)]
    if 0 < share < 1 and stores == 2:
        assert heard != [float(task._heard("pooled", place, step=4)) for place in range(400)]


def test_captions_without_a_piece_have_words_that_can_be_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of a batch may be of captions that the normaliser leaves nothing of."""
    task: Any = object.__new__(DecoderTask)
    task.workspace, task.groups, task.rows = SimpleNamespace(recipe=SimpleNamespace(seed=1)), ["pooled"], {}
    task.stage = SimpleNamespace(batch=2, text_ratio=0.0, draft_warmup=0.0, steps=4, losses={"caption": 1.0})
    task.rows["pooled"] = task.image_of = np.arange(2)
    task.text, task.pictures, task.latents = np.zeros((2, 3)), np.zeros((2, 16)), None
    task.encoders, task.language = {"pooled": tiny_encoder()}, ["en", "ar"]
    monkeypatch.setattr(task, "_places_of", lambda step: (0, np.arange(2)))
    monkeypatch.setattr(task, "_heard", lambda group, place, step: np.ones((4, 3)))
    monkeypatch.setattr(decoder_task, "caption_pieces", lambda workspace, encoder, rows: [[] for _ in rows])
    batch = task.batch(1, BatchShard())
    assert batch["pieces"].dtype == batch["counts"].dtype == torch.long
    assert Captioner(5, 3)(torch.zeros(2, 2, 3), batch["pieces"], batch["counts"]).isfinite()


def test_a_batch_without_pictures_trains_the_draft_and_the_bottleneck_alone() -> None:
    encoder = tiny_encoder({"en": 5})
    loss, _ = tiny_objective("latent-diffusion", draft=1)
    bottleneck = SpeechBottleneck(encoder.config.width, 3, tokens=2, width=3, layers=1, heads=2)
    stage = load_recipe("garden-mini").stages.decoder
    module = _Denoising(loss, {"pooled": encoder}, {"pooled": bottleneck}, stage, 0.03)
    latents, unit = torch.randn(4, 3, 4, 4), torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    batch = {
        "group": torch.tensor(0), "frames": torch.randn(4, 6, encoder.config.width), "latents": latents,
        "frames_mask": torch.ones(4, 6, dtype=torch.bool), "heard": torch.arange(4), "read": torch.arange(0),
        "language": torch.zeros(4, dtype=torch.long),
        "text": unit, "text_bank": unit,
    }  # fmt: skip
    losses = module(batch)
    assert "draft" in losses
    assert "flow" not in losses
    losses["draft"].backward()
    assert bottleneck.queries.grad is not None
    assert bottleneck.queries.grad.abs().max() > 0
    assert all(p.grad is None for n, p in loss.decoder.named_parameters() if ".draft." not in n)
    assert module(batch | {"x0": latents}).keys() == losses.keys() | {"flow"}


def test_a_written_caption_takes_its_own_place_in_the_batch() -> None:
    encoder, (loss, _) = tiny_encoder({"en": 5}), tiny_objective("latent-diffusion")
    bottleneck = SpeechBottleneck(encoder.config.width, 3, tokens=2, width=3, layers=1, heads=2)
    stage = load_recipe("garden-mini").stages.decoder
    module = _Denoising(loss, {"pooled": encoder}, {"pooled": bottleneck}, stage, 0.03).eval()
    frames, mask = torch.randn(2, 6, encoder.config.width), torch.ones(2, 6, dtype=torch.bool)
    pieces, lengths, language = torch.tensor([[1, 0, 2, 0]] * 1), torch.tensor([4]), torch.zeros(3, dtype=torch.long)
    batch = {
        "group": torch.tensor(0), "frames": frames, "frames_mask": mask, "heard": torch.tensor([0, 2]),
        "read": torch.tensor([1]), "text_pieces": pieces, "text_lengths": lengths, "language": language,
    }  # fmt: skip
    tokens = module._condition("pooled", batch).tokens
    read = encoder.encode_text(pieces, lengths, language[:1])
    torch.testing.assert_close(tokens[[0, 2]], bottleneck(frames, mask, language[:2]).tokens)
    torch.testing.assert_close(tokens[1:2], bottleneck(read.frames, read.mask, language[:1]).tokens)


@pytest.mark.parametrize(
    ("asked", "device", "compiles"),
    [("never", "cuda", False), ("gpu", "cpu", False), ("gpu", "cuda", True), ("always", "cpu", True)],
)
@pytest.mark.parametrize("kind", ["latent-diffusion", "vq-diffusion-published"])
def test_the_layers_that_repeat_are_compiled_where_it_is_asked(
    asked: str, device: str, compiles: bool, kind: str
) -> None:
    task: Any = object.__new__(DecoderTask)
    task.stage = load_recipe("garden-mini", [f"stages.decoder.compile={asked}"]).stages.decoder
    made = tiny_objective(kind, layers=3, draft=2)[0].decoder
    module: Any = object.__new__(_Denoising)
    torch.nn.Module.__init__(module)
    module.objective = SimpleNamespace(decoder=made)
    task.compile(module, torch.device(device))
    compiled = [type(m).__name__ for m in made.modules() if m._compiled_call_impl is not None]
    wanted = ["_Block"] * 3 if kind == "vq-diffusion-published" else ["_DraftLayer"] * 2 + ["DecoderLayer"] * 3
    assert compiled == (wanted if compiles else [])
