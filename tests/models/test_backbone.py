"""Speech backbones of transformers, random and tiny, saved to disk as published ones are.

Configurations are those that are published, with layerdrop, SpecAugment and adapters where the models have them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    set_seed,
)
from transformers.integrations import HfDeepSpeedConfig, deepspeed

from sta.config.recipe import load_recipe
from sta.errors import RecipeError, WeightsError
from sta.models.backbones import backbone_class, build_backbone, check_backbone, describe_backbone
from sta.models.backbones.log_mel import LogMelBackbone
from sta.models.backbones.pretrained import LayerSum, PretrainedBackbone, _classes
from sta.models.backbones.spectrum import kaldi_mel, whisper_mel
from sta.models.backbones.waveform import _PaddedNorm
from sta.models.encoder import SpeechEncoder
from sta.models.layers import length_mask
from sta.models.loading import load_network
from sta.private import whisper_parts
from tests import tiny_whisper

#: Layer norm over channels, as in the large models.
WAVEFORM: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (8, 8), "feat_extract_norm": "layer",
    "do_stable_layer_norm": True, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.1, "layerdrop": 0.1,
}  # fmt: skip
#: A norm over time after the first convolution, as in the base models, which would see the padding.
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
ADAPTER = {"add_adapter": True, "output_hidden_size": 16, "num_adapter_layers": 1}
SEW = {"squeeze_factor": 2, "feat_extract_norm": "group"}
W2V_BERT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "feature_projection_input_dim": 160, "conv_depthwise_kernel_size": 5, "layerdrop": 0.1,
}  # fmt: skip
#: name -> model type and settings.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("hubert", WAVEFORM),
    "hubert-base": ("hubert", WAVEFORM | BASE),
    "hubert-batch-norm": ("hubert", WAVEFORM | BASE | {"conv_pos_batch_norm": True}),
    "wav2vec2": ("wav2vec2", WAVEFORM),
    "wav2vec2-base": ("wav2vec2", WAVEFORM | BASE),
    "wav2vec2-adapter": ("wav2vec2", WAVEFORM | ADAPTER),
    "wavlm": ("wavlm", WAVEFORM | {"num_buckets": 16, "max_bucket_distance": 32}),
    "wavlm-base": ("wavlm", WAVEFORM | BASE | {"num_buckets": 16, "max_bucket_distance": 32}),
    "unispeech": ("unispeech", WAVEFORM),
    "unispeech-base": ("unispeech", WAVEFORM | BASE),
    "unispeech-sat": ("unispeech-sat", WAVEFORM),
    "unispeech-sat-base": ("unispeech-sat", WAVEFORM | BASE),
    "data2vec-audio": ("data2vec-audio", WAVEFORM | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 7}),
    "data2vec-audio-even": ("data2vec-audio", WAVEFORM | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 6}),
    "conformer-relative": ("wav2vec2-conformer", WAVEFORM | {"position_embeddings_type": "relative"}),
    "conformer-rotary": ("wav2vec2-conformer", WAVEFORM | {"position_embeddings_type": "rotary"}),
    "conformer-adapter": ("wav2vec2-conformer", WAVEFORM | ADAPTER),
    "sew": ("sew", WAVEFORM | SEW),
    "sew-d": ("sew-d", WAVEFORM | SEW | {"position_buckets": 8, "max_position_embeddings": 16}),
    "w2v-bert": ("wav2vec2-bert", W2V_BERT),
    "w2v-bert-rotary": ("wav2vec2-bert", W2V_BERT | {"position_embeddings_type": "rotary"}),
    "w2v-bert-relative": ("wav2vec2-bert", W2V_BERT | {"position_embeddings_type": "relative"}),
    "w2v-bert-adapter": ("wav2vec2-bert", W2V_BERT | ADAPTER),
    "whisper": ("whisper", tiny_whisper.SETTINGS),
}
KINDS = list(FAMILIES)
WAVEFORM_KINDS = [kind for kind, (name, _) in FAMILIES.items() if name not in ("whisper", "wav2vec2-bert")]
SECOND = 16_000


def model(kind: str) -> Any:
    torch.manual_seed(0)
    name, settings = FAMILIES[kind]
    made = AutoModel.from_config(AutoConfig.for_model(name, **settings))
    for parameter in made.parameters():  # a shift of zero would hide a leak
        torch.nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    return made


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        model(kind).save_pretrained(folder)
        if kind in WAVEFORM_KINDS:
            Wav2Vec2FeatureExtractor(do_normalize=not kind.startswith("wavlm")).save_pretrained(folder)
    return folders


def build(folder: Path, frozen: bool = True) -> Any:
    torch.manual_seed(1)
    made = build_backbone(describe_backbone(str(folder), frozen), 12)
    made.load_published(str(folder))
    return made.eval()


def waves(*lengths: int, filler: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    batch = torch.full((len(lengths), max(lengths), 1), filler)
    for row, n in enumerate(lengths):
        batch[row, :n, 0] = torch.from_numpy(0.2 * rng.standard_normal(n).astype(np.float32))
    return batch, torch.tensor(lengths)


def test_every_family_is_tried() -> None:
    assert {name for name, _ in FAMILIES.values()} == {name for c in _classes() for name in c.model_types}


@pytest.mark.parametrize("kind", KINDS)
def test_described_built_and_run(published: dict[str, Path], kind: str) -> None:
    description = describe_backbone(str(published[kind]), frozen=True)
    assert description is not None
    assert description["config"]["model_type"] == FAMILIES[kind][0]
    assert description["normalise"] == (not kind.startswith("wavlm"))
    made = build(published[kind])
    assert made.layer_weights.shape == (3,)
    frames, lengths = made(*waves(SECOND, SECOND // 2))
    assert frames.shape == (2, int(lengths.max()), 12)
    assert frames.isfinite().all()
    a_second = {"whisper": 50, "wav2vec2-bert": 49, "sew": 124, "sew-d": 124}.get(FAMILIES[kind][0], 249)
    assert lengths[0] == a_second, "all of a recording is valid"
    assert lengths[0] >= 2 * lengths[1] >= lengths[0] - 3


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_the_published_weights(published: dict[str, Path], kind: str) -> None:
    wanted = model(kind)
    part = wanted.encoder if kind == "whisper" else wanted
    made, theirs = build(published[kind]).model.state_dict(), part.state_dict()
    assert made.keys() == {name for name in theirs if not name.startswith("adapter.")}
    for name, value in made.items():
        assert theirs[name].half().float().equal(value), f"{name}, in the half precision in which it is kept"
    made = build(published[kind], frozen=False).model.state_dict()
    assert all(theirs[name].equal(value) for name, value in made.items())


@pytest.mark.parametrize("filler", [0.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_clip_alone_is_the_clip_in_a_batch(published: dict[str, Path], kind: str, filler: float) -> None:
    made = build(published[kind])
    samples, lengths = waves(SECOND, 9_064, 5_003, filler=filler)  # the second: an odd number of frames
    together, frames = made(samples, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone, count = made(samples[row : row + 1, :n], lengths[row : row + 1])
        assert int(count[0]) == int(frames[row])
        torch.testing.assert_close(together[row, : int(count[0])], alone[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_or_stays_still(published: dict[str, Path], kind: str, frozen: bool) -> None:
    """All layers count, whatever the published configuration drops, and only what is not frozen gets a gradient."""
    made = build(published[kind], frozen).train()
    for seed in range(4):
        set_seed(seed)
        frames, lengths = made(*waves(8_000, 1_700))
        frames[length_mask(lengths, frames.shape[1])][..., 0].pow(2).mean().backward()
    assert made.project.weight.grad.abs().max() > 0
    assert (made.layer_weights.grad != 0).all()
    moved = {n for n, p in made.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    if frozen:
        assert not moved
        assert not any(p.requires_grad for p in made.model.parameters())
        assert not any(m.training for m in made.model.modules())
        torch.testing.assert_close(made(*waves(8_000, 1_700))[0], frames)  # no dropout
        return
    assert made.model.training
    wanted = {n for n, p in made.model.named_parameters() if p.requires_grad}
    apart = ["encoder.layer_norm", "encoder.upsample"]  # they come after the sum
    apart += ["encoder.pos_conv_embed"] if kind.startswith("conformer") else []
    still = {n for n in wanted - moved if not n.startswith(tuple(apart))}
    assert still <= {"masked_spec_embed"} | {n for n in wanted if n.endswith(("k_proj.bias", "linear_k.bias"))}


@pytest.mark.parametrize("kind", ["hubert", "w2v-bert"])
def test_a_tenth_of_a_second_trains(published: dict[str, Path], kind: str) -> None:
    """It has fewer frames than one span of SpecAugment."""
    samples = 600 if kind == "hubert" else 1_600
    assert build(published[kind], frozen=False).train()(*waves(samples))[0].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_stored_in_half_precision_are_loaded_in_full(tmp_path: Path, kind: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model(kind).to(dtype).save_pretrained(tmp_path / str(dtype))
        made = build(tmp_path / str(dtype))
        assert {p.dtype for p in made.parameters()} == {torch.float32}
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                assert made(*waves(4_000, 3_000))[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_over_time_keeps_one_of_its_inputs_for_the_backward_pass(dtype: torch.dtype) -> None:
    """Its input is the largest tensor of the network: each more that is kept of it is a batch that does not fit."""
    norm = _PaddedNorm(torch.nn.GroupNorm(8, 8), 10, 5)
    norm.samples = torch.tensor([8_000, 5_000])
    x = torch.randn(2, 8, 1_599, dtype=dtype, requires_grad=True)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x)
    del kept[x.untyped_storage().data_ptr()]
    assert sum(storage.nbytes() for storage in kept.values()) < 1.3 * x.untyped_storage().nbytes()


@pytest.mark.parametrize("kind", WAVEFORM_KINDS)
@torch.no_grad()
def test_a_clip_alone_is_heard_as_the_published_model_hears_it(published: dict[str, Path], kind: str) -> None:
    made, samples = build(published[kind], frozen=False), waves(9_000)[0].squeeze(-1)
    wave = (samples - samples.mean()) / (samples.var(unbiased=False) + 1e-7).sqrt() if made.normalise else samples
    theirs = model(kind).eval()
    wanted = theirs(wave, output_hidden_states=True).hidden_states
    found, lengths = made.hidden_states(samples, torch.tensor([9_000]))
    assert int(lengths) == wanted[0].shape[1]
    for ours, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["w2v-bert", "w2v-bert-adapter"])
@torch.no_grad()
def test_w2v_bert_is_given_what_its_feature_extractor_gives(published: dict[str, Path], kind: str) -> None:
    made = build(published[kind], frozen=False)
    samples, lengths = waves(SECOND, 9_000)
    clips = [w[:n, 0].numpy() for w, n in zip(samples, lengths.tolist(), strict=True)]
    given = SeamlessM4TFeatureExtractor()(clips, sampling_rate=SECOND, return_tensors="pt")
    mel, frames = kaldi_mel(samples.squeeze(-1), lengths, 80)
    mask = given.attention_mask.bool()
    assert (frames // 2).tolist() == mask.sum(1).tolist()
    stacked = mel[:, : 2 * mask.shape[1]].reshape(2, -1, 160)
    torch.testing.assert_close(stacked[mask], given.input_features[mask], atol=1e-3, rtol=1e-3)
    theirs = model(kind).eval()
    wanted = theirs(**given, output_hidden_states=True).hidden_states
    found, _ = made.hidden_states(samples.squeeze(-1), lengths)
    for ours, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours[mask], other[mask], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_whisper_is_given_what_its_feature_extractor_gives() -> None:
    """With silence behind each recording, and the quietest at 8 below the loudest of each."""
    samples, lengths = waves(SECOND, 9_100)
    samples[1] *= 0.01
    clips = [w[:n, 0].numpy() for w, n in zip(samples, lengths.tolist(), strict=True)]
    extract = WhisperFeatureExtractor(feature_size=16, chunk_length=4)
    wanted = extract(clips, sampling_rate=SECOND, return_tensors="pt").input_features.transpose(1, 2)
    found = whisper_mel(samples.squeeze(-1), 102, 16)
    torch.testing.assert_close(found, wanted[:, :102], atol=1e-4, rtol=1e-4)
    assert found[1, 80:].unique().numel() == 1, "the silence is a constant of the recording"


@torch.no_grad()
def test_whisper_with_a_whole_window_is_as_published(published: dict[str, Path]) -> None:
    """A second is all that the tiny one's table has room for."""
    made, samples = build(published["whisper"], frozen=False), waves(SECOND - 200)[0].squeeze(-1)
    mel = WhisperFeatureExtractor(feature_size=16, chunk_length=1)(
        samples.numpy(), sampling_rate=SECOND, return_tensors="pt"
    )
    theirs = model("whisper").eval()
    wanted = theirs.encoder(mel.input_features, output_hidden_states=True).hidden_states
    found, lengths = made.hidden_states(samples, torch.tensor([SECOND - 200]))
    assert int(lengths) == 50
    for ours, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_whispers_window_is_no_longer_than_the_recordings(published: dict[str, Path]) -> None:
    made, seen = build(published["whisper"]), []
    whisper_parts(made.model)[3][0].register_forward_pre_hook(lambda layer, args: seen.append(args[0].shape))
    frames, lengths = made(*waves(6_400, 3_200))
    assert seen == [(2, 20, 16)]
    assert frames.shape == (2, 20, 12)
    assert lengths.tolist() == [20, 10]
    frames, lengths = made(*waves(2 * SECOND))  # longer than the table
    assert frames.shape == (1, 50, 12)
    assert lengths.tolist() == [50]


def test_whispers_sum_starts_around_its_middle_layers() -> None:
    weights = backbone_of("whisper").first_layer_weights(6).softmax(0)
    assert weights.argmax() == 4
    assert weights[2:6].sum() > 0.9
    assert backbone_of("hubert").first_layer_weights(6).softmax(0).unique().numel() == 1


def backbone_of(kind: str) -> type[PretrainedBackbone]:
    return next(c for c in _classes() if FAMILIES[kind][0] in c.model_types)


@torch.no_grad()
def test_loudness_is_normalised_where_the_model_wants_it(published: dict[str, Path]) -> None:
    samples, lengths = waves(8_000)
    for kind, wanted in (("hubert", True), ("wavlm", False)):
        made = build(published[kind])
        same = made(samples, lengths)[0].allclose(made(0.1 * samples, lengths)[0], atol=1e-3)
        assert same == wanted, kind


def test_the_sum_is_of_states_with_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    reader, states = LayerSum(6, 4, torch.tensor([0.3, -1.0])), torch.randn(2, 3, 5, 4)
    reader.mean.normal_()
    reader.deviation.uniform_(0.5, 20)
    parts = zip(reader.layer_weights.softmax(0), (states - reader.mean[:, None, None]), reader.deviation, strict=True)
    mixed = torch.stack([weight * state / deviation for weight, state, deviation in parts]).sum(0)
    torch.testing.assert_close(reader.weigh(list(states)), reader.norm(reader.project(mixed)))


def test_the_layers_are_weighted(published: dict[str, Path]) -> None:
    made = build(published["hubert"])
    with torch.no_grad():
        first = made(*waves(8_000))[0]
        made.layer_weights.copy_(torch.tensor([9.0, 0, 0]))
        assert not made(*waves(8_000))[0].allclose(first, atol=1e-3)


# ---- some of its layers, pooled, kept and stored apart -----------------------------------------------------------


def some_layers(folder: Path, layers: list[int] | None = None, pooling: int = 2) -> Any:
    torch.manual_seed(1)
    made = build_backbone(describe_backbone(str(folder), True, layers=layers, pooling=pooling), 12)
    made.load_published(str(folder))
    return made.eval()


@pytest.mark.parametrize("layers", [None, [1, 2], [1]])
@pytest.mark.parametrize("kind", ["hubert-base", "w2v-bert", "whisper"])
@torch.no_grad()
def test_what_reads_kept_frames_gives_what_the_whole_gives(
    published: dict[str, Path], kind: str, layers: list[int] | None
) -> None:
    made = some_layers(published[kind], layers)
    samples, lengths = waves(SECOND, 9_064, 5_003, filler=0.7)
    kept, counts = made.layer_frames(samples, lengths)
    assert (kept.dtype, kept.shape[2]) == (torch.half, 16 * (3 if layers is None else len(layers)))
    whole, expected = made(samples, lengths)
    assert counts.equal(expected)
    reader = made.reader()
    assert {n for n, _ in reader.named_parameters()} == {n for n, p in made.named_parameters() if p.requires_grad}
    kept[~length_mask(counts, kept.shape[1])] = 9.0  # padding is not read
    read, _ = reader(reader.inputs(kept), counts)
    for row, count in enumerate(counts.tolist()):  # half precision has 11 bits, and a norm follows
        torch.testing.assert_close(read[row, :count], whole[row, :count], atol=5e-3, rtol=5e-3)
        alone, _ = made(samples[row : row + 1, : lengths[row]], lengths[row : row + 1])
        torch.testing.assert_close(whole[row, :count], alone[0, :count], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_layers_and_pooling_are_those_of_the_whole(published: dict[str, Path]) -> None:
    samples, lengths = waves(SECOND, 9_064)
    every, counts = some_layers(published["whisper"], None, 1).states(samples, lengths)
    (some,), halved = some_layers(published["whisper"], [1]).states(samples, lengths)
    assert halved.tolist() == [(n + 1) // 2 for n in counts.tolist()]
    for row, n in enumerate(counts.tolist()):
        parts = every[1][row, :n].split(2)
        torch.testing.assert_close(some[row, : len(parts)], torch.stack([part.mean(0) for part in parts]))


def test_whisper_keeps_no_layer_that_is_not_summed(published: dict[str, Path]) -> None:
    below, whole = (some_layers(published["whisper"], layers) for layers in ([0, 1], [0, 2]))
    assert (len(whisper_parts(below.model)[3]), len(whisper_parts(whole.model)[3])) == (1, 2)


def test_layers_that_there_are_not_are_refused(published: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"encoder.backbone_layers \[1, 3\]: '.*' has states 0 to 2"):
        describe_backbone(str(published["whisper"]), True, layers=[1, 3])


@pytest.mark.parametrize("setting", ["cache_frames=true", "backbone_layers=[1]", "frame_pooling=2"])
def test_layers_of_a_backbone_without_any_are_refused(setting: str) -> None:
    settings = load_recipe("garden-tiny", [f"encoder.{setting}"]).encoder
    with pytest.raises(
        RecipeError, match="encoder.backbone null: cache_frames, backbone_layers and frame_pooling take"
    ):
        check_backbone(settings)


def test_frames_of_a_model_that_is_trained_cannot_be_kept() -> None:
    said = ["encoder.backbone=some/model", "encoder.freeze_backbone=false", "encoder.cache_frames=true"]
    with pytest.raises(RecipeError, match="cache_frames keeps frames that never change: set freeze_backbone to true"):
        load_recipe("garden-tiny", said)


def test_copies_of_nothing_are_refused() -> None:
    with pytest.raises(RecipeError, match="frame_copies counts frames that are cached: set cache_frames to true"):
        load_recipe("garden-tiny", ["encoder.backbone=some/model", "encoder.frame_copies=2"])


@pytest.mark.parametrize("kind", ["hubert-base", "whisper"])
@torch.no_grad()
def test_encoders_on_one_frozen_model_store_it_once_in_half_precision(
    published: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    description = describe_backbone(str(published[kind]), True, layers=[1, 2], pooling=2)
    for code in ("en", "ar"):
        made = SpeechEncoder({code: 5}, width=12, layers=1, heads=2, backbone=description, ctc_head=False).eval()
        made.acoustics.load_published(str(published[kind]))
        made.save(tmp_path / code / "encoder", tmp_path)
        assert isinstance(made.acoustics, PretrainedBackbone), "it goes on as it was"
        again = load_network(SpeechEncoder, tmp_path / code / "encoder")
        before, after = made.state_dict(), again.state_dict()
        assert before.keys() == after.keys()
        assert all(value.equal(after[name]) for name, value in before.items())
        assert {value.dtype for value in after.values() if value.is_floating_point()} == {torch.float32}
        own = load_file(tmp_path / code / "encoder" / "diffusion_pytorch_model.safetensors")
        assert not [name for name in own if name.startswith("acoustics.model")]
    (shared,) = tmp_path.glob("*.safetensors")
    weights = load_file(shared)
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.half}
    assert weights.keys() == {name for name in after if name.startswith("acoustics.model.")}
    shared.unlink()
    with pytest.raises(WeightsError, match=f"{shared.name}"):
        load_network(SpeechEncoder, tmp_path / "en" / "encoder")


# ---- under DeepSpeed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hubert-base", "whisper"])
def test_under_zero_3_a_model_is_built_and_loaded_whole(published: dict[str, Path], kind: str) -> None:
    """accelerate keeps such a configuration alive, and transformers would cut every parameter up as it is made."""
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        made = build(published[kind])
        assert deepspeed.deepspeed_config() is config.config, "what comes after it is under ZeRO-3 again"
    finally:
        deepspeed.unset_hf_deepspeed_config()
    frames = made(*waves(8_000))[0]
    assert frames.isfinite().all()
    assert frames.equal(build(published[kind])(*waves(8_000))[0])


# ---- what does not work ---------------------------------------------------------------------------------------


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="a bert model is no speech backbone that works here; use one of") as error:
        describe_backbone(str(tmp_path), frozen=True)
    assert str(tmp_path) in str(error.value)
    assert "data2vec-audio, hubert, sew, sew-d" in str(error.value)
    assert "wavlm, whisper" in str(error.value)


@pytest.mark.parametrize("there", [False, True])
def test_a_missing_model_is_named(published: dict[str, Path], tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "hubert"
    if there:
        folder.mkdir()
    with pytest.raises(WeightsError) as error:
        describe_backbone(str(folder), frozen=True)
    assert f"encoder.backbone '{folder}': its configuration is not to be had" in str(error.value)
    with pytest.raises(WeightsError) as error:
        build(published["hubert"]).load_published(str(folder))
    assert f"encoder.backbone '{folder}'" in str(error.value)
    assert ("this folder does not load" in str(error.value)) == there
    assert "\n" not in str(error.value)


def test_truncated_weights_are_named(published: dict[str, Path], tmp_path: Path) -> None:
    for path in published["hubert"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(WeightsError, match="does not load"):
        build(tmp_path)


def test_weights_that_are_not_all_there_are_named(tmp_path: Path) -> None:
    whole = model("hubert")
    kept = {k: v for k, v in whole.state_dict().items() if "layers.1.attention" not in k and "spec_embed" not in k}
    whole.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(WeightsError, match=r"8 of its weights are missing, such as encoder\.layers\.1\.attention"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere_at_all:Mine", "cannot be imported (No module named 'nowhere_at_all')"),
        ("sta.errors:Mine", "sta.errors has no SpeechBackbone of this name"),
        ("sta.errors:StaError", "sta.errors has no SpeechBackbone of this name"),
    ],
)
def test_a_class_that_is_not_there_is_named(name: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        backbone_class(name)
    assert f"encoder.backbone '{name}': {sentence}" in str(error.value)


# ---- what is known of a backbone by its name -------------------------------------------------------------------


def test_its_class_is_known_by_the_name_alone() -> None:
    assert backbone_class(None) is LogMelBackbone
    assert describe_backbone(None, frozen=True) is None
    named = backbone_class("nobody/has-this-model")
    assert (named.feature_kind, named.features_per_second, named.augments) == ("samples", SECOND, False)


@pytest.mark.parametrize("name", [None, "facebook/hubert-base-ls960"])
def test_synthetic_features_are_like_cached_ones(name: str | None) -> None:
    named = backbone_class(name)
    wave = (0.2 * np.random.default_rng(0).standard_normal(SECOND)).astype(np.float32)
    cached, example = named.cached_features(wave), named.example_features(np.random.default_rng(0), 250, 5.0)
    assert example.shape == (250, cached.shape[1])
    assert example.dtype == cached.dtype
    assert example.std() > 0
    assert len(cached) == pytest.approx(named.features_per_second, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_encoder_on_it_is_saved_whole(published: dict[str, Path], kind: str, tmp_path: Path) -> None:
    description = describe_backbone(str(published[kind]), frozen=True)
    torch.manual_seed(0)
    made = SpeechEncoder({"en": 5}, width=12, layers=1, heads=2, backbone=description).eval()
    made.acoustics.load_published(str(published[kind]))
    made.save_pretrained(tmp_path)
    again = SpeechEncoder.from_pretrained(tmp_path).eval()
    assert isinstance(again.acoustics, PretrainedBackbone)
    assert not any(p.requires_grad for p in again.acoustics.model.parameters())
    wave = (0.2 * np.random.default_rng(0).standard_normal(9_000)).astype(np.float32)
    features = torch.from_numpy(made.features(wave))[None]
    assert features.shape == (1, 9_000, 1)
    inputs, lengths = made.inputs(features), torch.tensor([9_000])
    np.testing.assert_allclose(inputs[0, :, 0].numpy(), wave.clip(-1, 1), atol=1e-4)
    before, after = made.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
    one, two = (e(inputs, lengths, torch.tensor([0])) for e in (made, again))
    torch.testing.assert_close(one.frames, two.frames)  # weights that lie elsewhere in memory may round otherwise
