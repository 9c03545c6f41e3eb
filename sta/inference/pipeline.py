"""`SpeechToImagePipeline`: recordings in, pictures out, by diffusers' conventions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sta.config.limits import SAMPLE_RATE
from sta.data.corruptions import at_speed
from sta.data.store import pad
from sta.errors import ArgumentError, LanguageWarning, WeightsError
from sta.inference import arguments, weights
from sta.inference.arguments import Audio
from sta.inference.packs import LanguagePack
from sta.inference.saving import ReleasePipeline
from sta.models.bottleneck import SpeechCondition, mean_condition
from sta.models.encoder import LENGTH_MULTIPLE, EncoderOutput, ctc_greedy_decode, pieces_to_frames
from sta.models.scheduler import Generators
from sta.models.vq import to_pixels

SLOWEST, FASTEST = 0.9, 1.1  # speeds at which a recording is encoded where it is encoded several times
PLAINLY = 0.15  # by how much an encoder is surer of the other language before a recording counts as being in it


@dataclass
class SpeechToImageOutput(BaseOutput):
    """`images`: PIL pictures, or an array as `output_type` says; `tokens`: what the decoder was given."""

    images: Any
    tokens: SpeechCondition


class SpeechToImagePipeline(ReleasePipeline):
    """Draws what is said."""

    _callback_tensor_inputs = ("latents",)

    @torch.no_grad()
    def encode_speech(
        self, audio: Audio | Sequence[Audio], language: str, sampling_rate: int = SAMPLE_RATE,
        num_tta_samples: int | None = None,
    ) -> SpeechCondition:  # fmt: skip
        """Encode recordings to tokens [B, K, C] and embeddings [B, E].

        Args:
            audio, language, sampling_rate, num_tta_samples: as of a call.

        Raises:
            AudioError: a recording cannot be read or drawn.
            ArgumentError: the number of tta_samples is not one, or the language is not one code.
        """
        count = arguments.whole(
            "num_tta_samples", self.config["num_tta_samples"] if num_tta_samples is None else num_tta_samples
        )
        pack, waves = self.pack(language), arguments.waves(audio, sampling_rate)
        spoken = self._language_of(pack, len(waves))
        outputs = [self._encode([at_speed(wave, speed) for wave in waves], pack) for speed in _speeds(count)]
        self._check_language(outputs, pack)
        return mean_condition([pack.bottleneck(out.frames, out.mask, spoken) for out in outputs])

    @torch.no_grad()
    def encode_text(self, text: str | Sequence[str], language: str) -> SpeechCondition:
        """Encode written captions to tokens, as a perfect reading would give: nothing is misheard.

        Raises:
            ArgumentError: there is no text.
            WeightsError: the release reads none.
        """
        pack, texts = self._reading_pack(language), arguments.texts(text)
        pieces, lengths = (x.to(self.device) for x in pieces_to_frames(pack.spell(texts)))
        spoken = self._language_of(pack, len(texts))
        out = pack.encoder.encode_text(pieces, lengths, spoken)
        tokens: SpeechCondition = pack.bottleneck(out.frames, out.mask, spoken)
        return tokens

    @torch.no_grad()
    def transcribe(self, audio: Audio | Sequence[Audio], language: str, sampling_rate: int = SAMPLE_RATE) -> list[str]:
        """Return what the CTC head read: one normalised caption per recording, or its phonemes where it reads these.

        Raises:
            WeightsError: the release has none.
        """
        pack = self._reading_pack(language)
        out = self._encode(arguments.waves(audio, sampling_rate), pack)
        self._check_language([out], pack)
        assert out.ctc_logits is not None
        first = pack.encoder.piece_offset[pack.card.code]
        read = ctc_greedy_decode(out.ctc_logits, out.ctc_lengths)
        return [pack.pieces.decode([i - first for i in ids]) for ids in read]

    def _reading_pack(self, language: str) -> LanguagePack:
        """Return the pack of a language that has text pieces, by a CTC head that knows them."""
        pack = self.pack(language)
        if not pack.encoder.config.ctc_head:
            raise WeightsError(
                f"language '{language}' was trained without CTC, so that it reads no text; draw from recordings, or "
                f"take a release that reads, such as {weights.GARDEN}"
            )
        return pack

    def with_style(self, condition: SpeechCondition, style: str | Sequence[str | None] | None) -> SpeechCondition:
        """Return the condition with a style to draw in, one of `self.decoder.styles`, or one for each of its items.

        Args:
            style: None draws in any.

        Raises:
            ArgumentError: the decoder does not know it; names those it knows.
        """
        numbers = arguments.styles(style, self.decoder.styles, len(condition.kl))
        return replace(condition, style=torch.tensor(numbers, device=self.device) if self.decoder.styles else None)

    def _in_some_style(self, condition: SpeechCondition, generator: Generators) -> SpeechCondition:
        """Return the condition with a style by chance for each picture that none was asked for: any is their blend."""
        count, style = len(self.decoder.styles), condition.style
        if style is None or not bool((style == count).any()):
            return condition
        each = generator if isinstance(generator, list) else [generator] * len(style)
        found = torch.cat([randn_tensor((1, count), generator=one, device=self.device).argmax(1) for one in each])
        return replace(condition, style=torch.where(style == count, found, style))

    def _encode(self, waves: list[np.ndarray], pack: LanguagePack) -> EncoderOutput:
        features, lengths = pad([pack.encoder.features(wave) for wave in waves], LENGTH_MULTIPLE)
        return pack.encoder.encode(features, lengths, [pack.card.code] * len(waves))

    def _check_language(self, outputs: Sequence[EncoderOutput], pack: LanguagePack) -> None:
        """Warn of recordings that are plainly in another language of the same encoder than the pack's."""
        codes = sorted({other.card.code for other in self.languages.values() if other.encoder is pack.encoder})
        if len(codes) < 2 or outputs[0].joint_logits is None:  # there is no CTC head
            return
        mean = torch.stack([pack.encoder.language_confidence(out) for out in outputs]).mean(0)
        own = pack.encoder.language_index(pack.card.code)
        for number, confidence in enumerate(mean.tolist(), 1):
            best = max(codes, key=lambda code: confidence[pack.encoder.language_index(code)])
            most = confidence[pack.encoder.language_index(best)]
            if most - confidence[own] > PLAINLY:
                warnings.warn(
                    f"recording {number} of {len(mean)} sounds like language '{best}' (confidence {most:.2f}), not "
                    f"'{pack.card.code}' ({confidence[own]:.2f}), in which it was encoded; give language '{best}'",
                    LanguageWarning,
                    stacklevel=4,
                )

    def _language_of(self, pack: LanguagePack, count: int) -> Tensor:
        return pack.encoder.language_indices([pack.card.code] * count).to(self.device)

    def prepare_latents(self, batch: int, generator: Generators = None, latents: Tensor | None = None) -> Tensor:
        """Make what a drawing starts from, or check the latents given: codes [B, N] or noise [B, d, h, w]."""
        if latents is None:
            return self.decoder.start(batch, generator, self.device)
        return arguments.latents(latents, self.decoder.start(batch, None, self.device)).to(self.device)

    def check_inputs(
        self, output_type: str, callback_tensors: Sequence[str], steps: int | None, guidance_scale: float | None
    ) -> None:
        """Refuse what a call cannot do, before anything slow is done."""
        arguments.output_type(output_type)
        unknown = [name for name in callback_tensors if name not in self._callback_tensor_inputs]
        if unknown:
            raise ArgumentError(f"callback tensors {unknown} are not among {self._callback_tensor_inputs}")
        if steps is not None:
            most = self.scheduler.config["num_train_timesteps"] if self.scheduler else None
            arguments.whole("num_inference_steps", steps, most)
        if guidance_scale is not None:
            arguments.guidance(guidance_scale)

    @torch.no_grad()
    def denoise(
        self, tokens: SpeechCondition, num_inference_steps: int | None = None, guidance_scale: float | None = None,
        generator: Generators = None, latents: Tensor | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_tensors: Sequence[str] = ("latents",),
    ) -> Tensor:  # fmt: skip
        """Draw tokens [B, K, C] as codes [B, N] or latents [B, d, h, w], by the decoder's own sampling loop."""

        def on_step(number: int, t: Tensor, latents: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return latents
            given = {name: latents for name in callback_tensors}  # the only one there is
            changed: Tensor = (callback_on_step_end(self, number, t, given) or {}).pop("latents", latents)
            return changed

        return self.decoder.sample(
            self.scheduler, tokens, self.prepare_latents(len(tokens.tokens), generator, latents),
            num_inference_steps or self.config["num_inference_steps"],
            self.config["guidance_scale"] if guidance_scale is None else guidance_scale, generator, on_step,
        )  # fmt: skip

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode what was drawn to pictures [B, 3, H, W] in [-1, 1]."""
        return self.decoder.picture(latents, self.tokenizer)

    def postprocess(self, latents: Tensor, output_type: str = "pil") -> Any:
        """Return what was drawn in the form that `output_type` names."""
        if output_type == "latent":
            return latents
        pictures = self.decode_latents(latents)
        if output_type == "pt":
            return (pictures + 1) / 2
        if output_type == "np":
            return ((pictures + 1) / 2).cpu().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(p.numpy()) for p in to_pixels(pictures.cpu())]

    @torch.no_grad()
    def __call__(
        self, audio: Audio | Sequence[Audio], sampling_rate: int = SAMPLE_RATE, language: str = "en",
        num_inference_steps: int | None = None, guidance_scale: float | None = None,
        num_tta_samples: int | None = None, num_images_per_prompt: int = 1, generator: Generators = None,
        latents: Tensor | None = None, output_type: str = "pil", return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        style: str | Sequence[str | None] | None = None,
    ) -> SpeechToImageOutput:  # fmt: skip
        """Draw what is said in one recording or several.

        Args:
            audio: a path or a file's bytes (WAV, FLAC, MP3, OGG), a waveform [T] or [channels, T], or a list of these.
            sampling_rate: of waveforms given as arrays, Hz; files carry their own.
            language: code of the language spoken.
            num_inference_steps: steps of the sampler; default as found on validation.
            guidance_scale: 1 is none; default as found on validation.
            num_tta_samples: times each recording is encoded, at speeds from 0.9 to 1.1; the tokens are the mean of all
                (test-time augmentation); default as found on validation.
            num_images_per_prompt: pictures of each recording.
            generator: one, or one per picture, for the same pictures again.
            latents: what to start from, codes [B, N] or noise [B, d, h, w]; all mask or drawn by default.
            output_type: `pil`, `np` [B, H, W, 3] in [0, 1], `pt` [B, 3, H, W] in [0, 1], or `latent`.
            return_dict: False gives the tuple (images, tokens).
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})`; may return others.
            callback_on_step_end_tensor_inputs: what it is given, `latents` or nothing.
            style: how to draw, one of `pipe.decoder.styles`, or one for each recording; by default one by chance for
                each picture.

        Raises:
            AudioError: a recording cannot be read or drawn.
            WeightsError: the release does not know the language.
            ArgumentError: another argument is out of range; names what is accepted. It is a ValueError too.
        """
        callback_tensors = callback_on_step_end_tensor_inputs or ()
        self.check_inputs(output_type, callback_tensors, num_inference_steps, guidance_scale)
        arguments.whole("num_images_per_prompt", num_images_per_prompt)
        generator = arguments.generators(generator)
        arguments.styles(style, self.decoder.styles, len(style) if isinstance(style, list | tuple) else 1)
        condition = self.with_style(self.encode_speech(audio, language, sampling_rate, num_tta_samples), style)
        tokens = repeat_condition(condition, num_images_per_prompt)
        if isinstance(generator, list) and len(generator) != len(tokens.tokens):
            raise ArgumentError(
                f"{len(generator)} generators were given for {len(tokens.tokens)} pictures; give as many"
            )
        tokens = self._in_some_style(tokens, generator)
        latents = self.denoise(
            tokens, num_inference_steps, guidance_scale, generator, latents, callback_on_step_end, callback_tensors,
        )  # fmt: skip
        images = self.postprocess(latents, output_type)
        return SpeechToImageOutput(images=images, tokens=tokens) if return_dict else (images, tokens)  # type: ignore[return-value]


def repeat_condition(tokens: SpeechCondition, times: int) -> SpeechCondition:
    """Repeat each item `times` times, side by side."""
    return tokens[torch.arange(len(tokens.kl), device=tokens.kl.device).repeat_interleave(times)]


def _speeds(count: int) -> list[float]:
    """Return at which speeds a recording is encoded: once as it is, several times evenly from slow to fast."""
    return [1.0] if count == 1 else np.linspace(SLOWEST, FASTEST, count).round(3).tolist()
