"""`SpeechToImagePipeline`: recordings in, pictures out, by diffusers' conventions."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput, logging
from PIL import Image
from torch import Tensor

from sta.config.limits import SAMPLE_RATE
from sta.data.audio import check_waveform, read_audio
from sta.data.corruptions import at_speed
from sta.data.store import pad
from sta.data.text import normalise
from sta.errors import ArgumentError, AudioError, WeightsError, first_line
from sta.inference import arguments, weights
from sta.inference.packs import LanguagePack, Networks, beside, read_pack, write_packs
from sta.models.bottleneck import SpeechCondition, mean_condition
from sta.models.build_decoder import DECODERS, Decoder
from sta.models.encoder import LENGTH_MULTIPLE, ctc_greedy_decode, pieces_to_frames
from sta.models.loading import load_network
from sta.models.scheduler import Generators, Scheduler, set_timesteps
from sta.models.vq import VQTokenizer, to_pixels

Audio = str | Path | bytes | np.ndarray | Tensor
SLOWEST, FASTEST = 0.9, 1.1  # speeds at which a recording is heard where it is heard several times
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class SpeechToImageOutput(BaseOutput):
    """`images`: PIL pictures, or an array as `output_type` says; `tokens`: what the decoder was given."""

    images: Any
    tokens: SpeechCondition


class SpeechToImagePipeline(DiffusionPipeline):
    """Draws what is said.

    All of it lies on one device: diffusers' offloading to the CPU is not supported.

    Args:
        decoder, tokenizer, scheduler: the picture side, which defines the token space.
        token_space: fingerprint that every language pack must name.
        num_inference_steps, guidance_scale, num_tta_samples: defaults of a call, as found on validation.
    """

    _callback_tensor_inputs = ("latents",)

    decoder: Decoder
    tokenizer: VQTokenizer
    scheduler: Scheduler

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: VQTokenizer,
        scheduler: Scheduler,
        token_space: str = "",
        num_inference_steps: int = 12,
        guidance_scale: float = 2.0,
        num_tta_samples: int = 1,
    ):
        super().__init__()
        self.register_modules(decoder=decoder, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(
            token_space=token_space, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_tta_samples=num_tta_samples,
        )  # fmt: skip
        self.languages: dict[str, LanguagePack] = {}

    # ---- saving and loading ---------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the release layout: model_index.json, a folder per component, `languages/<code>/`.

        It is written whole aside first, and then takes the place of what a release in the folder has of these.

        Raises:
            ValueError: it is to be pushed to the Hub, which diffusers does before the languages are there.
        """
        if kwargs.get("push_to_hub"):
            raise ValueError("push_to_hub would leave out the languages; pipe.push_to_hub(NAME) takes them along")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=folder) as written:
            partial = Path(written)
            super().save_pretrained(written, *args, **kwargs)
            write_packs(partial / "languages", self.languages, self.config["token_space"])
            _forget_paths(partial)
            for part in partial.iterdir():
                _replace(part, folder / part.name)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> SpeechToImagePipeline:
        """Load a release: from a folder, by the name of one that ships with the package (`garden`), or from the Hub.

        Args:
            kwargs: as of diffusers; `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` say how
                a release comes from the Hub.

        Raises:
            WeightsError: the release is missing, incomplete, truncated, or its parts do not belong together.
        """
        download = {name: kwargs.pop(name) for name in weights.HUB_OPTIONS if name in kwargs}
        folder = weights.local(str(pretrained_model_name_or_path), **download)
        if not (folder / "model_index.json").exists():
            raise WeightsError(f"{folder}: not a release, it has no model_index.json; `sta run RECIPE` makes one")
        # Loaded here because diffusers would fill weights that a file lacks with fresh ones, or unpickle a .bin.
        index = _index(folder)
        if "num_hearings" in index:  # as version 0.1 called it
            kwargs.setdefault("num_tta_samples", index["num_hearings"])
        kinds = {"decoder": _decoder_kind(folder, index), "tokenizer": VQTokenizer}
        parts = {name: load_network(kind, folder / name) for name, kind in kinds.items() if name not in kwargs}
        try:
            with _no_progress_bar():
                pipe = super().from_pretrained(str(folder), **parts, **kwargs)
        except Exception as error:  # diffusers raises many kinds for a broken folder
            raise WeightsError(
                f"{folder}: not a whole release ({first_line(error)}); copy it again, or make one by `sta run`"
            ) from error
        assert isinstance(pipe, SpeechToImagePipeline)
        try:
            for name in ("num_inference_steps", "num_tta_samples"):
                arguments.whole(name, pipe.config[name])
            arguments.guidance(pipe.config["guidance_scale"])
        except ArgumentError as error:
            raise WeightsError(f"{folder / 'model_index.json'}: {error}; copy the release again") from error
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        if isinstance(dtype, torch.dtype):
            pipe.to(dtype)
        loaded: dict[Path, Networks] = {}
        for path in sorted((folder / "languages").glob("*/language.json")):
            pipe.add_pack(read_pack(path.parent, pipe.config["token_space"], loaded))
        return pipe

    def add_language(self, folder: str | Path) -> None:
        """Add a language released for the same token space: its `languages/<code>` folder.

        Raises:
            WeightsError: a file is missing or broken, or the language speaks another token space.
        """
        self.add_pack(read_pack(Path(folder), self.config["token_space"]))

    def add_pack(self, pack: LanguagePack) -> None:
        """Add a language whose networks are in memory.

        It shares the networks of another pack where they are the same; where only the group's name is, it gets another.
        """
        code = pack.card.code
        pack = beside(pack, [other for known, other in self.languages.items() if known != code])
        pack.encoder.to(self.device).eval()  # type: ignore[arg-type]
        pack.bottleneck.to(self.device).eval()  # type: ignore[arg-type]
        self.languages[code] = pack

    def to(self, *args: Any, **kwargs: Any) -> SpeechToImagePipeline:
        super().to(*args, **kwargs)
        for pack in self.languages.values():
            self.add_pack(pack)
        return self

    # ---- the steps of a call --------------------------------------------------------------------------

    def pack(self, language: str) -> LanguagePack:
        """The pack of a language.

        Raises:
            ArgumentError: the language is not one code.
            WeightsError: the release does not know it; names those it knows.
        """
        if not isinstance(language, str):
            raise ArgumentError(f"language {language!r} is not one code such as 'en'; a batch has one language")
        if language not in self.languages:
            known = ", ".join(self.languages) or "none"
            raise WeightsError(f"language '{language}' is not in this release (known: {known}); train or add its pack")
        return self.languages[language]

    @torch.no_grad()
    def encode_speech(
        self,
        audio: Audio | Sequence[Audio],
        language: str,
        sampling_rate: int = SAMPLE_RATE,
        num_tta_samples: int | None = None,
    ) -> SpeechCondition:
        """Recordings to tokens [B, K, C] and embeddings [B, E].

        Args:
            audio, language, sampling_rate, num_tta_samples: as of a call.

        Raises:
            AudioError: a recording cannot be read or drawn.
            ArgumentError: the number of tta_samples is not one, or the language is not one code.
        """
        speeds = _speeds(self.config["num_tta_samples"] if num_tta_samples is None else num_tta_samples)
        pack, waves = self.pack(language), _waves(audio, sampling_rate)
        heard = []
        for speed in speeds:
            frames, mask, _, _ = self._encode([at_speed(wave, speed) for wave in waves], pack)
            heard.append(pack.bottleneck(frames, mask))
        return mean_condition(heard)

    @torch.no_grad()
    def encode_text(self, text: str | Sequence[str], language: str) -> SpeechCondition:
        """Written captions to tokens, as a perfect reading would give: nothing is misheard.

        Raises:
            ArgumentError: there is no text.
        """
        pack = self.pack(language)
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) for t in texts):
            raise ArgumentError(f"text {text!r} is neither a caption nor a list of captions; give one, or several")
        ids = [
            pack.encoder.offset_pieces(pack.pieces.encode(normalise(t, pack.card.normaliser)), language) for t in texts
        ]
        pieces, lengths = (x.to(self.device) for x in pieces_to_frames(ids))
        frames = pack.encoder.encode_text(pieces, lengths)
        tokens: SpeechCondition = pack.bottleneck(frames.frames, frames.mask)
        return tokens

    @torch.no_grad()
    def transcribe(self, audio: Audio | Sequence[Audio], language: str, sampling_rate: int = SAMPLE_RATE) -> list[str]:
        """What the CTC head read: one normalised caption per recording."""
        pack = self.pack(language)
        _, _, logits, lengths = self._encode(_waves(audio, sampling_rate), pack)
        first = pack.encoder.piece_offset[language]
        return [pack.pieces.decode([i - first for i in ids]) for ids in ctc_greedy_decode(logits, lengths)]

    def _encode(self, waves: list[np.ndarray], pack: LanguagePack) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, sizes = pad([pack.encoder.features(w) for w in waves], LENGTH_MULTIPLE)
        lengths = torch.from_numpy(sizes).to(self.device)
        index = pack.encoder.language_index(pack.card.code)
        language = torch.full((len(waves),), index, device=self.device)
        out = pack.encoder(pack.encoder.inputs(torch.from_numpy(batch).to(self.device)), lengths, language)
        return out.frames, out.mask, out.ctc_logits, out.ctc_lengths

    def prepare_latents(self, batch: int, generator: Generators = None, latents: Tensor | None = None) -> Tensor:
        """What the sampler starts from: all mask [B, N], noise [B, d, h, w], or the latents given."""
        if latents is None:
            return self.decoder.start(batch, generator, self.device)
        return arguments.latents(latents, self.decoder.start(batch, None, self.device)).to(self.device)

    def check_inputs(
        self, output_type: str, callback_tensors: Sequence[str], steps: int | None, guidance_scale: float | None
    ) -> None:
        if output_type not in OUTPUT_TYPES:
            raise ArgumentError(f"output_type '{output_type}' is not one of {', '.join(OUTPUT_TYPES)}")
        unknown = [name for name in callback_tensors if name not in self._callback_tensor_inputs]
        if unknown:
            raise ArgumentError(f"callback tensors {unknown} are not among {self._callback_tensor_inputs}")
        if steps is not None:
            arguments.whole("num_inference_steps", steps, self.scheduler.config["num_train_timesteps"])
        if guidance_scale is not None:
            arguments.guidance(guidance_scale)

    @torch.no_grad()
    def denoise(
        self,
        tokens: SpeechCondition,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_tensors: Sequence[str] = ("latents",),
    ) -> Tensor:
        """Tokens [B, K, C] to codes [B, N] or latents [B, d, h, w], as the decoder has it: the sampling loop."""
        steps = num_inference_steps or self.config["num_inference_steps"]
        scale = self.config["guidance_scale"] if guidance_scale is None else guidance_scale
        latents = self.prepare_latents(len(tokens.tokens), generator, latents)
        set_timesteps(self.scheduler, steps, self.device)
        drafted = self.decoder.draft(tokens.tokens.to(self.decoder.dtype))
        for number, t in enumerate(self.scheduler.timesteps):
            prediction = self._predict(latents, t, tokens, scale, drafted)
            latents = self.scheduler.step(prediction, t, latents, generator=generator, return_dict=False)[0]
            if callback_on_step_end is not None:
                given = {}
                for name in callback_tensors:
                    given[name] = {"latents": latents}[name]
                latents = (callback_on_step_end(self, number, t, given) or {}).pop("latents", latents)
        return latents

    def _predict(
        self, latents: Tensor, t: Tensor, tokens: SpeechCondition, scale: float, drafted: Tensor | None = None
    ) -> Tensor:
        """What the scheduler steps with, guided: one pass over the batch, doubled where there is guidance."""
        share = (t / self.scheduler.config["num_train_timesteps"]).to(self.device, torch.float32).expand(len(latents))
        dtype = self.decoder.dtype
        heard, embedding = tokens.tokens.to(dtype), tokens.embedding.to(dtype)
        if scale == 1:
            prediction: Tensor = self.decoder(latents, share, heard, embedding, drafted=drafted)
            return prediction.float()
        drop = torch.arange(2, device=self.device).repeat_interleave(len(latents)).bool()
        twice = [torch.cat([x, x]) for x in (latents, share, heard, embedding)]
        both = None if drafted is None else torch.cat([drafted, drafted])
        conditional, unconditional = self.decoder(*twice, drop, both).chunk(2)
        return self.decoder.guide(conditional, unconditional, scale)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """What was drawn, to pictures [B, 3, H, W] in [-1, 1]."""
        return self.decoder.picture(latents, self.tokenizer)

    def postprocess(self, latents: Tensor, output_type: str = "pil") -> Any:
        """What was drawn, in the form that `output_type` names."""
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
        self,
        audio: Audio | Sequence[Audio],
        sampling_rate: int = SAMPLE_RATE,
        language: str = "en",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_tta_samples: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
    ) -> SpeechToImageOutput:
        """Draw what is said in one recording or several.

        Args:
            audio: a path or a file's bytes (WAV, FLAC, MP3, OGG), a waveform [T] or [channels, T], or a list of these.
            sampling_rate: of waveforms given as arrays, Hz; files carry their own.
            language: code of the language spoken.
            num_inference_steps: steps of the sampler; default as found on validation.
            guidance_scale: 1 is none; default as found on validation.
            num_tta_samples: times each recording is heard, at speeds from 0.9 to 1.1; the tokens are the mean of all
                (test-time augmentation); default as found on validation.
            num_images_per_prompt: pictures of each recording.
            generator: one, or one per picture, for the same pictures again.
            latents: what to start from, codes [B, N] or noise [B, d, h, w]; all mask or drawn by default.
            output_type: `pil`, `np` [B, H, W, 3] in [0, 1], `pt` [B, 3, H, W] in [0, 1], or `latent`.
            return_dict: False gives the tuple (images, tokens).
            callback_on_step_end: called as `(pipe, step, timestep, {"latents": ...})`; may return others.
            callback_on_step_end_tensor_inputs: what it is given, `latents` or nothing.

        Raises:
            AudioError: a recording cannot be read or drawn.
            WeightsError: the release does not know the language.
            ArgumentError: another argument is out of range; names what is accepted. It is a ValueError too.
        """
        callback_tensors = callback_on_step_end_tensor_inputs or ()
        self.check_inputs(output_type, callback_tensors, num_inference_steps, guidance_scale)
        arguments.whole("num_images_per_prompt", num_images_per_prompt)
        generator = arguments.generators(generator)
        heard = self.encode_speech(audio, language, sampling_rate, num_tta_samples)
        tokens = repeat_condition(heard, num_images_per_prompt)
        if isinstance(generator, list) and len(generator) != len(tokens.tokens):
            raise ArgumentError(
                f"{len(generator)} generators were given for {len(tokens.tokens)} pictures; give as many"
            )
        latents = self.denoise(
            tokens, num_inference_steps, guidance_scale, generator, latents, callback_on_step_end, callback_tensors,
        )  # fmt: skip
        images = self.postprocess(latents, output_type)
        return SpeechToImageOutput(images=images, tokens=tokens) if return_dict else (images, tokens)  # type: ignore[return-value]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """diffusers shows a bar for three components that load in no time."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def repeat_condition(tokens: SpeechCondition, times: int) -> SpeechCondition:
    """Each item's tokens `times` times, side by side."""
    return SpeechCondition(*(x.repeat_interleave(times, 0) for x in (tokens.tokens, tokens.embedding, tokens.kl)))


def _speeds(tta_samples: int) -> list[float]:
    """At which speeds a recording is heard: once as it is, several times evenly from slow to fast."""
    arguments.whole("num_tta_samples", tta_samples)
    return [1.0] if tta_samples == 1 else np.linspace(SLOWEST, FASTEST, tta_samples).round(3).tolist()


def _waves(audio: Audio | Sequence[Audio], sampling_rate: int) -> list[np.ndarray]:
    several = audio if isinstance(audio, list | tuple) else [audio]
    if not several:
        raise AudioError("no recording was given; pass a path, a file's bytes or a waveform")
    return [_wave(a, sampling_rate) for a in several]  # type: ignore[arg-type]


def _wave(audio: Audio, sampling_rate: int) -> np.ndarray:
    if isinstance(audio, str | Path | bytes):
        return read_audio(audio)
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu()
        audio = audio.float() if audio.dtype == torch.bfloat16 else audio  # which NumPy lacks
    return check_waveform(np.asarray(audio), sampling_rate)


def _replace(path: Path, target: Path) -> None:
    """Move a file or a folder to where another may be."""
    if target.is_dir():
        shutil.rmtree(target)
    path.replace(target)


def _forget_paths(folder: Path) -> None:
    """Drop where each part was loaded from, which diffusers writes down: it says nothing where a release goes."""
    for path in [folder / "model_index.json", *folder.rglob("config.json")]:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _index(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "model_index.json").read_text(encoding="utf-8")))
    except ValueError as error:
        raise WeightsError(f"{folder / 'model_index.json'}: not JSON ({error}); copy the release again") from error


def _decoder_kind(folder: Path, index: dict[str, Any]) -> type[Decoder]:
    """Return the class of a release's decoder, by its index."""
    kinds = {kind.__name__: kind for kind in DECODERS.values()}
    try:
        return kinds[index["decoder"][1]]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise WeightsError(
            f"{folder}: its model_index.json names no decoder of these: {', '.join(kinds)}; copy the release again"
        ) from error
