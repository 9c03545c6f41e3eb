"""Where training meets accelerate and the machine: processes, precision, seeds."""

from __future__ import annotations

import os
import zlib
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs

from sta.distributed import ranks
from sta.distributed.rendezvous import meet
from sta.errors import TrainingError
from sta.signals import StopRequest

PATIENCE = timedelta(days=1)  # while the main rank builds a corpus; a rank that dies is noticed at once


def has_fast_bf16(device: str | None = None) -> bool:
    """Return whether bfloat16 matrix products run in hardware: on a GPU since Ampere, on a CPU with AVX512-BF16 or AMX.

    `device` is `cuda` or `cpu`; by default the one that training takes.
    """
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def bf16_autocast(device: torch.device) -> torch.autocast:
    """Return bfloat16 where the machine has it in hardware: for frozen networks whose output is cached."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device.type))


def forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """Let what is drawn within leave torch's random numbers alone, those of the host and of one device."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])  # type: ignore[no-any-return]


def join() -> PartialState:
    """Return the processes of this launch, joined at the first call; without a launcher this process alone."""
    how = {}
    if ranks.world_size() > 1:
        backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
        if not dist.is_initialized():
            store = meet(ranks.rank(), ranks.world_size(), PATIENCE)
            dist.init_process_group(
                backend, store=store, rank=ranks.rank(), world_size=ranks.world_size(), timeout=PATIENCE
            )
        # Without a backend named, accelerate leaves DeepSpeed's CPU ranks believing that they are alone; without
        # `cpu`, it leaves ranks started by torchrun with a model that is not synchronised.
        how = {"timeout": PATIENCE} | ({} if torch.cuda.is_available() else {"backend": backend})
    state = PartialState(cpu=_on_processors(), **how)
    if state.num_processes != ranks.world_size():
        raise TrainingError(
            f"the launcher started {ranks.world_size()} processes but accelerate sees {state.num_processes}; "
            "use a launch file of recipes/accelerate (on CPU under DeepSpeed: DS_ACCELERATOR=cpu and no use_cpu)"
        )
    return state


def _on_processors() -> bool:
    """Return whether accelerate must be told that its processes are on the CPU."""
    return ranks.world_size() > 1 and not torch.cuda.is_available() and not _under_deepspeed()


def _under_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def is_bf16(precision: str) -> bool:
    """Return whether a recipe's precision is bfloat16 here: `auto` is, where the machine has it in hardware."""
    return {"auto": has_fast_bf16(), "bf16": True, "fp32": False}[precision]


def start(precision: str = "auto") -> Accelerator:
    """Return an Accelerator for this process, alone or under any launcher, with a recipe's precision."""
    join()
    mixed, deepspeed = is_bf16(precision), _under_deepspeed()
    accelerator = Accelerator(
        cpu=_on_processors(), mixed_precision="bf16" if mixed and not deepspeed else "no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )  # fmt: skip
    if deepspeed:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_batch_size"] = "auto"  # accelerate wrote that of the stage before into it
        # DeepSpeed's own bf16 casts the weights and leaves the inputs; its autocast is what accelerate does elsewhere.
        config["torch_autocast"] = {"enabled": mixed, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return accelerator


def loading_processes(device: torch.device) -> int:
    """Return how many processes make batches for each rank: a GPU must not wait; on the CPU they take its cores."""
    if device.type == "cpu":
        return 0
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(4, max(0, len(os.sched_getaffinity(0)) // neighbours - 1))


def step_seed(seed: int, stage: str, step: int, rank: int | None = None) -> int:
    """Return the seed of everything random in one step, on any number of ranks and in a resumed run alike."""
    return zlib.crc32(f"{seed}/{stage}/{step}/{'all' if rank is None else rank}".encode())


def stop_anywhere(accelerator: Accelerator, request: StopRequest) -> bool:
    """Return whether any rank was asked to stop, the same on every rank; the hosts ask one another, and no device."""
    if accelerator.num_processes == 1:
        return request.signal is not None
    flag = torch.tensor(float(request.signal is not None))
    dist.all_reduce(flag)
    return bool(flag > 0)
