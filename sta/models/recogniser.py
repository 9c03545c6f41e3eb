"""A published speech recogniser, for a cascade to compare with: Whisper through transformers, on short windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from sta.config.limits import SAMPLE_RATE
from sta.config.published import locate
from sta.errors import WeightsError, first_line
from sta.private import outside_deepspeed

WINDOW = 15  # seconds at least: on shorter ones Whisper's decoder mishears more, and repeats itself
MOST_TOKENS = 64  # of a transcript; about 25 s of speech
SAMPLES_A_POSITION = 320
POSITIONS = "model.encoder.embed_positions"


class Recogniser:
    """Whisper, which reads recordings in windows as long as the longest of them, of 15 seconds at least.

    Args:
        model: `WhisperForConditionalGeneration`. features: its feature extractor. tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, features: Any, tokenizer: Any):
        self.model, self.features, self.tokenizer = model.eval(), features, tokenizer
        self.model.generation_config.max_length = MOST_TOKENS
        self.positions = model.get_submodule(POSITIONS).weight.detach()

    @classmethod
    def load(cls, name: str, device: torch.device) -> Recogniser:
        """Load a model by its name on the Hub, or from a folder.

        Raises:
            WeightsError: it is not to be had, or is no Whisper.
        """
        from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        place = locate(name)
        try:
            with outside_deepspeed():
                model: Any = WhisperForConditionalGeneration.from_pretrained(place, dtype=torch.float32)
            features, tokenizer = (kind.from_pretrained(place) for kind in (WhisperFeatureExtractor, AutoTokenizer))
            return cls(model.to(device), features, tokenizer)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise WeightsError(
                f"evaluation.recogniser '{name}': transformers cannot load it as Whisper ({first_line(error)}); name a "
                "Whisper on the Hub, such as openai/whisper-base, or a folder of one"
            ) from error

    def reads(self, language: str) -> bool:
        """Return whether the model knows a language."""
        return f"<|{_code(language)}|>" in vars(self.model.generation_config).get("lang_to_id", {})

    @torch.no_grad()
    def transcribe(self, waves: Sequence[np.ndarray], language: str) -> list[str]:
        """Return what is said in recordings, float32 [T] each at 16 kHz, in a language that Whisper knows."""
        samples = self._set_window(max(WINDOW, -(-max(map(len, waves)) // SAMPLE_RATE)))
        made = self.features(
            [np.pad(wave, (0, max(0, samples - len(wave))))[:samples] for wave in waves], sampling_rate=SAMPLE_RATE,
            return_tensors="pt", padding="do_not_pad", return_attention_mask=True,
        )  # fmt: skip
        ids = self.model.generate(
            made.input_features.to(self.model.device), attention_mask=made.attention_mask.to(self.model.device),
            language=_code(language), task="transcribe", do_sample=False, num_beams=1,
        )  # fmt: skip
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _set_window(self, seconds: int) -> int:
        """Let the encoder take as many of its positions as some seconds are; returns the samples that they are of."""
        count = min(seconds * SAMPLE_RATE // SAMPLES_A_POSITION, len(self.positions))
        self.model.set_submodule(POSITIONS, nn.Embedding.from_pretrained(self.positions[:count]))
        self.model.config.max_source_positions = self.model.model.encoder.max_source_positions = count
        return count * SAMPLES_A_POSITION


def _code(language: str) -> str:
    """Return a language's code without its region."""
    return language.partition("-")[0]
