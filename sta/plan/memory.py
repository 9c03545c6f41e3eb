"""Memory of one GPU: weights, gradients, AdamW and the average of the weights under each way of sharing them out.

Weights are float32 and autocast is bfloat16, under DeepSpeed too (its `torch_autocast`).
"""

from __future__ import annotations

from collections.abc import Mapping

from sta.plan.networks import Parameters

F32 = 4
GIB = 2**30
#: Elements of the buffer in which DeepSpeed gathers gradients, and of the weights that ZeRO-3 keeps together, as
#: DeepSpeed has them where a launch file does not say (`reduce_bucket_size`, `stage3_max_live_parameters`).
BUCKET, LIVE = 500_000_000, 1_000_000_000
KEPT_FREE = 0.1  # of a GPU, for CUDA's own use, what forward and backward need for a moment, and fragments
OFFLOAD = "ZeRO-3 + offload"
#: Way of sharing -> its launch file of recipes/accelerate; the first that fits is best, as what shares more is slower.
WAYS = {"no ZeRO": "gpu-8.yaml", "ZeRO-2": "gpu-8-zero2.yaml", OFFLOAD: "gpu-8-zero3-offload.yaml"}


def states(size: Parameters, processes: int, averaged: bool) -> dict[str, float]:
    """Compute the bytes on one GPU, by way, of all that is kept from step to step and of the gradients' buffers."""
    weights, trained = F32 * (size.trainable + size.frozen), F32 * size.trainable
    average, buffer = weights * averaged, F32 * BUCKET
    if processes == 1:
        return {"no ZeRO": weights + 3 * trained + average}
    return {
        "no ZeRO": weights + 3 * trained + average + trained,  # DDP's buckets are as large as the gradients
        "ZeRO-2": weights + 4 * trained / processes + average + buffer,  # gradients, AdamW's two and the master copy
        OFFLOAD: weights / processes + min(weights, F32 * LIVE) + average + buffer,
    }


def offloaded(size: Parameters, share: float) -> float:
    """Compute the bytes that offloading takes of a machine with a `share` of the GPUs: two copies, gradients, AdamW."""
    return 5 * F32 * size.trainable * share


def first_fit(needs: Mapping[str, float], memory: float) -> str | None:
    """Return the first way that fits in `memory` bytes; None where none does."""
    return next((way for way in WAYS if way in needs and needs[way] <= (1 - KEPT_FREE) * memory), None)
