"""Where training meets accelerate and the machine: processes, precision, seeds."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from sta.errors import TrainingError
from sta.stopping import StopRequest


def has_fast_bf16(device: str | None = None) -> bool:
    """Whether bfloat16 matrix products run in hardware: on a GPU since Ampere, on a CPU with AVX512-BF16 or AMX.

    `device` is `cuda` or `cpu`; by default the one that training takes.
    """
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def start(precision: str = "auto") -> Accelerator:
    """An Accelerator for this process, alone or under any launcher.

    Args:
        precision: `auto` (bf16 where the machine has it), `bf16` or `fp32`.

    Raises:
        TrainingError: the launcher started more processes than accelerate sees, so each would train alone.
    """
    mixed = {"auto": "bf16" if has_fast_bf16() else "no", "bf16": "bf16", "fp32": "no"}[precision]
    handlers: list[object] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    processors = launched > 1 and not torch.cuda.is_available()
    if processors:
        # Without a backend named, accelerate leaves DeepSpeed's CPU ranks believing that they are alone; without
        # `cpu`, it leaves ranks started by torchrun with a model that is not synchronised.
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    accelerator = Accelerator(
        cpu=processors and not deepspeed, mixed_precision="no" if deepspeed else mixed, kwargs_handlers=handlers
    )
    if deepspeed and mixed == "bf16":
        # DeepSpeed's own bf16 casts the weights and leaves the inputs; its autocast is what accelerate does elsewhere.
        accelerator.state.deepspeed_plugin.deepspeed_config["torch_autocast"] = {
            "enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": [],
        }  # fmt: skip
    if accelerator.num_processes != launched:
        raise TrainingError(
            f"the launcher started {launched} processes but accelerate sees {accelerator.num_processes}; "
            "use a launch file of recipes/accelerate (on CPU under DeepSpeed: DS_ACCELERATOR=cpu and no use_cpu)"
        )
    return accelerator


def step_seed(seed: int, stage: str, step: int, rank: int | None = None) -> int:
    """The seed of everything random in one step, on all ranks or one: a resumed run draws what it would have drawn."""
    return zlib.crc32(f"{seed}/{stage}/{step}/{'all' if rank is None else rank}".encode())


def stop_anywhere(accelerator: Accelerator, request: StopRequest) -> bool:
    """Whether any rank was asked to stop; every rank gets the same answer."""
    if accelerator.num_processes == 1:
        return request.signal is not None
    flag = torch.tensor([float(request.signal is not None)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item() > 0)
