"""Networks in the ONNX format, run by onnxruntime, which is imported here alone."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sta.data.synthesis.base import installed


@lru_cache(maxsize=16)
def session(path: Path) -> Any:
    """Return the network in a file, loaded once per process; on one thread, as processes share the cores.

    Raises:
        VoiceError: onnxruntime is not installed.
    """
    installed("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
