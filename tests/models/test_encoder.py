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

from sta.data.audio import log_mel
from sta.errors import WeightsError
from sta.models.backbones.log_mel import FrameNorm, LogMelBackbone
from sta.models.bottleneck import SpeechBottleneck
from sta.models.encoder import (
    BLANK,
    EncoderOutput,
    SpeechEncoder,
    Stretches,
    ctc_compress,
    ctc_greedy_decode,
    pieces_to_frames,
)
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
    assert deaf.ctc is not None
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
    language = torch.zeros(1, dtype=torch.long)
    written = sure.encode_text(pieces, lengths, language)
    assert sure.ctc_embedding is not None
    x = sure.ctc_embedding((50 * codes).softmax(-1))
    heard = sure.in_context(Stretches(x, written.mask[:, :-1], sure.null_prosody[None], language, None, lengths))
    torch.testing.assert_close(heard.frames, written.frames, atol=1e-4, rtol=1e-4)
    assert written.ctc_logits is None
    assert written.mask.sum().item() == 6 + 1


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[[3, 4]], [list(range(1, 13)) * 2]])
def test_recordings_and_captions_in_one_pass_are_as_in_two(encoder: SpeechEncoder, pieces: list[list[int]]) -> None:
    """Whichever is longer."""
    mel, lengths, language = padded(clips(), 128, 0.0), torch.tensor(LENGTHS), torch.tensor([0, 1, 1])
    ids, sizes = pieces_to_frames(pieces)
    one = language[:1]
    recordings, captions = encoder.stretches(mel, lengths, language), encoder.text_stretches(ids, sizes, one)
    both = encoder.in_context(recordings.joined(captions))
    for part, alone in (
        (slice(0, 3), encoder(mel, lengths, language)),
        (slice(3, 4), encoder.encode_text(ids, sizes, one)),
    ):
        assert both.mask[part].sum(1).equal(alone.mask.sum(1))
        torch.testing.assert_close(both.frames[part][both.mask[part]], alone.frames[alone.mask], atol=1e-5, rtol=1e-4)


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


# --- the frames' norm -------------------------------------------------------------------------------------------


def test_the_gradient_of_the_frames_norm_is_autograds(generator: torch.Generator) -> None:
    norm = FrameNorm(3).train()
    scatter(norm)
    mask = torch.arange(7) < torch.tensor([7, 4])[:, None]
    x = torch.randn(2, 3, 7, generator=generator) * mask[:, None]
    weight, found = torch.randn(2, 3, 7, generator=generator), []
    for plain in (False, True):
        given = x.clone().requires_grad_()
        norm.zero_grad()
        if plain:
            values = given.transpose(1, 2)[mask]
            centred = (values - values.mean(0)) * torch.rsqrt(values.var(0, unbiased=False) + 1e-5)
            out = (
                torch.zeros(2, 7, 3).masked_scatter(mask[..., None], centred * norm.scale + norm.shift).transpose(1, 2)
            )
        else:
            out = norm(given, mask)
        (out * weight).sum().backward()
        found.append([out.detach(), given.grad, norm.scale.grad, norm.shift.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


# --- without a CTC head ----------------------------------------------------------------------------------------


def test_without_a_ctc_head_no_frame_is_merged_and_no_caption_enters() -> None:
    torch.manual_seed(0)
    encoder = SpeechEncoder({"en": 5}, width=16, convolutions=1, layers=1, heads=2, ctc_head=False).eval()
    out = encoder(torch.randn(2, 128, 80), torch.tensor([128, 60]), torch.zeros(2, dtype=torch.long))
    assert out.mask.sum(1).tolist() == [32 + 1, 15 + 1], "one for each acoustic frame, and one of the prosody"
    assert out.ctc_logits is None
    assert out.ctc_lengths.tolist() == encoder.acoustics.output_lengths(torch.tensor([128, 60])).tolist() == [32, 15]
    assert not any("ctc" in name for name, _ in encoder.named_parameters())
    with pytest.raises(WeightsError, match="trained without CTC and reads no captions"):
        encoder.encode_text(torch.tensor([[1, 2]]), torch.tensor([2]), torch.tensor([0]))


def test_whether_there_is_a_ctc_head_is_saved_with_the_weights(tmp_path: Path) -> None:
    SpeechEncoder({"en": 5}, width=16, convolutions=1, layers=1, heads=2, ctc_head=False).save_pretrained(tmp_path)
    again = SpeechEncoder.from_pretrained(tmp_path)
    assert again.ctc is None
    assert again.vocabulary == 6


@torch.no_grad()
def test_an_encoder_may_be_told_the_language() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "convolutions": 1, "layers": 1, "heads": 2, "ctc_head": False}
    told, untold = (
        SpeechEncoder({"en": 5, "ar": 7}, **sizes, language_embedding=is_told).eval() for is_told in (True, False)
    )
    inputs, lengths = torch.randn(1, 64, 80), torch.tensor([64])
    frames = [[e(inputs, lengths, torch.tensor([number])).frames for number in (0, 1)] for e in (told, untold)]
    assert not frames[0][0].allclose(frames[0][1], atol=1e-3)
    assert frames[1][0].equal(frames[1][1])


# ---- pieces without the blanks between ---------------------------------------------------------------------------


def test_stretches_read_as_blank_are_left_out() -> None:
    x = torch.arange(6.0)[None, :, None].repeat(3, 1, 2)
    best = torch.tensor([[0, 4, 4, 0, 4, 2], [1, 0, 0, 3, 5, 5], [0] * 6])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 6])
    frames, read, kept = ctc_compress(x, torch.nn.functional.one_hot(best, 6).float(), mask, drop_blanks=True)
    assert kept.sum(1).tolist() == [3, 2, 0]
    assert frames[0, :3, 0].tolist() == [1.5, 4.0, 5.0]
    assert read[0, :3].argmax(-1).tolist() == [4, 4, 2], "a piece that is said twice is two"
    assert frames[1, :2, 0].tolist() == [0.0, 3.0]


@torch.no_grad()
def test_a_caption_enters_without_blanks_and_without_layers_in_no_order() -> None:
    torch.manual_seed(0)
    made = SpeechEncoder({"en": 9}, width=16, convolutions=1, layers=0, drop_blanks=True).eval()
    language = torch.zeros(2, dtype=torch.long)
    spread = torch.tensor([[3, 0, 9, 4, 0, 0], [4, 0, 0, 0, 9, 3]])
    out = made.encode_text(spread, torch.tensor([5, 6]), language)
    assert out.mask.sum(1).tolist() == [4, 4]  # three pieces and the prosody
    torch.testing.assert_close(out.frames[0, :3], out.frames[1, [2, 1, 0]])
    speech = made(torch.randn(2, 128, 80), torch.tensor([128, 90]), language)
    assert speech.frames.isfinite().all()
    assert speech.mask[:, -1].all()


@torch.no_grad()
def test_without_acoustics_a_recording_is_to_the_rest_what_was_read_in_it() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "convolutions": 1, "layers": 1, "heads": 2}
    both, read = (SpeechEncoder({"en": 5}, **sizes, acoustics_above_ctc=kept).eval() for kept in (True, False))
    read.load_state_dict(both.state_dict())
    inputs, lengths, language = torch.randn(2, 128, 80), torch.tensor([128, 90]), torch.zeros(2, dtype=torch.long)
    hidden = both(inputs, lengths, language, torch.zeros(2, dtype=torch.bool))
    for asked in (None, torch.ones(2, dtype=torch.bool)):
        torch.testing.assert_close(read(inputs, lengths, language, asked).frames, hidden.frames)
    assert not both(inputs, lengths, language).frames.allclose(hidden.frames, atol=1e-2)
