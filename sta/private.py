"""What is used of libraries beyond their documented interfaces, each name with a test of it in `tests/test_private.py`.

Seen in torch 2.14, accelerate 1.15, deepspeed 0.19, diffusers 0.42 and transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed import Store, distributed_c10d
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from accelerate import Accelerator

# ---- torch ------------------------------------------------------------------------------------------------------

#: One operation for many tensors; torch's own optimizers are made of these.
foreach_add_, foreach_copy_, foreach_lerp_, foreach_mul_, foreach_sub = (
    torch._foreach_add_, torch._foreach_copy_, torch._foreach_lerp_, torch._foreach_mul_, torch._foreach_sub
)  # fmt: skip


class AnyBatchNorm(_BatchNorm):
    """Batch norm of [B, C, ...], whichever shape follows: torch's public ones are of one number of dimensions each."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"batch norm takes [B, C, ...], not {list(x.shape)}")


def default_store() -> Store:
    """Return the store in which the processes of the default group met."""
    return distributed_c10d._get_default_store()


# ---- accelerate and DeepSpeed -----------------------------------------------------------------------------------


def prepared(accelerator: Accelerator) -> tuple[list[nn.Module], list[Any], list[Any]]:
    """Return what `Accelerator.load_state` loads: networks, optimizers and what was registered for checkpointing."""
    return accelerator._models, accelerator._optimizers, accelerator._custom_objects


def drop_gradients(optimizer: Any, partitions_weights: bool) -> None:
    """Drop the gradients that a ZeRO optimizer of DeepSpeed has added up of a step's parts."""
    optimizer.zero_grad(set_to_none=True)
    optimizer.averaged_gradients = {}
    if not partitions_weights:  # ZeRO-1 and 2 keep the sums of the parts, and count those
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        optimizer.all_grad_tensors, optimizer.micro_step_id = {}, INITIAL_MICRO_STEP_ID


# ---- diffusers --------------------------------------------------------------------------------------------------


def condition_with(pipeline: Any, condition: Callable[[bool], torch.Tensor]) -> None:
    """Let `condition(is_guided)` [n, K, C] take the place of what diffusers' VQ-Diffusion pipeline makes of text."""
    pipeline._encode_prompt = lambda texts, pictures, is_guided: condition(is_guided)


# ---- transformers -----------------------------------------------------------------------------------------------


@contextmanager
def outside_deepspeed() -> Iterator[None]:
    """Let transformers build and load whole models.

    Under ZeRO-3 accelerate keeps an `HfDeepSpeedConfig` alive. Where transformers finds one, it partitions a parameter
    as soon as it is made, and a weight norm is given an empty one. DeepSpeed partitions the whole network later anyway.
    """
    from transformers.integrations import deepspeed

    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


def first_convolution(model: Any) -> Any:
    """Return the first layer of a waveform model's feature extractor: `conv`, mostly with a `layer_norm`."""
    return model.feature_extractor.conv_layers[0]


def transformer(model: Any) -> nn.Module:
    """Return the part of a waveform model that comes after its feature extractor."""
    part: nn.Module = model.encoder
    return part


def whisper_parts(encoder: Any) -> tuple[nn.Module, nn.Module, nn.Embedding, nn.ModuleList, nn.Module]:
    """Return of Whisper's encoder the two convolutions, the table of positions, the layers and the last norm.

    A layer is called with states [B, S, C] and a mask [B, 1, 1, S], True where valid, and returns states.
    """
    return encoder.conv1, encoder.conv2, encoder.embed_positions, encoder.layers, encoder.layer_norm
