"""Memory of one GPU: weights, gradients, AdamW and the average under each way of sharing them out, and activations.

Weights are float32 and autocast is bfloat16, under DeepSpeed too (its `torch_autocast`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sta.plan.networks import Parameters

F32 = 4
#: Elements of the buffer in which DeepSpeed gathers gradients, and of the weights that ZeRO-3 keeps together, as
#: DeepSpeed has them where a launch file does not say (`reduce_bucket_size`, `stage3_max_live_parameters`).
BUCKET, LIVE = 500_000_000, 1_000_000_000
KEPT_FREE = 0.1  # of a GPU, for CUDA's own use, what forward and backward need for a moment, and fragments
GIB = 2**30


@dataclass(frozen=True)
class Way:
    """One way to share a stage's state out among processes.

    Attributes:
        zero: DeepSpeed's stage, 0 for none: one process, or DDP.
        offload: the optimizer's state and gradients are in the host's memory.
        file: the launch file of recipes/accelerate for it; None where there is none.
    """

    zero: int
    offload: bool
    file: str | None

    @property
    def name(self) -> str:
        return ("no ZeRO", "ZeRO-1", "ZeRO-2", "ZeRO-3")[self.zero] + " + offload" * self.offload


#: In the order in which they should be taken: what shares more is slower.
WAYS = (
    Way(0, False, "gpu-8.yaml"), Way(1, False, None), Way(2, False, "gpu-8-zero2.yaml"), Way(3, False, None),
    Way(2, True, None), Way(3, True, "gpu-8-zero3-offload.yaml"),
)  # fmt: skip


def states(way: Way, size: Parameters, processes: int, averaged: bool) -> float:
    """Bytes on one GPU of all that is kept from step to step, and of the buffers that gradients are reduced in."""
    t, f, n = size.trainable, size.frozen, processes
    average = F32 * (t + f) * averaged
    if way.zero == 0:
        buckets = F32 * t * (n > 1)
        return F32 * (t + f) + F32 * t + 2 * F32 * t + buckets + average
    weights = F32 * (t + f) if way.zero < 3 else F32 * (t + f) / n + F32 * min(t + f, LIVE)
    master = F32 * t / n if way.zero < 3 else 0  # ZeRO-3 takes the float32 weights themselves for the master copy
    gradients = F32 * t if way.zero == 1 else F32 * t / n
    adam = 2 * F32 * t / n
    if way.offload:
        master = gradients = adam = 0
    return weights + master + gradients + adam + F32 * BUCKET + average


def host(way: Way, size: Parameters, a_node: int, processes: int) -> float:
    """Bytes in the memory of one machine that offloading takes: master, a copy of the weights, gradients, AdamW."""
    return 5 * F32 * size.trainable * a_node / processes if way.offload else 0.0


def possible(way: Way, processes: int) -> bool:
    """Whether there is something to share."""
    return way.zero == 0 or processes > 1


def chosen(needs: Mapping[Way, float], memory: float) -> Way | None:
    """The first way that fits in `memory` bytes: one that has a launch file, else one that has none."""
    fitting = [way for way in WAYS if way in needs and needs[way] <= (1 - KEPT_FREE) * memory]
    return next((way for way in fitting if way.file), fitting[0] if fitting else None)
