"""What a release holds, written and read: the parts of a pipeline, and the packs of its languages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sta.data.checksums import write_sums
from sta.errors import ArgumentError, WeightsError
from sta.inference import weights
from sta.inference.index import BASES, load_parts, read_index
from sta.inference.packs import LanguagePack, Networks, beside, read_pack, write_packs
from sta.models.decoders.base import Decoder
from sta.models.vq import Tokenizer

Pipeline = TypeVar("Pipeline", bound="ReleasePipeline")

DEFAULTS = ("token_space", "num_inference_steps", "guidance_scale", "num_tta_samples")


class ReleasePipeline(DiffusionPipeline):
    """A decoder with its tokenizer and scheduler, and languages that speak its token space.

    All of it lies on one device: diffusers' offloading to the CPU is not supported.

    Args:
        decoder, tokenizer, scheduler: the picture side, which defines the token space.
        token_space: fingerprint that every language pack must name.
        num_inference_steps, guidance_scale, num_tta_samples: defaults of a call, as found on validation.
    """

    _optional_components = ["scheduler"]  # noqa: RUF012 - a decoder may draw without one

    decoder: Decoder
    tokenizer: Tokenizer
    scheduler: Any

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer, scheduler: Any, token_space: str = "",
        num_inference_steps: int = 12, guidance_scale: float = 2.0, num_tta_samples: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.register_modules(decoder=decoder, tokenizer=tokenizer, scheduler=scheduler)
        self.register_to_config(
            token_space=token_space, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            num_tta_samples=num_tta_samples,
        )  # fmt: skip
        self.languages: dict[str, LanguagePack] = {}
        self.folder: Path | None = None  # where it was loaded from

    def pack(self, language: str) -> LanguagePack:
        """Return the pack of a language, or name the languages that there are."""
        if not isinstance(language, str):
            raise ArgumentError(f"language {language!r} is not one code such as 'en'; a batch has one language")
        if language not in self.languages:
            known, others = ", ".join(self.languages) or "none", weights.shipped_with(language)
            ways = f"draw with {others[0]}, which ships" if others else "train or add its pack"
            raise WeightsError(f"language '{language}' is not in this release (known: {known}); {ways}")
        return self.languages[language]

    def add_language(self, folder: str | Path) -> None:
        """Add a language released for the same token space: its `languages/<code>` folder."""
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

    def to(self: Pipeline, *args: Any, **kwargs: Any) -> Pipeline:
        """Move it, its languages included, to a device or a dtype, as of diffusers; languages keep their dtype."""
        super().to(*args, **kwargs)
        for pack in self.languages.values():
            self.add_pack(pack)
        return self

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
        cls: type[Pipeline], pretrained_model_name_or_path: str | os.PathLike[str] = weights.DEFAULT,
        trust_remote_code: bool = False, **kwargs: Any,
    ) -> Pipeline:  # fmt: skip
        """Load a release: from a folder, by the name of one that ships (`garden`), or from the Hub.

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
