"""The decoder stage's batches, where the written share is spread over the ranks, and its two losses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sta.config.recipe import load_recipe
from sta.distributed.sharding import BatchShard
from sta.errors import RecipeError
from sta.models.bottleneck import SpeechBottleneck
from sta.models.captioner import pad_captions
from sta.models.encoder import SpeechEncoder
from sta.training.task import compile_layers, compiles
from sta.training.tasks.decoder import DecoderBatch, DecoderTask, _Denoising, between, frames_of, taught_mask, text_mask
from tests.conftest import tiny_encoder
from tests.release_fixtures import tiny_objective
from tests.training.facts import FACTS


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
    captions = torch.from_numpy(pad_captions([[1], [2, 3], [4], [5]], np.ones(4, bool)))
    batch = replace(spoken(encoder), x0=x0[:4], text=unit, text_known=torch.ones(4), text_bank=unit, pieces=captions)
    losses = module(batch)
    assert ("caption" in losses) == bool(weight)
    if weight:
        losses["caption"].backward()
        assert bottleneck.queries.grad is not None
        assert bottleneck.queries.grad.abs().max() > 0
        assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize(("share", "stores"), [(0.0, 2), (0.25, 2), (1.0, 2), (0.5, 1)])
def test_a_share_of_the_recordings_is_heard_disturbed(share: float, stores: int) -> None:
    frames = [np.zeros(400), np.ones(400)][:stores]
    heard = [float(frames_of(frames, place, share, [1, 3])) for place in range(400)]
    assert abs(np.mean(heard) - share * (stores == 2)) < 0.07
    assert heard == [float(frames_of(frames, place, share, [1, 3])) for place in range(400)]
    if 0 < share < 1 and stores == 2:
        assert heard != [float(frames_of(frames, place, share, [1, 4])) for place in range(400)]


def spoken(encoder: SpeechEncoder) -> DecoderBatch:
    """Four recordings, and no caption."""
    frames, mask = torch.randn(4, 6, encoder.config.width), torch.ones(4, 6, dtype=torch.bool)
    none = torch.arange(0)
    return DecoderBatch(0, torch.zeros(4, dtype=torch.long), torch.arange(4), none, none, frames, mask)


def test_captions_that_the_teacher_does_not_read_have_no_text_loss() -> None:
    encoder, (loss, _) = tiny_encoder({"en": 5}), tiny_objective("latent-diffusion")
    bottleneck = SpeechBottleneck(encoder.config.width, 3, tokens=2, width=3, layers=1, heads=2)
    stage = load_recipe("garden-mini").stages.decoder
    module = _Denoising(loss, {"pooled": encoder}, {"pooled": bottleneck}, stage, 0.03).eval()
    text, other, bank = (torch.nn.functional.normalize(torch.randn(4, 3), dim=-1) for _ in range(3))
    known = torch.tensor([1.0, 0.0, 1.0, 0.0])
    batch = replace(spoken(encoder), text=text, text_known=known, text_bank=bank)
    unread = torch.where(known[:, None] > 0, text, other)
    torch.testing.assert_close(module(replace(batch, text=unread))["text"], module(batch)["text"])
    assert module(replace(batch, text_known=torch.zeros(4)))["text"].item() == 0


def test_a_batch_without_pictures_trains_the_draft_and_the_bottleneck_alone() -> None:
    encoder = tiny_encoder({"en": 5})
    loss, _ = tiny_objective("latent-diffusion", draft=1)
    bottleneck = SpeechBottleneck(encoder.config.width, 3, tokens=2, width=3, layers=1, heads=2)
    stage = load_recipe("garden-mini").stages.decoder
    module = _Denoising(loss, {"pooled": encoder}, {"pooled": bottleneck}, stage, 0.03)
    latents, unit = torch.randn(4, 3, 4, 4), torch.nn.functional.normalize(torch.randn(4, 3), dim=-1)
    batch = replace(spoken(encoder), latents=latents, text=unit, text_known=torch.ones(4), text_bank=unit)
    losses = module(batch)
    assert "draft" in losses
    assert "flow" not in losses
    losses["draft"].backward()
    assert bottleneck.queries.grad is not None
    assert bottleneck.queries.grad.abs().max() > 0
    assert all(p.grad is None for n, p in loss.decoder.named_parameters() if ".draft." not in n)
    assert module(replace(batch, x0=latents)).keys() == losses.keys() | {"flow"}


def test_a_written_caption_takes_its_own_place_in_the_batch() -> None:
    encoder, (loss, _) = tiny_encoder({"en": 5}), tiny_objective("latent-diffusion")
    bottleneck = SpeechBottleneck(encoder.config.width, 3, tokens=2, width=3, layers=1, heads=2)
    stage = load_recipe("garden-mini").stages.decoder
    module = _Denoising(loss, {"pooled": encoder}, {"pooled": bottleneck}, stage, 0.03).eval()
    frames, mask = torch.randn(2, 6, encoder.config.width), torch.ones(2, 6, dtype=torch.bool)
    pieces, lengths, language = torch.tensor([[1, 0, 2, 0]] * 1), torch.tensor([4]), torch.zeros(3, dtype=torch.long)
    batch = DecoderBatch(
        0, language, torch.tensor([0, 2]), torch.tensor([1]), torch.arange(0), frames, mask, None, pieces, lengths
    )  # fmt: skip
    tokens = module._condition("pooled", batch).tokens
    read = encoder.encode_text(pieces, lengths, language[:1])
    torch.testing.assert_close(tokens[[0, 2]], bottleneck(frames, mask, language[:2]).tokens)
    torch.testing.assert_close(tokens[1:2], bottleneck(read.frames, read.mask, language[:1]).tokens)


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [("never", "cuda", False), ("gpu", "cpu", False), ("gpu", "cuda", True), ("always", "cpu", True)],
)
def test_a_stage_is_compiled_where_it_is_asked(asked: str, device: str, expected: bool) -> None:
    assert compiles(asked, torch.device(device)) == expected


@pytest.mark.parametrize("kind", ["latent-diffusion", "vq-diffusion-published", "speech"])
def test_the_layers_that_repeat_are_compiled(kind: str) -> None:
    made: list[torch.nn.Module] = [tiny_encoder(), SpeechBottleneck(16, 3, tokens=2, width=3, layers=2, heads=2)]
    if kind != "speech":
        made = [tiny_objective(kind, layers=3, draft=2)[0].decoder]
    compile_layers(*made)
    compiled = [type(m).__name__ for each in made for m in each.modules() if m._compiled_call_impl is not None]
    wanted = {
        "vq-diffusion-published": ["_Block"] * 3, "latent-diffusion": ["_DraftLayer"] * 2 + ["DecoderLayer"] * 3,
        "speech": ["ContextLayer", *["QueryLayer"] * 2],
    }  # fmt: skip
    assert compiled == wanted[kind]


# ---- the teacher's views in the place of speech ------------------------------------------------------------------


def test_views_take_the_last_places_and_leave_none_to_speech_at_a_share_of_one() -> None:
    assert taught_mask(8, 0.25).tolist() == [False] * 6 + [True] * 2
    assert taught_mask(8, 1).all()


def test_a_view_lies_between_caption_and_label_as_far_as_the_noise_lets_it() -> None:
    ends = torch.nn.functional.normalize(torch.randn(2, 1, 64), dim=-1).expand(2, 500, 64)
    torch.manual_seed(0)
    clean, noisy = (between(ends, most) for most in (0.0, 1.0))
    inside = clean @ ends[:, 0].T
    assert torch.allclose(clean.norm(dim=-1), torch.ones(500))
    assert (inside >= (ends[0, 0] @ ends[1, 0]) - 1e-5).all()
    assert inside.amin(0).lt(0.9).all()  # neither end alone
    assert 0.6 < (noisy @ ends[:, 0].T).amax(1).mean() < (clean @ ends[:, 0].T).amax(1).mean()


def test_views_stand_in_for_some_recordings_and_for_all() -> None:
    encoder, (objective, x0) = tiny_encoder({"en": 5}), tiny_objective("latent-diffusion")
    bottleneck = SpeechBottleneck(encoder.config.width, 3, tokens=2, width=3, layers=1, heads=2)
    stage = load_recipe("garden-mini", ["stages.decoder.teacher_noise=0"]).stages.decoder
    module = _Denoising(objective, {"pooled": encoder}, {"pooled": bottleneck}, stage, 0.03).eval()
    view = torch.nn.functional.normalize(torch.randn(1, 4, 3), dim=-1).expand(2, 4, 3)
    whole = spoken(encoder)
    assert whole.frames is not None
    assert whole.frames_mask is not None
    alone = module._condition("pooled", whole)
    some = replace(
        whole, spoken=torch.arange(2), taught=torch.tensor([2, 3]), frames=whole.frames[:2],
        frames_mask=whole.frames_mask[:2], views=view[:, 2:],
    )  # fmt: skip
    mixed = module._condition("pooled", some)
    torch.testing.assert_close(mixed.embedding[:2], alone.embedding[:2])
    torch.testing.assert_close(mixed.embedding[2:], view[0, 2:])
    every = replace(whole, spoken=torch.arange(0), taught=torch.arange(4), frames=None, frames_mask=None, views=view)
    torch.testing.assert_close(module._condition("pooled", every).embedding, view[0])
    assert module(replace(every, x0=x0[:4]))["flow"].isfinite()


def test_views_need_a_decoder_that_reads_the_embedding_alone() -> None:
    with pytest.raises(RecipeError, match="set decoder.condition to embedding"):
        DecoderTask.check(load_recipe("garden-mini", ["stages.decoder.teacher_ratio=0.5"]))
    DecoderTask.check(load_recipe("garden-mini", ["stages.decoder.teacher_ratio=0.5", "decoder.condition=embedding"]))


def test_a_memory_starts_between_what_was_said_and_what_it_names() -> None:
    kind = ["decoder.draft=1", "decoder.draft_hidden=8", "decoder.draft_memory=6", "decoder.condition=embedding"]
    recipe = load_recipe("garden-tiny", [*kind, "stages.decoder.teacher_ratio=1"])
    made = [DecoderTask.build_network(recipe, FACTS, "decoder") for _ in range(2)]
    width = made[0].objective.decoder.config.embedding_width
    said, named = torch.eye(width)[0], torch.eye(width)[1]
    for module in made:
        task: Any = SimpleNamespace(
            module=module, workspace=SimpleNamespace(recipe=recipe), rows={"pooled": np.arange(4)},
            _views=lambda rows: {"views": torch.stack([said, named])[:, None].expand(-1, len(rows), -1)},
        )  # fmt: skip
        DecoderTask._start_from_views(task)
    first, second = (module.objective.decoder.trunk.draft.memory.keys for module in made)
    assert first.equal(second), "every rank starts alike"
    torch.testing.assert_close(first.norm(dim=1), torch.ones(6))
    assert (first[:, :2] > 0).all()
    assert not first[:, 2:].any()
