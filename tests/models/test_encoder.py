"""The speech encoder: padding changes nothing, languages keep to their pieces, every loss reaches it.

Parameters are scattered first (see `scatter`): a shift of zero would hide a leak.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sta.config.recipe import DistillStage
from sta.data.audio import log_mel
from sta.models.backbones.log_mel import FrameNorm, LogMelBackbone
from sta.models.bottleneck import SpeechBottleneck
from sta.models.encoder import (
    BLANK,
    EncoderOutput,
    SpeechEncoder,
    ctc_compress,
    ctc_greedy_decode,
    pieces_to_frames,
)
from sta.training.tasks.distill import _Distillation
from tests.conftest import scatter, tiny_encoder

LENGTHS = (52, 128, 97)


@pytest.fixture(scope="module")
def bottleneck() -> SpeechBottleneck:
    torch.manual_seed(0)
    made = SpeechBottleneck(16, 6, tokens=3, width=4, layers=2, heads=2)
    return scatter(made).eval()  # type: ignore[return-value]


def clips(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 80, generator=generator) for n in LENGTHS[:count]]


def padded(items: list[Tensor], longest: int, filler: float) -> Tensor:
    return torch.stack([torch.cat([x, torch.full((longest - len(x), 80), filler)]) for x in items])


def assert_same(alone: EncoderOutput, batch: EncoderOutput, row: int) -> None:
    n = int(alone.ctc_lengths[0])
    assert int(batch.ctc_lengths[row]) == n
    close: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
    assert alone.ctc_logits is not None
    assert batch.ctc_logits is not None
    torch.testing.assert_close(batch.ctc_logits[row, :n], alone.ctc_logits[0, :n], **close)
    stretches = int(alone.mask.sum()) - 1
    assert int(batch.mask[row].sum()) - 1 == stretches
    torch.testing.assert_close(batch.frames[row, :stretches], alone.frames[0, :stretches], **close)
    torch.testing.assert_close(batch.frames[row, -1], alone.frames[0, -1], **close)


@torch.no_grad()
def test_a_clip_alone_is_the_clip_in_a_batch(encoder: SpeechEncoder) -> None:
    items, language = clips(), torch.tensor([0, 1, 0])
    batch = encoder(padded(items, 128, 7.0), torch.tensor(LENGTHS), language)
    for row, item in enumerate(items):
        alone = encoder(item[None], torch.tensor([len(item)]), language[row : row + 1])
        assert_same(alone, batch, row)


@torch.no_grad()
def test_tokens_of_a_clip_alone_are_those_in_a_batch(encoder: SpeechEncoder, bottleneck: SpeechBottleneck) -> None:
    items, language = clips(), torch.tensor([0, 1, 0])
    batch = encoder(padded(items, 192, 0.0), torch.tensor(LENGTHS), language)
    together = bottleneck(batch.frames, batch.mask, language)
    for row, item in enumerate(items):
        out = encoder(item[None], torch.tensor([len(item)]), language[row : row + 1])
        alone = bottleneck(out.frames, out.mask, language[row : row + 1])
        torch.testing.assert_close(together.tokens[row], alone.tokens[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.embedding[row], alone.embedding[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_features_are_encoded_as_inputs_are(encoder: SpeechEncoder) -> None:
    features = np.random.default_rng(0).integers(256, size=(3, 128, 80), dtype=np.uint8)
    lengths, codes = np.array(LENGTHS), ["en", "ar", "en"]
    out = encoder.encode(features, lengths, codes)
    inputs, sizes = encoder.inputs(torch.from_numpy(features)), torch.from_numpy(lengths)
    assert out.frames.equal(encoder(inputs, sizes, torch.tensor([1, 0, 1])).frames)
    disturbed = encoder.encode(features, lengths, codes, lambda x, n: (x * 0.5, n - 8))
    assert disturbed.frames.equal(encoder(inputs * 0.5, sizes - 8, torch.tensor([1, 0, 1])).frames)


@torch.no_grad()
def test_a_head_is_surest_of_the_language_that_it_reads(encoder: SpeechEncoder) -> None:
    """Four frames of Arabic pieces (1 to 7), of which two are blank, and padding that would say otherwise."""
    logits = torch.zeros(1, 6, 13)
    logits[0, [0, 2], [3, 6]] = 9.0
    logits[0, [1, 3], 0] = 30.0
    logits[0, 4:, 8] = 9.0
    out = EncoderOutput(torch.zeros(1, 1, 16), torch.ones(1, 1, dtype=torch.bool), None, torch.tensor([4]), logits)
    arabic, english = encoder.language_confidence(out)[0]
    assert arabic > 0.99
    assert english == pytest.approx(1 / 5, abs=1e-3)  # five pieces, one as likely as the other


@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(encoder: SpeechEncoder) -> None:
    items, language = clips(), torch.tensor([0, 1, 0])
    one, two = (encoder(padded(items, 128, f), torch.tensor(LENGTHS), language) for f in (0.0, 50.0))
    for row in range(3):
        n = int(one.ctc_lengths[row])
        torch.testing.assert_close(one.frames[row, :n], two.frames[row, :n])
        torch.testing.assert_close(one.frames[row, -1], two.frames[row, -1])


@torch.no_grad()
def test_shapes_and_masks(encoder: SpeechEncoder) -> None:
    out = encoder(padded(clips(), 128, 0.0), torch.tensor(LENGTHS), torch.tensor([0, 1, 0]))
    longest = out.frames.shape[1] - 1
    assert longest % 16 == 0
    assert out.frames.shape == (3, longest + 1, 16)
    assert out.mask.shape == (3, longest + 1)
    assert out.ctc_logits is not None
    assert out.ctc_logits.shape == (3, 32, 13)
    assert out.ctc_lengths.tolist() == [13, 32, 25]
    read = [logits[:n].argmax(-1) for logits, n in zip(out.ctc_logits, out.ctc_lengths.tolist(), strict=True)]
    assert out.mask.sum(1).tolist() == [len(ids.unique_consecutive()) + 1 for ids in read]
    assert out.mask[:, -1].all()


def test_stretches_read_as_one_piece_become_their_mean() -> None:
    x = torch.arange(6.0)[None, :, None].repeat(2, 1, 3)  # frame t is t everywhere
    posteriors = torch.nn.functional.one_hot(torch.tensor([[4, 4, 0, 0, 0, 2], [1, 1, 1, 3, 5, 5]]), 6).float()
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    frames, read, kept = ctc_compress(x, posteriors, mask)
    assert frames.shape == (2, 16, 3)
    assert kept.sum(1).tolist() == [3, 2]
    assert frames[0, :3, 0].tolist() == [0.5, 3.0, 5.0]
    assert frames[1, :2, 0].tolist() == [1.0, 3.0]
    assert read[0, :3].argmax(-1).tolist() == [4, 0, 2]
    assert frames[0, 3:].abs().max() == 0
    torch.testing.assert_close(read[0, :3].sum(-1), torch.ones(3))


def test_frame_norm_measures_valid_frames_only() -> None:
    norm = FrameNorm(4, momentum=1.0).train()
    x = 3 + 2 * torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(50) < torch.tensor([50, 30, 10])[:, None]
    x = x * mask[:, None]
    normed = norm(x, mask)
    valid = normed.transpose(1, 2)[mask]
    torch.testing.assert_close(valid.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(valid.var(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    assert normed.transpose(1, 2)[~mask].abs().max() == 0
    torch.testing.assert_close(norm.eval()(x, mask), normed, atol=1e-5, rtol=1e-5)  # momentum 1 keeps the last batch


def test_a_frame_hears_a_slow_word() -> None:
    """1.7 s of recording around a frame reach it, and no more than that."""
    torch.manual_seed(0)
    acoustics = LogMelBackbone(8, convolutions=5, dropout=0.0).eval()
    mel = torch.randn(1, 400, 80, requires_grad=True)
    frames, lengths = acoustics(mel, torch.tensor([400]))
    frames[0, 50, 0].backward()
    assert mel.grad is not None
    heard = mel.grad[0].abs().sum(1).nonzero().flatten()
    assert int(lengths) == 100
    assert int(heard.max() - heard.min()) == 172


@torch.no_grad()
def test_each_language_reads_its_own_pieces(encoder: SpeechEncoder) -> None:
    assert encoder.languages == ["ar", "en"]
    mel = clips(1)[0].expand(2, -1, -1)
    languages = torch.tensor([encoder.language_index("ar"), encoder.language_index("en")])
    logits = encoder(mel, torch.tensor([52, 52]), languages).ctc_logits
    assert logits is not None
    possible = (logits > -1e3).all(1)
    ar, en = encoder.offset_pieces(range(7), "ar"), encoder.offset_pieces(range(5), "en")
    assert possible[0].nonzero().flatten().tolist() == [BLANK, *ar]
    assert possible[1].nonzero().flatten().tolist() == [BLANK, *en]
    assert sorted([BLANK, *ar, *en]) == list(range(13))


@torch.no_grad()
def test_hidden_acoustics_are_hidden() -> None:
    """With a CTC head that reads the same in everything, nothing of a hidden recording goes on."""
    deaf = tiny_encoder()
    deaf.ctc.weight.zero_()
    one, two = torch.randn(2, 64, 80, generator=torch.Generator().manual_seed(0))
    lengths, language = torch.tensor([64, 64]), torch.tensor([0, 0])
    hidden = deaf(torch.stack([one, two]), lengths, language, torch.tensor([False, False])).frames
    torch.testing.assert_close(hidden[0], hidden[1])
    mixed = deaf(torch.stack([one, two]), lengths, language, torch.tensor([True, False])).frames
    torch.testing.assert_close(mixed[1], hidden[1])
    heard = deaf(torch.stack([one, two]), lengths, language).frames
    torch.testing.assert_close(mixed[0], heard[0])
    assert not heard[0].allclose(heard[1], atol=1e-2)
    assert not heard[0, -1].allclose(heard[1, -1], atol=1e-3)


@torch.no_grad()
def test_what_was_read_goes_on_when_acoustics_are_hidden(encoder: SpeechEncoder) -> None:
    mel = torch.randn(2, 64, 80, generator=torch.Generator().manual_seed(0))
    frames = encoder(mel, torch.tensor([64, 64]), torch.tensor([0, 0]), torch.tensor([False, False])).frames
    assert not frames[0, :-1].allclose(frames[1, :-1], atol=1e-2)
    torch.testing.assert_close(frames[0, -1], frames[1, -1])  # the prosody is hidden as well


@torch.no_grad()
def test_a_perfect_reading_is_the_written_caption(encoder: SpeechEncoder) -> None:
    """Hidden acoustics under a CTC head that reads without doubt give the frames of the text branch."""
    pieces, lengths = pieces_to_frames([[3, 9, 4]])
    sure = tiny_encoder()
    codes = torch.nn.functional.one_hot(pieces, 13).float()
    written = sure.encode_text(pieces, lengths, torch.zeros(1, dtype=torch.long))
    mask = written.mask[:, :-1]
    zeros = torch.zeros(1, pieces.shape[1], 16)
    heard = sure._in_context(zeros, (50 * codes).softmax(-1), sure.null_prosody[None], mask, None, lengths)
    torch.testing.assert_close(heard.frames, written.frames, atol=1e-4, rtol=1e-4)
    assert written.ctc_logits is None
    assert written.mask.sum().item() == 6 + 1


@torch.no_grad()
def test_padding_of_written_captions_changes_nothing(encoder: SpeechEncoder) -> None:
    both, lengths = pieces_to_frames([[3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
    assert both.shape == (2, 32)
    alone, length = pieces_to_frames([[3, 4]])
    assert alone.shape == (1, 16)
    language = torch.tensor([0, 1])
    together, single = encoder.encode_text(both, lengths, language), encoder.encode_text(alone, length, language[:1])
    torch.testing.assert_close(together.frames[0, :4], single.frames[0, :4], atol=1e-5, rtol=1e-5)


captions = st.lists(st.lists(st.integers(1, 12), max_size=12), min_size=1, max_size=4)


def _one_hot(ids: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(ids, 13).float()


@given(captions)
def test_written_pieces_are_read_back(pieces: list[list[int]]) -> None:
    ids, lengths = pieces_to_frames(pieces)
    assert ids.shape[1] % 16 == 0
    assert ctc_greedy_decode(_one_hot(ids), lengths) == pieces


def _without_repeats(pieces: list[list[int]]) -> list[list[int]]:
    return [[p for i, p in enumerate(c) if i == 0 or c[i - 1] != p] for c in pieces]


@given(captions.map(_without_repeats), st.integers(0, 99))
def test_written_pieces_are_read_back_at_any_pace(pieces: list[list[int]], seed: int) -> None:
    ids, lengths = pieces_to_frames(pieces, [seed + i for i in range(len(pieces))])
    assert ctc_greedy_decode(_one_hot(ids), lengths) == pieces
    assert all(len(c) <= n <= max(1, 2 * len(c)) for c, n in zip(pieces, lengths.tolist(), strict=True))


def test_repeated_pieces_are_read_back_at_any_pace() -> None:
    pieces = [[3, 3, 3, 4, 4]] * 20
    assert ctc_greedy_decode(_one_hot(pieces_to_frames(pieces, list(range(20)))[0]), torch.full((20,), 15)) == pieces


def test_ctc_merges_repeats_and_stops_at_the_length() -> None:
    path = torch.tensor([[5, 5, 0, 5, 6, 6, 0, 7], [0, 0, 1, 1, 2, 0, 0, 0]])
    assert ctc_greedy_decode(_one_hot(path), torch.tensor([7, 4])) == [[5, 5, 6], [1]]


def test_features_are_what_inputs_expects(encoder: SpeechEncoder) -> None:
    wave = (0.3 * np.sin(np.arange(16_000) / 9)).astype(np.float32)
    features = encoder.features(wave)
    np.testing.assert_array_equal(features, log_mel(wave))
    inputs = encoder.inputs(torch.from_numpy(features)[None])
    assert inputs.dtype == torch.float32
    assert float(inputs.abs().max()) < 5


@pytest.mark.parametrize("order", [("en", "ar"), ("ar", "en")])
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, order: tuple[str, str]) -> None:
    made = tiny_encoder({code: {"en": 5, "ar": 7}[code] for code in order})
    made.save_pretrained(tmp_path)
    again = SpeechEncoder.from_pretrained(tmp_path).eval()
    assert again.languages == made.languages
    assert again.piece_offset == made.piece_offset == {"ar": 1, "en": 8}
    assert again.allowed.equal(made.allowed)
    mel, lengths = padded(clips(), 128, 0.0), torch.tensor(LENGTHS)
    language = torch.tensor([made.language_index(c) for c in ("ar", "en", "en")])
    one, two = made(mel, lengths, language), again(mel, lengths, language)
    assert one.frames.equal(two.frames)
    assert one.ctc_logits is not None
    assert two.ctc_logits is not None
    assert one.ctc_logits.equal(two.ctc_logits)
    ids, n = pieces_to_frames([made.offset_pieces([0, 3], "en")])
    assert made.encode_text(ids, n, language[:1]).frames.equal(again.encode_text(ids, n, language[:1]).frames)


# --- distillation ---------------------------------------------------------------------------------------------


def distillation(**changes: float) -> _Distillation:
    torch.manual_seed(0)
    encoder = SpeechEncoder({"en": 5, "ar": 7}, width=16, convolutions=1, layers=1, heads=2)
    bottleneck = SpeechBottleneck(16, 6, tokens=3, width=4, layers=1, heads=2)
    losses = {"attributes": 1.0, **changes.pop("losses", {})}  # type: ignore[dict-item]
    stage = DistillStage(steps=1, batch=4, losses=losses, **changes)  # type: ignore[arg-type]
    return _Distillation(encoder, bottleneck, 2, {"head": 3, "size": 2}, stage).train()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def unit(count: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(count, 6, generator=generator), dim=-1)

    pieces, lengths = pieces_to_frames([[8, 9, 10], [1, 2]])
    return {
        "features": torch.randint(256, (4, 128, 80), generator=generator, dtype=torch.uint8),
        "lengths": torch.tensor([128, 100, 90, 60]), "language": torch.tensor([1, 0, 1, 0]),
        "mood": torch.tensor([0, 1, -1, 1]), "full": torch.tensor([True, False, True, True]),
        "text": unit(4), "image": unit(4), "text_bank": unit(8), "image_bank": unit(8),
        "pieces": torch.tensor([8, 9, 10, 1, 2, 11, 12, 3]), "counts": torch.tensor([3, 2, 2, 1]),
        "read_frames": pieces, "read_lengths": lengths, "read_language": torch.tensor([1, 0]),
        "read_full": torch.tensor([True, False]), "read_text": unit(2), "read_image": unit(2),
        "read_pieces": torch.tensor([8, 9, 10, 1, 2]), "read_counts": torch.tensor([3, 2]),
        "attributes": torch.tensor([[2, 1], [0, 0], [1, 0], [0, 1]]), "read_attributes": torch.tensor([[1, 1], [2, 0]]),
    }  # fmt: skip


def reached(module: _Distillation, loss: Tensor) -> set[str]:
    module.zero_grad()
    loss.backward(retain_graph=True)
    return {n for n, p in module.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}


@pytest.mark.parametrize("loss", ["ctc", "kl", "image", "text", "caption", "attributes", "mood", "text_branch"])
def test_every_loss_reaches_the_encoder(loss: str) -> None:
    module = distillation(acoustic_dropout=0.0, augment=0.0)
    torch.manual_seed(0)
    losses = module(batch())
    assert set(losses) == {"ctc", "kl", "image", "text", "caption", "attributes", "mood", "text_branch"}
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    names = reached(module, losses[loss])
    if loss == "text_branch":
        assert {"encoder.ctc_embedding.weight", "encoder.null_prosody", "bottleneck.queries"} <= names
        assert not any("acoustics" in n for n in names)
        return
    acoustic = {n for n, _ in module.named_parameters() if n.startswith("encoder.acoustics.")}
    assert acoustic <= names
    assert ("bottleneck.queries" in names) == (loss != "ctc")
    assert ("mood.weight" in names) == (loss == "mood")
    assert ("attributes.weight" in names) == (loss == "attributes")
    assert ("captioner.out.weight" in names) == (loss == "caption")


def test_together_the_losses_reach_every_parameter() -> None:
    module = distillation(acoustic_dropout=0.0, augment=1.0)
    torch.manual_seed(0)
    losses = module(batch())
    assert reached(module, torch.stack(list(losses.values())).sum()) == {n for n, _ in module.named_parameters()}


def test_losses_that_weigh_nothing_are_not_computed() -> None:
    stage = {"losses": {"mood": 0.0, "caption": 0.0, "attributes": 0.0, "text_branch": 0.0}}
    assert set(distillation(**stage)(batch())) == {"ctc", "kl", "image", "text"}  # type: ignore[arg-type]


@torch.no_grad()
def test_pictures_weigh_only_where_the_caption_is_full() -> None:
    module = distillation(acoustic_dropout=0.0, augment=0.0).eval()
    whole, other = batch(), batch()
    other["image"][1] = -other["image"][1]  # a short phrase's picture
    stand_in = whole["image_bank"]
    one, two = module(whole), module(other)
    assert stand_in.equal(other["image_bank"])
    torch.testing.assert_close(one["text"], two["text"])
    none = batch() | {"full": torch.zeros(4, dtype=torch.bool)}
    assert float(module(none)["image"]) == 0


def test_unknown_moods_do_not_count() -> None:
    module = distillation(acoustic_dropout=0.0, augment=0.0).eval()
    nobody = batch() | {"mood": torch.full((4,), -1)}
    assert float(module(nobody)["mood"]) == 0
    hidden = distillation(acoustic_dropout=1.0, augment=0.0).eval()
    assert float(hidden(batch())["mood"]) == 0, "a hidden delivery must not be guessed"
