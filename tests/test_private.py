"""Every private name of a library that the package uses is there, and does what it is used for."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from deepspeed.runtime.zero import stage3, stage_1_and_2
from diffusers import VQDiffusionPipeline
from transformers import HubertConfig, HubertModel, WhisperConfig, WhisperModel
from transformers.integrations import HfDeepSpeedConfig, deepspeed

from sta import private
from sta.models.layers import length_mask

# ---- torch ------------------------------------------------------------------------------------------------------


def test_one_operation_works_on_many_tensors() -> None:
    ones, twos = ([torch.full((2,), value), torch.full((3,), value)] for value in (1.0, 2.0))
    private.foreach_add_(ones, private.foreach_sub(twos, ones))
    private.foreach_mul_(ones, torch.tensor(3.0))
    assert [x.tolist() for x in ones] == [[6, 6], [6, 6, 6]]
    private.foreach_lerp_(ones, twos, 0.5)
    assert [x.tolist() for x in ones] == [[4, 4], [4, 4, 4]]
    private.foreach_copy_(ones, twos)
    assert all(one.equal(two) for one, two in zip(ones, twos, strict=True))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 2)])
def test_batch_norm_takes_any_shape(shape: tuple[int, ...]) -> None:
    normed = private.AnyBatchNorm(3)(torch.randn(shape) + 7)
    assert normed.transpose(0, 1).flatten(1).mean(1).abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"batch norm takes \[B, C, ...\], not \[3\]"):
        private.AnyBatchNorm(3)(torch.randn(3))


def test_the_processes_met_in_a_store() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        private.default_store().set("key", "value")
        assert private.default_store().get("key") == b"value"
    finally:
        dist.destroy_process_group()


# ---- accelerate and DeepSpeed -----------------------------------------------------------------------------------


def test_accelerate_keeps_what_it_prepared() -> None:
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    network, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    average = torch.nn.Linear(2, 2)
    accelerator.register_for_checkpointing(average)
    assert private.prepared(accelerator) == ([network], [optimizer], [average])


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (stage_1_and_2.DeepSpeedZeroOptimizer, ["averaged_gradients", "all_grad_tensors", "micro_step_id"]),
        (stage3.DeepSpeedZeroOptimizer_Stage3, ["averaged_gradients"]),
    ],
)
def test_deepspeed_adds_gradients_up_under_these_names(optimizer: type, names: list[str]) -> None:
    code = inspect.getsource(optimizer)
    assert all(f"self.{name} = " in code for name in names)
    assert f"self.micro_step_id = {'INITIAL_MICRO_STEP_ID'}" in inspect.getsource(stage_1_and_2)


def test_dropped_gradients_are_as_before_the_first_part() -> None:
    class Optimizer:
        averaged_gradients, all_grad_tensors, micro_step_id, zeroed = {0: 1}, {0: 1}, 3, False

        def zero_grad(self, set_to_none: bool) -> None:
            self.zeroed = set_to_none

    whole, parts = Optimizer(), Optimizer()
    private.drop_gradients(whole, partitions_weights=False)
    private.drop_gradients(parts, partitions_weights=True)
    assert whole.zeroed
    assert parts.zeroed
    assert (whole.averaged_gradients, parts.averaged_gradients) == ({}, {})
    assert (whole.all_grad_tensors, whole.micro_step_id) == ({}, stage_1_and_2.INITIAL_MICRO_STEP_ID)
    assert (parts.all_grad_tensors, parts.micro_step_id) == ({0: 1}, 3)


# ---- diffusers --------------------------------------------------------------------------------------------------


def test_vq_diffusion_is_conditioned_by_this_method() -> None:
    method = inspect.signature(VQDiffusionPipeline._encode_prompt)
    assert list(method.parameters) == ["self", "prompt", "num_images_per_prompt", "do_classifier_free_guidance"]
    assert "= self._encode_prompt(" in inspect.getsource(VQDiffusionPipeline.__call__)
    pipeline: Any = SimpleNamespace()
    private.condition_with(pipeline, lambda guided: torch.full((1,), float(guided)))
    assert [pipeline._encode_prompt(["", ""], 1, guided).item() for guided in (True, False)] == [1.0, 0.0]


# ---- transformers -----------------------------------------------------------------------------------------------


def test_deepspeeds_configuration_is_held_by_this_name() -> None:
    assert deepspeed._hf_deepspeed_config_weak_ref is None
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    held: Any = deepspeed._hf_deepspeed_config_weak_ref
    assert held() is config
    with private.outside_deepspeed():
        assert not deepspeed.is_deepspeed_zero3_enabled()
    assert deepspeed.is_deepspeed_zero3_enabled()
    deepspeed.unset_hf_deepspeed_config()


SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_waveform_model_has_these_parts(norm: str) -> None:
    shape: dict[str, Any] = {
        "conv_dim": (8, 8),
        "conv_kernel": (10, 3),
        "conv_stride": (5, 2),
        "num_conv_pos_embedding_groups": 2,
    }
    made = HubertModel(HubertConfig(**SIZES, **shape, feat_extract_norm=norm))
    first = private.first_convolution(made)
    assert isinstance(first.conv, torch.nn.Conv1d)
    assert isinstance(first.layer_norm, torch.nn.GroupNorm if norm == "group" else torch.nn.LayerNorm)
    assert any(isinstance(m, torch.nn.Conv1d) for m in private.transformer(made).modules())


def test_whispers_encoder_has_these_parts() -> None:
    config = WhisperConfig(
        vocab_size=20, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=50,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    made = WhisperModel(config).eval()
    first, second, table, layers, norm = private.whisper_parts(made.encoder)
    assert (first.stride, second.stride) == ((1,), (2,))
    assert table.weight.shape == (50, 16)
    assert len(layers) == 2
    assert isinstance(norm, torch.nn.LayerNorm)
    states, mask = torch.randn(2, 7, 16), length_mask(torch.tensor([7, 4]), 7)[:, None, None]
    one, two = (layers[0](x, mask) for x in (states, states + 9 * ~mask[:, 0, 0, :, None]))
    torch.testing.assert_close(one[1, :4], two[1, :4])
