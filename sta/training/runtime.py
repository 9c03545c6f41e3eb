"""Where training meets accelerate and the machine: processes, precision, signals, seeds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from sta.errors import Interrupted, TrainingError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def has_fast_bf16() -> bool:
    """Whether bfloat16 matrix products run in hardware: on a GPU since Ampere, on a CPU with AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
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


def step_seed(seed: int, stage: str, step: int, rank: int) -> int:
    """The seed of everything random in one step on one rank: a resumed run draws what it would have drawn."""
    import zlib

    return zlib.crc32(f"{seed}/{stage}/{step}/{rank}".encode())


class StopRequest:
    """Whether SIGINT or SIGTERM came; the training loop looks between steps and saves before it leaves."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt  # asked twice: leave now
        self.signal = number

    def anywhere(self, accelerator: Accelerator) -> bool:
        """Whether any rank was asked to stop; every rank gets the same answer."""
        if accelerator.num_processes == 1:
            return self.signal is not None
        flag = torch.tensor([float(self.signal is not None)], device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item() > 0)


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request while the block runs."""
    request = StopRequest()
    with _handlers(request):
        yield request


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `Interrupted` while the block runs: clean-up happens, nothing is half-written."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(f"stopped on {signal.Signals(number).name}; run the same command again to continue")

    with _handlers(leave):
        yield


@contextmanager
def _handlers(handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals can only be handled in the main thread
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
