"""`SpeechToImagePipeline`: recordings in, pictures out, by diffusers' conventions."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from sta.config.limits import SAMPLE_RATE
from sta.data.checksums import write_sums
from sta.data.corruptions import at_speed
from sta.data.store import pad
from sta.data.text import normalise
from sta.errors import ArgumentError, LanguageWarning, WeightsError
from sta.inference import arguments, weights
from sta.inference.arguments import Audio
from sta.inference.index import BASES, load_parts, read_index
from sta.inference.packs import LanguagePack, Networks, beside, read_pack, write_packs
from sta.models.bottleneck import SpeechCondition, mean_condition
from sta.models.decoders.base import Decoder
from sta.models.encoder import LENGTH_MULTIPLE, EncoderOutput, ctc_greedy_decode, pieces_to_frames
from sta.models.scheduler import Generators
from sta.models.vq import VQTokenizer, to_pixels

SLOWEST, FASTEST = 0.9, 1.1  # speeds at which a recording is encoded where it is encoded several times
PLAINLY = 0.15  # by how much an encoder is surer of the other language before a recording counts as being in it
DEFAULTS = ("token_space", "num_inference_steps", "guidance_scale", "num_tta_samples")


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
    _optional_components = ["scheduler"]  # noqa: RUF012 - a decoder may draw without one

    decoder: Decoder
    tokenizer: VQTokenizer
    scheduler: Any

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: VQTokenizer,
        scheduler: Any,
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
        self.folder: Path | None = None  # where it was loaded from

    # ---- saving and loading ---------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a release: model_index.json, a folder per component, `languages/<code>/`, and SHA256SUMS.

        Of the release that the pipeline was loaded from, its card, recipe and attribute classifier go with it. It is
        written whole aside first, and then takes the place of what a release in the folder has of these.

        Raises:
            ArgumentError: it is to be pushed to the Hub, which diffusers does before the languages are there.
        """
        if kwargs.get("push_to_hub"):
            raise ArgumentError("push_to_hub would leave out the languages; pipe.push_to_hub(NAME) takes them along")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=folder) as written:
            partial = Path(written)
            super().save_pretrained(written, *args, **kwargs)
            write_packs(partial / "languages", self.languages, self.config["token_space"])
            if self.folder is not None:
                _copy_rest(self.folder, partial)
            write_sums(partial)
            for part in partial.iterdir():
                _replace(part, folder / part.name)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the release that `save_pretrained` writes, whole.

        Args:
            kwargs: `private` and `token`, and of the commit `commit_message` and `create_pr`.
        """
        from huggingface_hub import HfApi

        api, private = HfApi(token=kwargs.pop("token", None)), kwargs.pop("private", None)
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=name, folder_path=folder, **kwargs))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], trust_remote_code: bool = False, **kwargs: Any
    ) -> SpeechToImagePipeline:
        """Load a release: from a folder, by the name of one that ships with the package (`garden`), or from the Hub.

        A release holds no code, and nothing is imported because it names it: a decoder of somebody's own package is
        found if that was imported before, as diffusers has it. (`DiffusionPipeline.from_pretrained` does not know of
        languages; a release is loaded here.)

        Args:
            trust_remote_code: import the module that a release names as its decoder's, where it is installed.
            kwargs: `dtype` (or `torch_dtype`); parts and defaults of the constructor instead of the release's; and
                `revision`, `token`, `cache_dir`, `force_download` and `local_files_only`, how it comes from the Hub.

        Raises:
            ArgumentError: there is no such argument.
            WeightsError: the release is missing, incomplete, truncated, or its parts do not belong together.
        """
        download = {name: kwargs.pop(name) for name in weights.HUB_OPTIONS if name in kwargs}
        dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", None))
        if unknown := kwargs.keys() - {*BASES, *DEFAULTS}:
            known = ", ".join([*BASES, *DEFAULTS, "dtype", "trust_remote_code", *weights.HUB_OPTIONS])
            raise ArgumentError(f"from_pretrained takes no {min(unknown)}; known: {known}")
        folder = weights.local(str(pretrained_model_name_or_path), **download)
        index = read_index(folder)
        defaults = {name: index[name] for name in DEFAULTS if name in index}
        pipe = cls(**(load_parts(folder, index, kwargs, trust_remote_code) | defaults | kwargs))
        pipe.folder = folder
        if dtype is not None:
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
        """Return the pack of a language.

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
        """
        pack, texts = self.pack(language), arguments.texts(text)
        ids = [
            pack.encoder.offset_pieces(pack.pieces.encode(normalise(t, pack.card.normaliser)), language) for t in texts
        ]
        pieces, lengths = (x.to(self.device) for x in pieces_to_frames(ids))
        spoken = self._language_of(pack, len(texts))
        out = pack.encoder.encode_text(pieces, lengths, spoken)
        tokens: SpeechCondition = pack.bottleneck(out.frames, out.mask, spoken)
        return tokens

    @torch.no_grad()
    def transcribe(self, audio: Audio | Sequence[Audio], language: str, sampling_rate: int = SAMPLE_RATE) -> list[str]:
        """Return what the CTC head read: one normalised caption per recording."""
        pack = self.pack(language)
        out = self._encode(arguments.waves(audio, sampling_rate), pack)
        self._check_language([out], pack)
        assert out.ctc_logits is not None
        first = pack.encoder.piece_offset[language]
        read = ctc_greedy_decode(out.ctc_logits, out.ctc_lengths)
        return [pack.pieces.decode([i - first for i in ids]) for ids in read]

    def _encode(self, waves: list[np.ndarray], pack: LanguagePack) -> EncoderOutput:
        features, lengths = pad([pack.encoder.features(wave) for wave in waves], LENGTH_MULTIPLE)
        return pack.encoder.encode(features, lengths, [pack.card.code] * len(waves))

    def _check_language(self, outputs: Sequence[EncoderOutput], pack: LanguagePack) -> None:
        """Warn of recordings that are plainly in another language of the same encoder than the pack's."""
        codes = [code for code, other in self.languages.items() if other.encoder is pack.encoder]
        if len(codes) < 2:
            return
        mean = torch.stack([pack.encoder.language_confidence(out) for out in outputs]).mean(0)
        own = pack.encoder.language_index(pack.card.code)
        for number, confidence in enumerate(mean.tolist(), 1):
            best = max(codes, key=lambda code: confidence[pack.encoder.language_index(code)])
            most = confidence[pack.encoder.language_index(best)]
            if most - confidence[own] > PLAINLY:
                warnings.warn(
                    f"recording {number} of {len(mean)} sounds like language '{best}' (confidence {most:.2f}), not "
                    f"'{pack.card.code}' ({confidence[own]:.2f}), in which it was heard; say language '{best}'",
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
        self,
        tokens: SpeechCondition,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_tensors: Sequence[str] = ("latents",),
    ) -> Tensor:
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


def repeat_condition(tokens: SpeechCondition, times: int) -> SpeechCondition:
    """Repeat each item `times` times, side by side."""
    return SpeechCondition(*(x.repeat_interleave(times, 0) for x in (tokens.tokens, tokens.embedding, tokens.kl)))


def _speeds(count: int) -> list[float]:
    """Return at which speeds a recording is encoded: once as it is, several times evenly from slow to fast."""
    return [1.0] if count == 1 else np.linspace(SLOWEST, FASTEST, count).round(3).tolist()


def _copy_rest(release: Path, target: Path) -> None:
    """Copy what a release holds beside the pipeline: its card, its recipe and its attribute classifier."""
    for path in (release / "README.md", release / "recipe.yaml"):
        if path.exists():
            shutil.copy(path, target)
    classifier = weights.classifier_of(release)
    if classifier is not None:
        shutil.copytree(classifier, target / "classifier")


def _replace(path: Path, target: Path) -> None:
    """Move a file or a folder to where another may be."""
    if target.is_dir():
        shutil.rmtree(target)
    path.replace(target)
