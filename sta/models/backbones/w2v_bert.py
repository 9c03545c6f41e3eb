"""w2v-BERT 2.0 (Barrault et al. 2023), which takes log-mel features, two frames of 10 ms stacked into one."""

from __future__ import annotations

from torch import Tensor

from sta.models.backbones.pretrained import PretrainedBackbone
from sta.models.backbones.spectrum import kaldi_mel
from sta.models.layers import length_mask

STACKED = 2


class W2vBertBackbone(PretrainedBackbone):
    """w2v-BERT 2.0 with the features of SeamlessM4TFeatureExtractor, computed on the device."""

    model_types = ("wav2vec2-bert",)

    def hidden_states(self, wave: Tensor, lengths: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the states of all layers [B, S, C] and their lengths [B]."""
        mel, lengths = kaldi_mel(wave, lengths, self.model.config.feature_projection_input_dim // STACKED)
        longest, lengths = mel.shape[1] // STACKED, lengths // STACKED
        stacked = mel[:, : longest * STACKED].reshape(len(mel), longest, -1)
        mask = length_mask(lengths, longest).long()
        return self.model(stacked, attention_mask=mask, output_hidden_states=True).hidden_states, lengths
