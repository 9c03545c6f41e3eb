"""What bounds the pipeline: each rank works out its share of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sta.data.store import Ragged
from sta.evaluation.evaluator import BatchedPipeline
from tests.distributed.test_ranks import on_ranks
from tests.release_fixtures import SIZE, tiny_pipeline


def _bound_five(folder: Path) -> Any:
    """Reconstruct five pictures and encode five recordings' frames, by twos; count how many this process did."""
    pipe = tiny_pipeline()
    batched = BatchedPipeline(pipe, batch=2)
    done = {"pictures": 0, "recordings": 0}
    pipe.tokenizer.encoder.register_forward_pre_hook(
        lambda _, inputs: done.update(pictures=done["pictures"] + len(inputs[0]))
    )
    pipe.pack("en").bottleneck.register_forward_pre_hook(
        lambda _, inputs: done.update(recordings=done["recordings"] + len(inputs[0]))
    )
    pictures = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {
        "pictures": batched.reconstruct(pictures).flatten().tolist(),
        "tokens": batched.tokens_of(Ragged(folder), np.array([4, 0, 2, 1, 3]), "en").flatten().tolist(),
        "done": done,
    }


def test_any_number_of_ranks_bounds_the_same(tmp_path: Path) -> None:
    rng, lengths = np.random.default_rng(0), [5, 2, 7, 3, 4]
    frames = [rng.standard_normal((length, 16)).astype(np.float16) for length in lengths]
    (tmp_path / "frames").mkdir()
    Ragged.write(tmp_path / "frames", frames, lengths)
    first, second = on_ranks(partial(_bound_five, tmp_path / "frames"), tmp_path)
    alone = _bound_five(tmp_path / "frames")
    for what in ("pictures", "tokens"):
        np.testing.assert_allclose(first[what], alone[what], atol=1e-5)
        assert first[what] == second[what]
    assert [each["done"]["pictures"] for each in (first, second, alone)] == [3, 2, 5]
    assert [each["done"]["recordings"] for each in (first, second, alone)] == [3, 2, 5]
