"""Speech encoders on any speech backbone.

A backbone turns a recording into acoustic frames. A CTC head reads the frames, and what it read is added back to
them (self-conditioned CTC, Nozaki & Komatsu 2021); stretches that it read as one piece become one frame (CTC
compression, Gaido et al. 2021). So a written caption can enter at the same place and at the same pace, as the
posteriors of a perfect recognition. Above lies the same context network for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from sta.distributed.ahead import runs_ahead
from sta.errors import WeightsError
from sta.models.backbones import build_backbone
from sta.models.layers import TransformerLayer, length_mask, masked_mean, sinusoid_table
from sta.models.loading import save_beside

Disturbance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
BLANK = 0
FROZEN = "acoustics.model"  # the frozen model, among an encoder's weights
POSITION_SCALE = 0.3
# Lengths are rounded up, for every new shape is compiled anew on CPU: of recordings, of what was read in them, and
# of cached frames.
LENGTH_MULTIPLE, RAGGED_MULTIPLE, FRAME_MULTIPLE = 64, 16, 8


@dataclass(frozen=True)
class EncoderOutput:
    """What the bottleneck reads, and what the CTC loss needs.

    Attributes:
        frames: [B, R+1, D], one for each of R stretches read; the last frame sums up the prosody.
        mask: [B, R+1], True where valid.
        ctc_logits: [B, S, P] over blank and the pieces of every language; None of a caption, and without a CTC head.
        ctc_lengths: [B], valid frames of ctc_logits.
        joint_logits: [B, S, P], of the pieces of all languages, as if the language were not known.
    """

    frames: Tensor
    mask: Tensor
    ctc_logits: Tensor | None
    ctc_lengths: Tensor
    joint_logits: Tensor | None = None

    def __getitem__(self, items: slice) -> EncoderOutput:
        """Return the frames of some utterances of the batch; the CTC head's logits are those of all."""
        return replace(self, frames=self.frames[items], mask=self.mask[items])


@dataclass(frozen=True)
class Stretches:
    """What goes into the context network: stretches that the CTC head read as one piece, or pieces of captions.

    Attributes:
        x: [B, R, D]. mask: [B, R], True where valid. prosody: [B, D].
        language: [B], numbers of `languages`, for what a language has of its own.
        ctc_logits, ctc_lengths, joint_logits: as of `EncoderOutput`.
    """

    x: Tensor
    mask: Tensor
    prosody: Tensor
    language: Tensor
    ctc_logits: Tensor | None
    ctc_lengths: Tensor
    joint_logits: Tensor | None = None

    def joined(self, other: Stretches) -> Stretches:
        """Return these and others as one batch; what the CTC head read stays that of these."""
        longest, both = max(self.x.shape[1], other.x.shape[1]), (self, other)
        x = torch.cat([nn.functional.pad(part.x, (0, 0, 0, longest - part.x.shape[1])) for part in both])
        mask = torch.cat([nn.functional.pad(part.mask, (0, longest - part.mask.shape[1])) for part in both])
        prosody = torch.cat([self.prosody, other.prosody.to(self.prosody.dtype)])
        return replace(self, x=x, mask=mask, prosody=prosody, language=torch.cat([self.language, other.language]))


class FrameConvolution(nn.Module):
    """What is near a frame is added to it: [B, S, D] of mask [B, S] to the same."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, 5, padding=2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        near = self.convolution((self.norm(x) * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        return x + nn.functional.relu(near)


class ContextLayer(nn.Module):
    """A convolution (neighbouring words) and a transformer layer (the sentence) over [B, R, D].

    The convolution is dense: on CPU a depthwise one of 15 frames takes longer.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, 7, padding=3)
        self.transformer = TransformerLayer(width, heads, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map x [B, R, D] of mask [B, R] to the same."""
        near = self.convolution((self.norm(x) * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        return self.transformer(x + near, mask)


class SpeechEncoder(ModelMixin, ConfigMixin):
    """Recordings, or their written captions, to frames [B, R+1, D].

    Args:
        pieces: language code -> number of its SentencePiece pieces, for the CTC head.
        width: D.
        convolutions: of log-mel's backbone.
        backbone: of `describe_backbone`; None is log-mel.
        ctc_head: whether there is one; without one frames are neither merged nor added to, and no caption enters.
        language_embedding: whether what goes into the context network is told its language.
        layers: of the context network; without any, stretches do not know their places either.
        drop_blanks: whether stretches that the CTC head read as blank are left out.
        frame_convolutions: between the backbone and the CTC head.
        acoustics_above_ctc: whether acoustic frames go on beside what the CTC head read; without them recordings and
            captions are alike to all that follows, and no prosody reaches it.
        phonemes: languages whose pieces are of phonemes, which whoever spells captions has to know.
    """

    config_name = "config.json"
    _repeated_blocks = ["ContextLayer"]  # noqa: RUF012 - what diffusers' `compile_repeated_blocks` compiles

    @register_to_config
    def __init__(
        self,
        pieces: dict[str, int],
        width: int = 192,
        convolutions: int = 5,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        backbone: dict[str, Any] | None = None,
        ctc_head: bool = True,
        language_embedding: bool = False,
        drop_blanks: bool = False,
        frame_convolutions: int = 0,
        acoustics_above_ctc: bool = True,
        phonemes: Sequence[str] = (),
    ):
        super().__init__()
        pieces = dict(sorted(pieces.items()))  # a saved configuration comes back sorted
        self.piece_offset = _piece_offsets(pieces)
        vocabulary = self.vocabulary
        self.acoustics = build_backbone(backbone, width, convolutions=convolutions, dropout=dropout)
        self.near = nn.ModuleList(FrameConvolution(width) for _ in range(frame_convolutions))
        self.ctc = nn.Linear(width, vocabulary) if ctc_head else None
        self.ctc_embedding = nn.Linear(vocabulary, width, bias=False) if ctc_head else None
        if self.ctc_embedding is not None:
            nn.init.normal_(self.ctc_embedding.weight)  # what was read must not drown in where it was read
        self.language = nn.Embedding(len(pieces), width) if language_embedding else None
        self.context = nn.ModuleList(ContextLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.prosody = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.null_prosody = nn.Parameter(torch.zeros(width))
        allowed = torch.zeros(len(pieces), vocabulary, dtype=torch.bool)
        for row, (code, count) in enumerate(pieces.items()):
            allowed[row, BLANK] = True
            allowed[row, self.piece_offset[code] : self.piece_offset[code] + count] = True
        self.register_buffer("allowed", allowed)  # persistent: diffusers leaves other buffers empty on loading

    @property
    def languages(self) -> list[str]:
        """Return the codes of the languages, in the order of their numbers."""
        return sorted(self.config.pieces)

    @property
    def vocabulary(self) -> int:
        """P: the pieces of every language, and the blank."""
        return 1 + sum(self.config.pieces.values())

    def language_index(self, language: str) -> int:
        """Return the number of a language."""
        return self.languages.index(language)

    def language_indices(self, languages: Sequence[str]) -> Tensor:
        """Return the numbers [B] of languages given by their codes, on the CPU."""
        return torch.tensor([self.language_index(code) for code in languages], dtype=torch.long)

    def save(self, folder: Path, shared: Path, frozen: nn.Module | None = None) -> None:
        """Write the encoder to a folder; a frozen published model goes to a file of the folder `shared`, once for all.

        Args:
            frozen: the model, where only its cached frames are read here.
        """
        acoustics, frozen = self.acoustics, frozen or self.acoustics.frozen_part
        self.acoustics = acoustics.reader()
        weights = {} if frozen is None else frozen.state_dict(prefix=f"{FROZEN}.")
        save_beside(self, folder, weights, shared)
        self.acoustics = acoustics

    def features(self, wave: np.ndarray) -> np.ndarray:
        """Return what is cached of a recording float32 [T] at 16 kHz: [S, F]."""
        return self.acoustics.cached_features(wave)

    def offset_pieces(self, ids: Sequence[int], language: str) -> list[int]:
        """Return a language's SentencePiece ids as ids of the CTC head's joint vocabulary."""
        return [self.piece_offset[language] + i for i in ids]

    def inputs(self, features: Tensor) -> Tensor:
        """Return cached features [B, S, F] as the floats that `forward` takes."""
        return self.acoustics.inputs(features)

    def forward(
        self, inputs: Tensor, lengths: Tensor, language: Tensor, keep_acoustics: Tensor | None = None
    ) -> EncoderOutput:
        """Encode recordings; the arguments are those of `stretches`."""
        return self.in_context(self.stretches(inputs, lengths, language, keep_acoustics))

    def read(self, inputs: Tensor, lengths: Tensor, language: Tensor) -> EncoderOutput:
        """Let the CTC head read recordings; the frames [B, S, D] are those that it reads.

        Args:
            inputs: of `inputs()`, [B, S, F].
            lengths: [B], valid rows of inputs.
            language: [B], numbers of `languages`.
        """
        x, lengths = self.acoustics(inputs, lengths)
        mask = length_mask(lengths, x.shape[1])
        for convolution in self.near:
            x = convolution(x, mask)
        if self.ctc is None:
            return EncoderOutput(x, mask, None, lengths)
        joint = self.ctc(x).float()
        return EncoderOutput(x, mask, joint.masked_fill(~self.allowed[language][:, None], -1e4), lengths, joint)

    def stretches(
        self, inputs: Tensor, lengths: Tensor, language: Tensor, keep_acoustics: Tensor | None = None
    ) -> Stretches:
        """Encode recordings up to the context network.

        Args:
            inputs, lengths, language: as of `read`.
            keep_acoustics: [B] bool; where False only what the CTC head read goes on.
        """
        heard = self.read(inputs, lengths, language)
        x, mask, logits, lengths = heard.frames, heard.mask, heard.ctc_logits, heard.ctc_lengths
        prosody = self.prosody(_mean_and_deviation(x, mask))
        if logits is None or self.ctc_embedding is None:
            return Stretches(x, mask, prosody, language, None, lengths)
        if not self.config.acoustics_above_ctc:
            keep_acoustics = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if keep_acoustics is not None:
            keep = keep_acoustics[:, None].to(x.dtype)
            x = x * keep[..., None]
            prosody = prosody * keep + self.null_prosody * (1 - keep)
        merged, posteriors, kept = ctc_compress(x, logits.softmax(-1), mask, self.config.drop_blanks)
        x = merged + self.ctc_embedding(posteriors.to(x.dtype))
        return Stretches(x, kept, prosody, language, logits, lengths, heard.joint_logits)

    def language_confidence(self, out: EncoderOutput) -> Tensor:
        """Compute how sure the CTC head is of what it reads if the language is each of `languages`: [B, L] in [0, 1].

        That is the share that the best piece has of all pieces but the blank, averaged over the frames by how far they
        are no blank. The head is surest in the language that is spoken; without one all are as sure.
        """
        if out.joint_logits is None:
            return torch.ones(len(out.frames), len(self.languages), device=out.frames.device)
        valid, found = length_mask(out.ctc_lengths, out.joint_logits.shape[1]), []
        for allowed in self.allowed:
            pieces = out.joint_logits.masked_fill(~allowed, -1e4).softmax(-1)[..., 1:] * valid[..., None]  # no blank
            found.append(pieces.amax(-1).sum(1) / pieces.sum((1, 2)).clamp_min(1e-6))
        return torch.stack(found, 1)

    @torch.no_grad()
    def encode(
        self, features: np.ndarray, lengths: np.ndarray, languages: Sequence[str], disturb: Disturbance | None = None
    ) -> EncoderOutput:
        """Encode recordings as they are cached, on the encoder's own device.

        Args:
            features: of `features()`, padded to [B, S, F].
            lengths: [B], valid rows of features.
            languages: B codes.
            disturb: changes inputs and lengths, which are on the host, as augmentation does.
        """
        device = self.null_prosody.device
        inputs, sizes = self.inputs(torch.from_numpy(features).to(device)), torch.from_numpy(lengths)
        if disturb is not None:
            inputs, sizes = disturb(inputs, sizes)
        out: EncoderOutput = self(inputs, sizes.to(device), self.language_indices(languages).to(device))
        return out

    def encode_text(self, pieces: Tensor, lengths: Tensor, language: Tensor) -> EncoderOutput:
        """Encode written captions; the arguments are those of `text_stretches`."""
        return self.in_context(self.text_stretches(pieces, lengths, language))

    def text_stretches(self, pieces: Tensor, lengths: Tensor, language: Tensor) -> Stretches:
        """Encode written captions up to the context network.

        Args:
            pieces: [B, R], the stretches of a perfect recognition (see `pieces_to_frames`). lengths: [B].
            language: [B], numbers of `languages`.

        Raises:
            WeightsError: the encoder has no CTC head.
        """
        if self.ctc_embedding is None:
            raise WeightsError("this encoder was trained without CTC and reads no captions; draw from a recording")
        if self.config.drop_blanks:
            first = (pieces == BLANK).int().argsort(dim=1, stable=True)  # the places of pieces, then those of blanks
            pieces, lengths = pieces.gather(1, first), (pieces != BLANK).sum(1)
            pieces = pieces[:, : _longest(lengths, pieces.shape[1])]
        x = nn.functional.embedding(pieces, self.ctc_embedding.weight.T)
        prosody = self.null_prosody.expand(len(pieces), -1)
        return Stretches(x, length_mask(lengths, pieces.shape[1]), prosody, language, None, lengths)

    def in_context(self, stretches: Stretches) -> EncoderOutput:
        """Let the stretches of each utterance see one another."""
        x, mask = stretches.x, stretches.mask
        if self.context:
            x = x + POSITION_SCALE * sinusoid_table(x.shape[1], x.shape[2], x.device).to(x.dtype)
        if self.language is not None:
            x = x + POSITION_SCALE * self.language(stretches.language)[:, None].to(x.dtype)
        for layer in self.context:
            x = layer(x, mask)
        frames = torch.cat([self.norm(x), stretches.prosody.to(x.dtype)[:, None]], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        return EncoderOutput(frames, mask, stretches.ctc_logits, stretches.ctc_lengths, stretches.joint_logits)


def ctc_compress(
    x: Tensor, posteriors: Tensor, mask: Tensor, drop_blanks: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Average the frames of every stretch with the same best piece (Gaido et al. 2021, section 3.1).

    Args:
        x: [B, S, D]; posteriors: [B, S, P]; mask: [B, S], True where valid.
        drop_blanks: leave out the stretches whose best piece is the blank.

    Returns:
        EncoderOutput [B, R, D], posteriors [B, R, P] and mask [B, R]; R is a multiple of 16.
    """
    best = posteriors.argmax(-1)
    starts = torch.cat([torch.ones_like(mask[:, :1]), best[:, 1:] != best[:, :-1]], 1)
    mask = mask & (best != BLANK) if drop_blanks else mask
    starts = starts & mask
    stretch, counts = starts.cumsum(1) - 1, starts.sum(1)
    places = torch.arange(_longest(counts, x.shape[1]), device=x.device)
    belongs = ((stretch[:, None] == places[:, None]) & mask[:, None]).float()  # [B, R, S]
    weights = belongs / belongs.sum(-1, keepdim=True).clamp_min(1)
    return weights.to(x.dtype) @ x, weights @ posteriors, places < counts[:, None]


def pieces_to_frames(pieces: Sequence[Sequence[int]], seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Write pieces as the stretches of a CTC head that read them: a piece, then a blank.

    Args:
        pieces: ids of the joint vocabulary, one list per caption.
        seeds: one per caption, for which of its pieces a blank follows; without them one follows every piece.

    Returns:
        Ids [B, R], padded with blanks to a multiple of 16, and lengths [B].
    """
    spans = [[2] * len(caption) for caption in pieces]
    if seeds is not None:
        generator = torch.Generator()
        spans = [
            torch.randint(1, 3, (len(caption),), generator=generator.manual_seed(seed)).tolist()
            for caption, seed in zip(pieces, seeds, strict=True)
        ]
    for caption, span in zip(pieces, spans, strict=True):  # without a blank between, a repeated piece would merge
        span[:-1] = [max(s, 1 + (a == b)) for s, a, b in zip(span[:-1], caption[:-1], caption[1:], strict=True)]
    lengths = [max(1, sum(span)) for span in spans]
    ids = np.full((len(pieces), -(-max(lengths) // RAGGED_MULTIPLE) * RAGGED_MULTIPLE), BLANK, np.int64)
    for row, caption, span in zip(ids, pieces, spans, strict=True):
        row[np.cumsum([0, *span[:-1]])[: len(caption)]] = caption
    return torch.from_numpy(ids), torch.tensor(lengths)


def ctc_greedy_decode(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Return the best path of CTC logits [B, S, P], repeats merged and blanks dropped: joint ids per recording."""
    best = logits.argmax(-1).tolist()
    return [
        [p for i, p in enumerate(row[:n]) if p != BLANK and (i == 0 or row[i - 1] != p)]
        for row, n in zip(best, lengths.tolist(), strict=True)
    ]


def _longest(lengths: Tensor, most: int) -> int:
    """Return the longest length, a multiple of 16; of a device that runs ahead of the host, what is the most."""
    longest = most if runs_ahead(lengths.device) else int(lengths.max())
    return -(-longest // RAGGED_MULTIPLE) * RAGGED_MULTIPLE


def _piece_offsets(pieces: Mapping[str, int]) -> dict[str, int]:
    first, following = {}, BLANK + 1
    for code, count in pieces.items():
        first[code] = following
        following += count
    return first


def _mean_and_deviation(x: Tensor, mask: Tensor) -> Tensor:
    mean = masked_mean(x.float(), mask)
    deviation = (masked_mean(x.float().pow(2), mask) - mean.pow(2)).clamp_min(1e-5).sqrt()
    return torch.cat([mean, deviation], -1).to(x.dtype)
