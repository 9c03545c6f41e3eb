"""How many floating-point operations a device does a second at its best."""

from __future__ import annotations

import torch

#: Words of a GPU's name -> its dense bfloat16 products, 10^12 a second, by NVIDIA's data sheets; the first that fits.
PEAKS = {
    "B200": 2250.0, "GH200": 989.0, "H200": 989.0, "H100 NVL": 835.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0,
    "L40S": 362.0, "L4": 121.0, "A30": 165.0, "RTX 4090": 165.0,
}  # fmt: skip


def peak_of(device: torch.device) -> float | None:
    """Return the operations a second of a known GPU at its best; None of any other device."""
    if device.type != "cuda":
        return None
    return peak_named(torch.cuda.get_device_name(device))


def peak_named(name: str) -> float | None:
    """Return the same by a GPU's name."""
    words = f" {name.replace('-', ' ')} "
    return next((tflops * 1e12 for known, tflops in PEAKS.items() if f" {known} " in words), None)
