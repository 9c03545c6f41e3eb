"""Speech backbones of transformers, random and tiny, saved to disk as published ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperModel,
)

from sta.errors import WeightsError
from sta.models.backbone import Backbone, _PaddedNorm
from sta.models.encoder import SpeechEncoder

#: Layer norm over channels, as in the large models.
WAVEFORM: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (8, 8), "feat_extract_norm": "layer",
    "do_stable_layer_norm": True, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.1, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip
#: A norm over time after the first convolution, as in the base models, which would see the padding.
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
KINDS = ["hubert", "hubert-base", "wav2vec2", "wav2vec2-base", "wavlm", "wavlm-base", "whisper"]
SECOND = 16_000


def model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    name, _, size = kind.partition("-")
    settings = WAVEFORM | (BASE if size else {})
    if name == "hubert":
        return HubertModel(HubertConfig(**settings))
    if name == "wav2vec2":
        return Wav2Vec2Model(Wav2Vec2Config(**settings))
    if name == "wavlm":
        return WavLMModel(WavLMConfig(**settings, num_buckets=16, max_bucket_distance=32))
    return WhisperModel(
        WhisperConfig(
            d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=50, max_target_positions=8, vocab_size=20,
            num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        model(kind).save_pretrained(folder)
        if kind != "whisper":
            Wav2Vec2FeatureExtractor(do_normalize=not kind.startswith("wavlm")).save_pretrained(folder)
    return folders


def build(folder: Path, frozen: bool = True) -> Backbone:
    description, weights = Backbone.describe(str(folder), frozen)
    torch.manual_seed(1)
    made = Backbone(12, description)
    made.model.load_state_dict(weights)
    return made.eval()


def waves(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    batch = torch.zeros(len(lengths), max(lengths), 1)
    for row, n in enumerate(lengths):
        batch[row, :n, 0] = torch.from_numpy(0.2 * rng.standard_normal(n).astype(np.float32))
    return batch, torch.tensor(lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_described_built_and_run(published: dict[str, Path], kind: str) -> None:
    description, weights = Backbone.describe(str(published[kind]), frozen=True)
    assert description["config"]["model_type"] == kind.partition("-")[0]
    assert description["normalise"] == (not kind.startswith("wavlm"))
    made = build(published[kind])
    assert made.model.state_dict().keys() == weights.keys()
    assert made.layer_weights.shape == (3,)
    frames, lengths = made(*waves(SECOND, SECOND // 2))
    assert frames.shape == (2, int(lengths.max()), 12)
    assert frames.isfinite().all()
    assert lengths[0] > 1.9 * lengths[1] > 0
    if kind == "whisper":
        assert lengths.tolist() == [50, 25]


@pytest.mark.parametrize("kind", KINDS)
def test_it_has_the_published_weights(published: dict[str, Path], kind: str) -> None:
    wanted: Any = model(kind)
    part = wanted.encoder if kind == "whisper" else wanted
    made = build(published[kind])
    for name, value in part.state_dict().items():
        assert made.model.state_dict()[name].equal(value), name


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_clip_alone_is_the_clip_in_a_batch(published: dict[str, Path], kind: str) -> None:
    made = build(published[kind])
    samples, lengths = waves(SECOND, 9_000, 5_003)
    together, frames = made(samples, lengths)
    for row, n in enumerate(lengths.tolist()):
        alone, count = made(samples[row : row + 1, :n], lengths[row : row + 1])
        assert int(count[0]) == int(frames[row])
        torch.testing.assert_close(together[row, : int(count[0])], alone[0], atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("kind", KINDS[:-1])
@torch.no_grad()
def test_a_clip_alone_is_heard_as_the_published_model_hears_it(published: dict[str, Path], kind: str) -> None:
    made, samples = build(published[kind]), waves(9_000)[0].squeeze(-1)
    wave = (samples - samples.mean()) / (samples.var(unbiased=False) + 1e-7).sqrt() if made.normalise else samples
    theirs: Any = model(kind).eval()
    wanted = theirs(wave, output_hidden_states=True).hidden_states
    found, _ = made._waveform(samples, torch.tensor([9_000]))
    for ours, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_loudness_is_normalised_where_the_model_wants_it(published: dict[str, Path]) -> None:
    samples, lengths = waves(8_000)
    for kind, wanted in (("hubert", True), ("wavlm", False)):
        made = build(published[kind])
        same = made(samples, lengths)[0].allclose(made(0.1 * samples, lengths)[0], atol=1e-3)
        assert same == wanted, kind


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_stays_still(published: dict[str, Path], kind: str) -> None:
    made = build(published[kind]).train()
    assert made.training
    assert not any(m.training for m in made.model.modules())
    assert not any(p.requires_grad for p in made.model.parameters())
    frames, _ = made(*waves(8_000))
    frames.pow(2).mean().backward()
    assert all(p.grad is None for p in made.model.parameters())
    assert made.project.weight.grad is not None
    assert made.layer_weights.grad is not None
    torch.testing.assert_close(made(*waves(8_000))[0], frames)  # no dropout


def test_not_frozen_it_trains(published: dict[str, Path]) -> None:
    made = build(published["hubert"], frozen=False).train()
    assert all(m.training for m in made.model.modules())
    made(*waves(8_000))[0][..., 0].pow(2).mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in made.model.parameters())


def test_the_layers_are_weighted(published: dict[str, Path]) -> None:
    made = build(published["hubert"])
    with torch.no_grad():
        first = made(*waves(8_000))[0]
        made.layer_weights.copy_(torch.tensor([9.0, 0, 0]))
        assert not made(*waves(8_000))[0].allclose(first, atol=1e-3)


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(
        WeightsError, match=r"a bert model takes no waveform; use a HuBERT, wav2vec2, WavLM or Whisper"
    ) as error:
        Backbone.describe(str(tmp_path), frozen=True)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("there", [False, True])
def test_a_missing_model_is_named(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "hubert"
    if there:
        folder.mkdir()
    with pytest.raises(WeightsError) as error:
        Backbone.describe(str(folder), frozen=True)
    assert f"encoder.backbone '{folder}'" in str(error.value)
    assert ("this folder does not load" in str(error.value)) == there
    assert "\n" not in str(error.value)


def test_truncated_weights_are_named(published: dict[str, Path], tmp_path: Path) -> None:
    for path in published["hubert"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(WeightsError, match="does not load"):
        Backbone.describe(str(tmp_path), frozen=True)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_encoder_on_it_is_saved_whole(published: dict[str, Path], kind: str, tmp_path: Path) -> None:
    description, weights = Backbone.describe(str(published[kind]), frozen=True)
    torch.manual_seed(0)
    made = SpeechEncoder({"en": 5}, width=12, layers=1, heads=2, backbone=description).eval()
    assert isinstance(made.acoustics, Backbone)
    made.acoustics.model.load_state_dict(weights)
    made.save_pretrained(tmp_path)
    again = SpeechEncoder.from_pretrained(tmp_path).eval()
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
