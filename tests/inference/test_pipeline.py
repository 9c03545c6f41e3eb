"""The pipeline by diffusers' conventions; named after the tests of test_pipelines_common.py where there is one."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file, save_file

from sta.cli.main import main
from sta.data.checksums import write_sums
from sta.data.corruptions import at_speed
from sta.errors import ArgumentError, AudioError, LanguageWarning, WeightsError
from sta.inference import arguments
from sta.inference.arguments import MAX_GUIDANCE
from sta.inference.pipeline import SpeechToImageOutput, SpeechToImagePipeline, repeat_condition
from sta.inference.release import load_release, verify
from sta.models.encoder import SpeechEncoder
from tests.conftest import scatter
from tests.release_fixtures import (
    CODES,
    KINDS,
    LANGUAGES,
    SIZE,
    STEPS,
    TOKEN_SPACE,
    tiny_pieces,
    tiny_pipeline,
    wave,
    write_tiny_release,
    write_wave,
)  # fmt: skip

GOLDENS = Path(__file__).parents[1] / "goldens"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def _no_bars() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(kind: str) -> SpeechToImagePipeline:
    return tiny_pipeline(kind)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("tiny") / "release", kind)


@pytest.fixture
def copied(release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "release"))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def draw(pipe: SpeechToImagePipeline, audio: Any = None, *seeds: int, **options: Any) -> Any:
    """Pictures as an array [B, H, W, 3]."""
    audio = wave() if audio is None else audio
    return pipe(audio, generator=seeded(*(seeds or (0,))), output_type="np", **options).images


# ---- diffusers' common tests --------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_save_load_local(pipe: SpeechToImagePipeline, release: Path, language: str) -> None:
    loaded = SpeechToImagePipeline.from_pretrained(release)
    assert list(loaded.languages) == sorted(LANGUAGES)
    assert loaded.config["token_space"] == TOKEN_SPACE
    assert (loaded.config["num_inference_steps"], loaded.config["guidance_scale"]) == (STEPS, 2.0)
    drawn, again = draw(pipe, language=language), draw(loaded, language=language)
    np.testing.assert_allclose(drawn, again, atol=1e-5)  # where weights lie in memory may change the last bit


def test_saved_again_is_the_same_release(release: Path, tmp_path: Path) -> None:
    SpeechToImagePipeline.from_pretrained(release).save_pretrained(tmp_path)
    write_sums(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == (release / "SHA256SUMS").read_text()


def test_a_shared_encoder_is_saved_and_loaded_once(release: Path) -> None:
    assert [p.parent.name for p in sorted(release.glob("languages/*/encoder"))] == ["pooled"]
    loaded = SpeechToImagePipeline.from_pretrained(release)
    assert loaded.pack("en").encoder is loaded.pack("ar").encoder


def test_pipeline_call_signature() -> None:
    parameters = inspect.signature(SpeechToImagePipeline.__call__).parameters
    required = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    assert required == ["self", "audio"]
    assert list(parameters)[1:3] == ["audio", "sampling_rate"]
    assert {
        "num_inference_steps", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict",
        "callback_on_step_end", "callback_on_step_end_tensor_inputs",
    } <= parameters.keys()  # fmt: skip


def test_inference_batch_consistent(pipe: SpeechToImagePipeline) -> None:
    for size in (1, 2, 3):
        assert draw(pipe, [wave()] * size, *range(size)).shape == (size, SIZE, SIZE, 3)


def test_inference_batch_single_identical(pipe: SpeechToImagePipeline) -> None:
    """Of recordings of different lengths, so that padding must not matter either."""
    waves = [wave(s, seed) for seed, s in enumerate((0.3, 1.7, 0.9))]
    batch = draw(pipe, waves, 5, 6, 7)
    for row, (one, seed) in enumerate(zip(waves, (5, 6, 7), strict=True)):
        np.testing.assert_allclose(batch[row], draw(pipe, one, seed)[0], atol=1e-4)


def test_different_recordings_and_seeds_draw_differently(pipe: SpeechToImagePipeline) -> None:
    assert len({draw(pipe, wave(seed=seed)).tobytes() for seed in range(8)}) > 1
    assert not np.array_equal(draw(pipe, wave(), 0), draw(pipe, wave(), 1))


def test_dict_tuple_outputs_equivalent(pipe: SpeechToImagePipeline) -> None:
    named = pipe(wave(), generator=seeded(0), output_type="np")
    images, tokens = pipe(wave(), generator=seeded(0), output_type="np", return_dict=False)
    assert isinstance(named, SpeechToImageOutput)
    np.testing.assert_array_equal(named.images, images)
    torch.testing.assert_close(named.tokens.tokens, tokens.tokens)


def test_components_function(pipe: SpeechToImagePipeline) -> None:
    assert set(pipe.components) == {"decoder", "tokenizer", "scheduler"}
    again = SpeechToImagePipeline(**pipe.components)
    for pack in pipe.languages.values():
        again.add_pack(pack)
    np.testing.assert_array_equal(draw(pipe), draw(again, num_inference_steps=STEPS))


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("recordings", [1, 2])
def test_num_images_per_prompt(pipe: SpeechToImagePipeline, recordings: int, times: int) -> None:
    waves, seeds = [wave(seed=i) for i in range(recordings)], range(recordings * times)
    images = draw(pipe, waves, *seeds, num_images_per_prompt=times)
    assert len(images) == recordings * times
    alone = [draw(pipe, waves[i // times], i)[0] for i in seeds]
    np.testing.assert_allclose(images, alone, atol=1e-4)


def test_callback_inputs(pipe: SpeechToImagePipeline) -> None:
    seen = []

    def look(given_pipe: SpeechToImagePipeline, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        assert given_pipe is pipe
        assert set(tensors) == {"latents"}
        seen.append((step, timestep))
        return {}

    drawn = draw(pipe, callback_on_step_end=look)
    assert [step for step, _ in seen] == list(range(STEPS))
    assert [t for _, t in seen] == sorted((t for _, t in seen), reverse=True)
    np.testing.assert_array_equal(drawn, draw(pipe))
    draw(pipe, callback_on_step_end=lambda *_: None, callback_on_step_end_tensor_inputs=[])
    draw(pipe, callback_on_step_end=lambda *_: None, callback_on_step_end_tensor_inputs=None)
    with pytest.raises(ValueError, match="'codes'.*latents"):
        draw(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["codes"])


def test_callback_changes_codes(pipe: SpeechToImagePipeline) -> None:
    def blank(_: SpeechToImagePipeline, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else tensors

    codes = pipe(wave(), output_type="latent", callback_on_step_end=blank).images
    assert not codes.any()


def test_cfg(pipe: SpeechToImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """At scale 1 only the conditional branch is run; above it, the null condition counts."""
    tokens = pipe.encode_speech(wave(), "en")
    start, t = pipe.prepare_latents(1, torch.Generator().manual_seed(0)), torch.tensor(10.0)
    t = t / pipe.scheduler.config["num_train_timesteps"]
    conditional = pipe.decoder.predict(start, t, tokens, 1.0)
    guided = pipe.decoder.predict(start, t, tokens, 3.0)
    share = torch.full((1,), float(t))
    parts = (start, share, tokens.tokens, tokens.embedding)
    torch.testing.assert_close(conditional, pipe.decoder(*parts))
    assert not torch.allclose(conditional, guided, atol=1e-3)

    sizes: list[int] = []
    forward = pipe.decoder.forward

    def counted(codes: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        sizes.append(len(codes))
        return forward(codes, *others, **named)

    monkeypatch.setattr(pipe.decoder, "forward", counted)
    alone, far = draw(pipe, guidance_scale=1), draw(pipe, guidance_scale=8)
    assert sizes == [1] * STEPS + [2] * STEPS
    assert not np.array_equal(alone, far)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_to_dtype(dtype: torch.dtype, kind: str) -> None:
    pipe = tiny_pipeline(kind).to(dtype)
    assert {pipe.decoder.dtype, pipe.tokenizer.dtype} == {dtype}
    images = draw(pipe)
    assert images.dtype == np.float32
    assert np.isfinite(images).all()


def test_float16_save_load(release: Path) -> None:
    pipe = SpeechToImagePipeline.from_pretrained(release, torch_dtype=torch.float16)
    assert {pipe.decoder.dtype, pipe.tokenizer.dtype} == {torch.float16}
    assert not any(m.training for m in (pipe.decoder, pipe.tokenizer, pipe.pack("en").encoder))


def test_to_device(pipe: SpeechToImagePipeline) -> None:
    assert pipe.to("cpu") is pipe
    assert pipe.device.type == "cpu"


def test_pt_np_pil_outputs_equivalent(pipe: SpeechToImagePipeline) -> None:
    kinds = {k: pipe(wave(), generator=seeded(0), output_type=k).images for k in ("pil", "np", "pt", "latent")}
    assert kinds["pt"].shape == (1, 3, SIZE, SIZE)
    assert kinds["np"].min() >= 0
    assert kinds["np"].max() <= 1
    np.testing.assert_array_equal(kinds["np"], kinds["pt"].permute(0, 2, 3, 1).numpy())
    assert isinstance(kinds["pil"][0], Image.Image)
    np.testing.assert_array_equal(np.asarray(kinds["pil"][0]), (kinds["np"][0] * 255).round().astype(np.uint8))
    assert kinds["latent"].shape == pipe.prepare_latents(1).shape
    torch.testing.assert_close(pipe.postprocess(kinds["latent"], "pt"), kinds["pt"])
    with pytest.raises(ValueError, match=r"'jpeg' is not one of pil, np, pt, latent"):
        pipe(wave(), output_type="jpeg")


def test_encode_speech_works_in_isolation(pipe: SpeechToImagePipeline) -> None:
    """diffusers' encode_prompt_works_in_isolation: the tokens alone give the same picture."""
    waves = [wave(seed=0), wave(1.1, seed=1)]
    tokens = repeat_condition(pipe.encode_speech(waves, "en"), 2)
    codes = pipe.denoise(tokens, generator=seeded(0, 1, 2, 3))
    np.testing.assert_array_equal(pipe.postprocess(codes, "np"), draw(pipe, waves, 0, 1, 2, 3, num_images_per_prompt=2))


@pytest.mark.parametrize(("tta_samples", "speeds"), [(1, [1.0]), (2, [0.9, 1.1]), (5, [0.9, 0.95, 1.0, 1.05, 1.1])])
def test_several_hearings_are_their_mean(pipe: SpeechToImagePipeline, tta_samples: int, speeds: list[float]) -> None:
    waves = [wave(seed=0), wave(1.1, seed=1)]
    once = [pipe.encode_speech([at_speed(w, speed) for w in waves], "en", num_tta_samples=1) for speed in speeds]
    tokens = pipe.encode_speech(waves, "en", num_tta_samples=tta_samples)
    torch.testing.assert_close(tokens.tokens, torch.stack([t.tokens for t in once]).mean(0))
    torch.testing.assert_close(tokens.kl, torch.stack([t.kl for t in once]).mean(0))
    torch.testing.assert_close(tokens.embedding.norm(dim=-1), torch.ones(2))


def test_hearings_are_of_the_release_or_of_the_call(tmp_path: Path) -> None:
    made = tiny_pipeline()
    made.register_to_config(num_tta_samples=3)
    made.save_pretrained(tmp_path)
    pipe = SpeechToImagePipeline.from_pretrained(tmp_path)
    heard = {
        n: pipe(wave(), generator=seeded(0), output_type="np", num_tta_samples=n).tokens.tokens for n in (None, 1, 3)
    }
    torch.testing.assert_close(heard[None], heard[3])
    assert not torch.allclose(heard[1], heard[3])


def test_no_hearing_is_refused(pipe: SpeechToImagePipeline) -> None:
    for do in (pipe, lambda audio, **named: pipe.encode_speech(audio, "en", **named)):
        with pytest.raises(ValueError, match="num_tta_samples 0 must be a whole number of at least 1"):
            do(wave(), num_tta_samples=0)


def test_tokens_have_their_documented_shapes(pipe: SpeechToImagePipeline) -> None:
    tokens = pipe.encode_speech([wave(), wave(seed=1)], "ar")
    assert tokens.tokens.shape == (2, 3, 4)
    assert tokens.embedding.shape == (2, 8)
    assert tokens.kl.shape == (2,)
    assert not tokens.tokens.requires_grad


def test_text_is_read_by_its_sounds_where_the_encoder_was_trained_so(pipe: SpeechToImagePipeline) -> None:
    pack = pipe.pack("en")
    words = ["a knight at sea", "a night at see"]
    assert pack.spell(words)[0] != pack.spell(words)[1]
    kept = pack.encoder.config.phonemes
    pack.encoder.register_to_config(phonemes=["en"])
    try:
        one, other = pack.spell(words)
        assert one == other
        assert pipe.pack("ar").spell(["بحر"]) != [[]]
    finally:
        pack.encoder.register_to_config(phonemes=kept)


def test_text_and_transcript(pipe: SpeechToImagePipeline) -> None:
    """A caption enters at the side of what was read, and both branches end in tokens of one shape."""
    written = pipe.encode_text(["a red bird", "a large bird with a blue head"], "en")
    assert written.tokens.shape == pipe.encode_speech([wave(), wave()], "en").tokens.shape
    one = pipe.encode_text("a red bird", "en")
    torch.testing.assert_close(one.tokens[0], written.tokens[0], atol=1e-5, rtol=1e-4)
    assert all(isinstance(t, str) for t in pipe.transcribe([wave(), wave(2, 1)], "ar"))


# ---- latents and generators ---------------------------------------------------------------------------------


def test_latents_of_another_shape_are_refused(pipe: SpeechToImagePipeline) -> None:
    with pytest.raises(ValueError, match=r"\(1, 5\).*\(1, "):
        pipe(wave(), latents=torch.zeros(1, 5))


def test_flow_starts_from_the_noise_given() -> None:
    pipe = tiny_pipeline("latent-diffusion")
    drawn = [pipe(wave(), latents=torch.full((1, 4, 4, 4), x), output_type="latent").images for x in (0.0, 1.0)]
    assert not torch.allclose(*drawn)
    assert drawn[0].shape == (1, 4, 4, 4)


def test_codes_given_are_kept() -> None:
    """All mask is what a call starts from; codes that are no mask are what the last step keeps."""
    pipe = tiny_pipeline("vq-diffusion")
    np.testing.assert_array_equal(draw(pipe), draw(pipe, latents=pipe.prepare_latents(1)))
    given = torch.arange(pipe.decoder.config.side**2)[None] % CODES
    given[:, ::2] = CODES  # the mask
    codes = pipe(wave(), latents=given, num_inference_steps=1, output_type="latent").images
    torch.testing.assert_close(codes[:, 1::2], given[:, 1::2])
    assert int(codes.max()) < CODES


def test_same_generator_seed_identical_bytes(pipe: SpeechToImagePipeline) -> None:
    first, second = (
        pipe(wave(), generator=torch.Generator().manual_seed(3), num_images_per_prompt=2).images for _ in range(2)
    )
    assert [i.tobytes() for i in first] == [i.tobytes() for i in second]
    assert first[0].tobytes() != first[1].tobytes()


def test_a_call_changes_nothing_in_the_pipeline(pipe: SpeechToImagePipeline) -> None:
    before = {k: v.clone() for k, v in pipe.decoder.state_dict().items()}, dict(pipe.config)
    draw(pipe, num_inference_steps=1, guidance_scale=5.0)
    assert dict(pipe.config) == before[1]
    assert all(torch.equal(v, before[0][k]) for k, v in pipe.decoder.state_dict().items())
    assert not pipe.decoder.training


@pytest.mark.parametrize(
    "options",
    [
        *[{"num_inference_steps": n} for n in (0, 1.5, "4", True, 1_000_000)],
        *[{"guidance_scale": x} for x in (0.5, float("nan"), float("inf"), 1e30, "2")],
        *[{"num_tta_samples": n} for n in (0, 1.5, "1")],
        *[{"num_images_per_prompt": n} for n in (1.5, "1", None)],
        *[{"generator": g} for g in (3, [None], "random")],
        {"language": ["en", "ar"]}, {"language": None}, {"latents": np.zeros((1, 16))},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range(pipe: SpeechToImagePipeline, options: dict[str, Any]) -> None:
    """One sentence, which names the argument, of an error that the command line shows as it is."""
    with pytest.raises(ArgumentError, match=next(iter(options))) as caught:
        pipe(wave(), **options)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_latents_that_are_no_start_are_refused(pipe: SpeechToImagePipeline) -> None:
    start = pipe.prepare_latents(1, torch.Generator().manual_seed(0))
    bad = [start * float("nan")] if start.is_floating_point() else [start + 1, -start, start.float()]
    for given in bad:
        with pytest.raises(ArgumentError, match="latents"):
            pipe(wave(), latents=given)


def test_the_strongest_guidance_draws(pipe: SpeechToImagePipeline) -> None:
    assert np.isfinite(draw(pipe, guidance_scale=MAX_GUIDANCE)).all()


def test_generators_may_be_a_tuple(pipe: SpeechToImagePipeline) -> None:
    options: dict[str, Any] = {"generator": tuple(seeded(0))}
    given = pipe(wave(), output_type="np", **options).images
    np.testing.assert_array_equal(given, draw(pipe))


@pytest.mark.parametrize("text", [[], None, 3, [3], [None]], ids=str)
def test_text_that_is_none_is_refused(pipe: SpeechToImagePipeline, text: Any) -> None:
    with pytest.raises(ArgumentError, match="neither a caption nor a list of captions"):
        pipe.encode_text(text, "en")


def test_pictures_and_generators_that_do_not_match(pipe: SpeechToImagePipeline) -> None:
    with pytest.raises(ValueError, match="num_images_per_prompt 0"):
        pipe(wave(), num_images_per_prompt=0)
    for seeds in ((0, 1), (0, 1, 2, 3)):
        with pytest.raises(ValueError, match=f"{len(seeds)} generators.*3 pictures"):
            pipe(wave(), num_images_per_prompt=3, generator=seeded(*seeds))


# ---- what may be given as audio -----------------------------------------------------------------------------


def test_audio_in_every_form(pipe: SpeechToImagePipeline, tmp_path: Path) -> None:
    samples = np.round(wave() * 32768).astype(np.int16)
    path = write_wave(tmp_path / "a.wav", samples)
    forms: dict[str, Any] = {
        "path": path, "name": str(path), "bytes": path.read_bytes(), "int16": samples,
        "float32": samples.astype(np.float32) / 32768, "float64": samples / 32768,
        "tensor": torch.from_numpy(samples / 32768), "gradient": torch.tensor(samples / 32768, requires_grad=True),
        "list": [path], "tuple": (samples,), "row": samples[None], "column": samples[:, None],
        "stereo": np.stack([samples, samples]), "stereo file": np.stack([samples, samples], 1),
    }  # fmt: skip
    expected = draw(pipe, samples)
    for name, audio in forms.items():
        np.testing.assert_allclose(draw(pipe, audio), expected, atol=1e-4, err_msg=name)


def test_bfloat16_is_heard(pipe: SpeechToImagePipeline) -> None:
    given = torch.from_numpy(wave()).bfloat16()
    np.testing.assert_allclose(draw(pipe, given), draw(pipe, given.float().numpy()), atol=1e-4)


def test_mixed_forms_in_one_list(pipe: SpeechToImagePipeline, tmp_path: Path) -> None:
    path = write_wave(tmp_path / "a.flac", wave())
    assert len(draw(pipe, [path, path.read_bytes(), wave(), torch.from_numpy(wave())], 0, 1, 2, 3)) == 4


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_are_resampled(pipe: SpeechToImagePipeline, rate: int) -> None:
    """What the encoder gets of a resampled recording is near that of the recording itself, and far from another's."""
    heard = [
        pipe.pack("en").encoder.features(arguments.waves(audio, at)[0]).astype(float)
        for audio, at in ((wave(), 16_000), (wave(rate=rate), rate), (wave(seed=4), 16_000))
    ]
    here, there, other = (features[:, :50].mean(0) for features in heard)  # below 4 kHz, which 8 kHz audio has too
    assert len({len(features) for features in heard}) == 1
    assert np.abs(here - there).mean() < np.abs(here - other).mean() / 3
    assert pipe.encode_speech(wave(rate=rate), "en", rate).tokens.shape == pipe.encode_speech(wave(), "en").tokens.shape


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (np.zeros((6, 16_000), np.float32) + 0.1, "6 channels"),
        (np.zeros((2, 3, 4), np.float32), r"shape \(2, 3, 4\)"),
        (np.zeros(0, np.float32), r"shape \(0,\)"),
        (np.array(0.5), "shape"),
        (np.zeros(16_000, np.float32), "silent"),
        (np.full(16_000, 0.25, np.float32), "silent: every sample is 0.25"),
        (np.stack([wave(), -wave()]), "opposite phase"),
        (np.full(16_000, np.nan, np.float32), "NaN"),
        (np.arange(16_000), "int64"),
        (wave() * 30_000, "scale floats"),
        (wave(0.05), "too short"),
        (wave(31), "too long"),
        ([], "no recording"),
        ("nowhere.wav", "does not exist"),
        ("a\0b.wav", "cannot be opened"),
        (b"plain text", "a text file"),
    ],
)  # fmt: skip
def test_audio_refused(pipe: SpeechToImagePipeline, audio: Any, said: str) -> None:
    with pytest.raises(AudioError, match=said) as caught:
        pipe(audio)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, 100, -16_000, 10**9, "16000", None, [16_000]])
def test_wrong_sampling_rate(pipe: SpeechToImagePipeline, rate: int) -> None:
    with pytest.raises(AudioError, match=re.escape(f"sampling rate of {rate!r} Hz")):
        pipe(wave(), sampling_rate=rate)


def test_unknown_language(pipe: SpeechToImagePipeline) -> None:
    for do in (pipe, pipe.encode_speech, pipe.transcribe):
        with pytest.raises(WeightsError, match=r"language 'sw' is not in this release \(known: en, ar\)"):
            do(wave(), language="sw")


# ---- broken releases ----------------------------------------------------------------------------------------


def test_add_language(release: Path) -> None:
    """A pack from elsewhere speaks at once; the encoder it shares is not loaded twice."""
    pipe = SpeechToImagePipeline.from_pretrained(release)
    del pipe.languages["ar"]
    pipe.add_language(release / "languages" / "ar")
    assert pipe.pack("ar").encoder is pipe.pack("en").encoder
    assert len(draw(pipe, language="ar")) == 1


def test_add_language_of_another_token_space(release: Path, copied: Path) -> None:
    folder = copied / "languages" / "ar"
    index = json.loads((folder / "language.json").read_text()) | {"token_space": "fedcba9876543210"}
    (folder / "language.json").write_text(json.dumps(index))
    pipe = SpeechToImagePipeline.from_pretrained(release)
    packs = dict(pipe.languages)
    with pytest.raises(WeightsError, match=f"{folder}.*fedcba9876543210.*{TOKEN_SPACE}"):
        pipe.add_language(folder)
    assert pipe.languages == packs


def _another_release(folder: Path, kind: str = "vq-diffusion") -> tuple[Path, SpeechToImagePipeline]:
    """A release of the same token space and the same names whose encoder and bottleneck are others."""
    pipe = tiny_pipeline(kind)
    scatter(pipe.pack("en").encoder, seed=7)
    scatter(pipe.pack("en").bottleneck, seed=8)
    pipe.save_pretrained(folder)
    return folder, pipe


def _tokens(pipe: SpeechToImagePipeline, language: str) -> torch.Tensor:
    return pipe.encode_speech(wave(), language).tokens


def test_a_pack_whose_group_has_the_name_of_another_keeps_its_own_networks(release: Path, tmp_path: Path) -> None:
    folder, other = _another_release(tmp_path / "other")
    pipe = SpeechToImagePipeline.from_pretrained(release)
    before = _tokens(pipe, "en")
    pipe.add_language(folder / "languages" / "ar")
    assert (pipe.pack("en").group, pipe.pack("ar").group) == ("pooled", "pooled-2")
    pipe.save_pretrained(tmp_path / "both")
    for now in (pipe, SpeechToImagePipeline.from_pretrained(tmp_path / "both")):
        torch.testing.assert_close(_tokens(now, "en"), before)
        torch.testing.assert_close(_tokens(now, "ar"), _tokens(other, "ar"))
    pipe.add_language(folder / "languages" / "en")
    assert pipe.pack("en").encoder is pipe.pack("ar").encoder, "the same networks under the name they have here"


def test_packs_in_memory_do_not_share_a_name_either(tmp_path: Path) -> None:
    _, other = _another_release(tmp_path / "other")
    pipe = tiny_pipeline()
    pipe.add_pack(other.pack("ar"))
    pipe.save_pretrained(tmp_path / "both")
    loaded = SpeechToImagePipeline.from_pretrained(tmp_path / "both")
    for code, of in (("en", tiny_pipeline()), ("ar", other)):
        torch.testing.assert_close(_tokens(loaded, code), _tokens(of, code))


def test_a_pack_that_its_encoder_does_not_know(release: Path, copied: Path) -> None:
    folder = copied / "languages" / "ar"
    card = json.loads((folder / "card.json").read_text(encoding="utf-8")) | {"code": "sw"}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(WeightsError, match=f"{folder}: its encoder 'pooled' knows ar, en, not sw"):
        SpeechToImagePipeline.from_pretrained(release).add_language(folder)


def test_saving_over_a_release_replaces_its_networks(copied: Path, tmp_path: Path, kind: str) -> None:
    _, other = _another_release(tmp_path / "other", kind)
    del other.languages["ar"]
    other.save_pretrained(copied)
    loaded = SpeechToImagePipeline.from_pretrained(copied)
    assert list(loaded.languages) == ["en"], "a language that is not in the release is not left there"
    torch.testing.assert_close(_tokens(loaded, "en"), _tokens(other, "en"))
    other.languages.clear()
    other.save_pretrained(copied)
    assert not SpeechToImagePipeline.from_pretrained(copied).languages


def test_saving_that_fails_leaves_the_release_as_it_was(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    pipe = tiny_pipeline()
    monkeypatch.setattr(pipe.pack("en").bottleneck, "save_pretrained", full)
    files = sorted(copied.rglob("*"))
    with pytest.raises(OSError, match="no space left"):
        pipe.save_pretrained(copied)
    assert sorted(copied.rglob("*")) == files
    verify(copied)


def test_pushing_while_saving_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="would leave out the languages"):
        tiny_pipeline().save_pretrained(tmp_path, push_to_hub=True)


def _truncate(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def _remove(name: str) -> Callable[[Path], object]:
    def remove(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _drop_a_weight(name: str) -> Callable[[Path], object]:
    def drop(folder: Path) -> None:
        weights = load_file(folder / name)
        del weights[sorted(weights)[0]]
        save_file(weights, folder / name)

    return drop


PARTS = ("decoder", "tokenizer", "languages/pooled/encoder", "languages/pooled/bottleneck")
BROKEN = [
    *[(f"truncated {part}", _truncate(f"{part}/{WEIGHTS}"), part) for part in PARTS],
    *[(f"no {part}", _remove(part), part) for part in PARTS],
    *[(f"no weights in {part}", _remove(f"{part}/{WEIGHTS}"), part) for part in PARTS],
    *[(f"a weight lacks in {part}", _drop_a_weight(f"{part}/{WEIGHTS}"), part) for part in PARTS],
    ("no scheduler", _remove("scheduler"), "scheduler"),
    ("no index", _remove("model_index.json"), "model_index.json"),
    ("no pieces", _remove("languages/ar/pieces.model"), "pieces.model"),
    ("truncated pieces", _truncate("languages/ar/pieces.model"), "pieces.model"),
    ("no card", _remove("languages/ar/card.json"), "card.json"),
    ("a card of junk", lambda f: (f / "languages/ar/card.json").write_text("{"), "languages/ar"),
    ("an index of junk", lambda f: (f / "languages/ar/language.json").write_text("[]"), "languages/ar"),
]


@pytest.mark.parametrize(("break_it", "named"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_broken_release(copied: Path, break_it: Callable[[Path], object], named: str) -> None:
    """Neither the loader nor the checksums let a broken release through; each says where it is broken."""
    break_it(copied)
    for load in (SpeechToImagePipeline.from_pretrained, verify):
        with pytest.raises(WeightsError, match=named) as caught:
            load(copied)
        assert str(copied) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("num_inference_steps", 0), ("guidance_scale", "much"), ("num_tta_samples", None)]
)
def test_an_index_whose_defaults_do_not_draw(copied: Path, key: str, value: object) -> None:
    index = copied / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {key: value}))
    with pytest.raises(WeightsError, match=f"{index}: {key} {value!r} must be"):
        SpeechToImagePipeline.from_pretrained(copied)


def test_no_weights_are_unpickled(copied: Path) -> None:
    """diffusers would take a .bin where the safetensors file is missing."""
    path = copied / "decoder" / WEIGHTS
    torch.save(load_file(path), path.with_name("diffusion_pytorch_model.bin"))
    path.unlink()
    with pytest.raises(WeightsError, match="decoder"):
        SpeechToImagePipeline.from_pretrained(copied)


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_byte(copied: Path, part: str) -> None:
    path = copied / part / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{path}: truncated or changed"):
        load_release(copied)


def test_checksums_themselves(copied: Path, tmp_path: Path) -> None:
    sums = copied / "SHA256SUMS"
    for junk in (b"junk\n", b"\xff\xfe", b"0" * 64 + b"  \n", b"0" * 64 + b"  decoder\n"):
        sums.write_bytes(junk)
        with pytest.raises(WeightsError):
            verify(copied)
    sums.unlink()
    with pytest.raises(WeightsError, match="it has no SHA256SUMS"):
        verify(copied)
    with pytest.raises(WeightsError, match="no such folder"):
        verify(tmp_path / "nowhere")


def test_sha256sum_reads_the_checksums(release: Path) -> None:
    names = [line.split("  ", 1)[1] for line in (release / "SHA256SUMS").read_text().splitlines()]
    files = [p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file()]
    assert sorted([*names, "SHA256SUMS"]) == sorted(files)


def test_missing_release(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        SpeechToImagePipeline.from_pretrained(tmp_path / "nowhere")


def test_a_release_on_the_hub_is_downloaded_as_asked(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, **how: Any) -> str:
        asked.append((name, how))
        return str(release)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    how: dict[str, Any] = {
        "revision": "v2",
        "token": "secret",
        "cache_dir": "there",
        "force_download": True,
        "local_files_only": False,
    }
    pipe = SpeechToImagePipeline.from_pretrained("somebody/birds", torch_dtype=torch.float16, **how)
    assert asked == [("somebody/birds", how)]
    assert pipe.decoder.dtype == torch.float16
    SpeechToImagePipeline.from_pretrained("somebody/birds")
    assert asked[1:] == [("somebody/birds", {})]


def test_a_name_that_is_no_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names on the Hub are owner/name, and no test may reach it."""
    said = write_wave(tmp_path / "said.wav", wave())
    for name, words in (
        ("somebody/birds", "somebody/birds: no such folder, and the Hub"),
        ("nowhere", "nowhere: no such folder; name one"),
        ("runs/no/release", "runs/no/release: no such folder; name one"),
    ):
        with pytest.raises(WeightsError, match=words):
            SpeechToImagePipeline.from_pretrained(name)
        assert main(["draw", str(said), "--language", "en", "--weights", name, "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith(f"sta: {words}")


def test_a_release_is_pushed_whole(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None):
            pushed["token"] = token

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
            pushed.update(private=private, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, repo_id: str, folder_path: str, **options: Any) -> str:
            verify(Path(folder_path))
            pushed.update(options, name=repo_id, files={p.name for p in Path(folder_path).iterdir()})
            return "the commit"

    copied = Path(shutil.copytree(release, tmp_path / "release"))
    (copied / "recipe.yaml").write_text("name: garden\n")
    (copied / "README.md").write_text("# Birds\n")
    (copied / "classifier").mkdir()
    (copied / "classifier" / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    pipe = SpeechToImagePipeline.from_pretrained(copied)
    assert pipe.push_to_hub("birds", token="secret", private=True, commit_message="Birds") == "the commit"
    files = pushed.pop("files")
    assert pushed == {
        "token": "secret", "private": True, "exist_ok": True, "name": "me/birds", "commit_message": "Birds",
    }  # fmt: skip
    parts = {"decoder", "tokenizer", "scheduler", "languages", "model_index.json"}
    assert files == parts | {"README.md", "recipe.yaml", "classifier", "SHA256SUMS"}


def test_arguments_that_are_not_known_are_refused(release: Path) -> None:
    with pytest.raises(ArgumentError, match="takes no device_map; known: decoder, tokenizer, scheduler"):
        SpeechToImagePipeline.from_pretrained(release, device_map="balanced")


def test_parts_and_defaults_may_be_given(release: Path) -> None:
    other = tiny_pipeline("vq-diffusion")
    pipe = SpeechToImagePipeline.from_pretrained(
        release, decoder=other.decoder, scheduler=other.scheduler, num_inference_steps=1, guidance_scale=1.5
    )
    assert pipe.decoder is other.decoder
    assert (pipe.config["num_inference_steps"], pipe.config["guidance_scale"]) == (1, 1.5)


@pytest.mark.parametrize("entry", [["os", "path"], ["sta.models.vq", "VQTokenizer"], ["diffusers", "UNet2DModel"], 3])
def test_a_decoder_that_is_none_is_refused(copied: Path, entry: Any) -> None:
    index = copied / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"decoder": entry}))
    with pytest.raises(WeightsError, match="as its decoder, which is no Decoder that is known here"):
        SpeechToImagePipeline.from_pretrained(copied)


def test_diffusers_says_that_it_does_not_know_the_pipeline(release: Path) -> None:
    """Why the card names this package as the library: diffusers knows nothing of languages."""
    with pytest.raises(AttributeError, match="SpeechToImagePipeline"):
        DiffusionPipeline.from_pretrained(release)


# ---- the language that is spoken ----------------------------------------------------------------------------------


def test_another_language_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = SpeechToImagePipeline.from_pretrained("garden")
    english, arabic = (GOLDENS / f"{language}.flac" for language in ("en", "ar"))
    with pytest.warns(LanguageWarning, match=r"recording 2 of 2 sounds like language 'ar'.*not 'en'") as warned:
        pipe.encode_speech([english, arabic], "en", num_tta_samples=1)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path, language in ((english, "en"), (arabic, "ar")):
            pipe.encode_speech(path, language)
    options = ["--weights", "garden", "--tta-samples", "1", "--out", str(tmp_path)]
    assert main(["draw", str(arabic), "--language", "en", *options]) == 0
    assert capsys.readouterr().err.startswith("sta: ar: recording 1 of 1 sounds like language 'ar'")


def test_one_language_alone_is_not_doubted() -> None:
    pipe = SpeechToImagePipeline.from_pretrained("garden")
    del pipe.languages["ar"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.encode_speech(GOLDENS / "ar.flac", "en", num_tta_samples=1)


def test_an_encoder_without_a_ctc_head_draws_undoubted() -> None:
    pipe, sizes = tiny_pipeline(), {code: tiny_pieces(code).size for code in LANGUAGES}
    encoder = SpeechEncoder(sizes, width=16, convolutions=1, layers=1, heads=2, ctc_head=False).eval()
    for code in LANGUAGES:
        pipe.add_pack(replace(pipe.pack(code), encoder=encoder))
    assert draw(pipe, language="ar").shape == (1, SIZE, SIZE, 3)
    for read in (lambda: pipe.transcribe(wave(), "ar"), lambda: pipe.encode_text("a bird", "ar")):
        with pytest.raises(WeightsError, match=r"'ar' was trained without CTC.* a release that reads, such as garden"):
            read()


def test_offloading_is_refused(pipe: SpeechToImagePipeline) -> None:
    """Encoders and the draft would be left where they are."""
    with pytest.raises(ValueError, match="offload"):
        pipe.enable_model_cpu_offload(device="cpu")
