"""Whisper's encoder (Radford et al. 2022) over windows no longer than the recordings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sta.models.backbones.pretrained import PretrainedBackbone
from sta.models.backbones.spectrum import whisper_mel
from sta.models.layers import length_mask
from sta.private import whisper_parts

SAMPLES_A_POSITION = 320


class WhisperBackbone(PretrainedBackbone):
    """Whisper's encoder over the first positions of its table, as many as the longest recording of the batch takes.

    transformers' own forward takes 30 seconds of whatever lasts two. Frames that have not seen the silence behind the
    recording are not those of the published model: in Whisper base those of 2-second recordings have with them a cosine
    of .998, .990, .978, .949, .931 and .885 in layers 1 to 6. The middle ones also tell words apart best across
    voices, so that the sum over the layers starts around them.
    """

    model_types = ("whisper",)
    part = "encoder"

    @staticmethod
    def first_layer_weights(layers: int) -> Tensor:
        """Return logits of a bell around six tenths of the depth."""
        return -((torch.linspace(0, 1, layers + 1) - 0.6) / 0.25).square()

    def adapt_model(self) -> None:
        """Drop the layers above the last one that is summed."""
        del whisper_parts(self.model)[3][max(self.layers) :]

    def hidden_states(self, wave: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the states of the layers [B, S, C], the last of all after the final norm, and their lengths [B]."""
        first, second, table, layers, norm = whisper_parts(self.model)
        config, training = self.model.config, self.model.training
        most = config.max_source_positions
        positions = min(-(-wave.shape[1] // SAMPLES_A_POSITION), most)
        mel = whisper_mel(wave, 2 * min(positions + 1, most), config.num_mel_bins).transpose(1, 2)
        x = F.gelu(second(F.gelu(first(mel))))[..., :positions].transpose(1, 2)
        x = F.dropout(x + table.weight[:positions], config.dropout, training)
        lengths = (-(-lengths // SAMPLES_A_POSITION)).clamp(max=most)
        mask = length_mask(lengths, positions)[:, None, None]
        states = [x]
        for layer in layers:
            states.append(layer(states[-1], mask))
        if len(layers) == config.encoder_layers:
            states[-1] = norm(states[-1])
        return tuple(states), lengths
