"""What bounds the pipeline: each rank works out its share of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sta.data.store import pad
from sta.evaluation import bounds
from sta.models.bottleneck import SpeechCondition
from tests.distributed.test_ranks import on_ranks

FRAMES = [np.full((length, 4), length, np.float16) for length in (5, 2, 7, 3, 4)]


def _bound_five() -> Any:
    """Five pictures through the tokenizer and five training rows heard, by twos, and how many this process did."""
    asked = {"pictures": 0, "recordings": 0}

    def reconstruct(pictures: torch.Tensor, tokenizer: None) -> torch.Tensor:
        asked["pictures"] += len(pictures)
        return pictures * 2

    def bottleneck(frames: torch.Tensor, mask: torch.Tensor, language: torch.Tensor) -> SpeechCondition:
        assert language.tolist() == [3] * len(frames)
        asked["recordings"] += len(frames)
        tokens = (frames * mask[..., None]).sum(1, keepdim=True)
        return SpeechCondition(tokens, tokens[:, 0], tokens[:, 0, 0])

    encoder = SimpleNamespace(language_indices=lambda codes: torch.tensor([{"en": 3}[code] for code in codes]))
    bounds.BATCH = 2
    bounds.cached_frames = lambda *_: SimpleNamespace(  # type: ignore[assignment]
        padded=lambda places, multiple: pad([FRAMES[place] for place in places], multiple)
    )
    bounds.group_rows = lambda *_: np.arange(0, 10, 2)  # type: ignore[assignment]
    evaluator: Any = SimpleNamespace(
        workspace=None, real_images=lambda rows: torch.from_numpy(rows).float()[:, None, None, None],
        pipe=SimpleNamespace(
            device=torch.device("cpu"), tokenizer=None, decoder=SimpleNamespace(reconstruct=reconstruct),
            pack=lambda language: SimpleNamespace(group="pooled", bottleneck=bottleneck, encoder=encoder),
        ),
    )  # fmt: skip
    return {
        "pictures": bounds._reconstruct(evaluator, np.arange(5)).flatten().tolist(),
        "tokens": bounds._training_tokens(evaluator, np.array([8, 0, 4, 2, 6]), "en")[:, 0, 0].tolist(),
        "asked": asked,
    }


def test_any_number_of_ranks_bounds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BATCH", "cached_frames", "group_rows"):
        monkeypatch.setattr(bounds, name, None)  # so that what `_bound_five` sets is put back
    first, second = on_ranks(_bound_five, tmp_path)
    alone = _bound_five()
    assert alone["pictures"] == [0, 2, 4, 6, 8]
    assert alone["tokens"] == [16, 25, 49, 4, 9]
    for what in ("pictures", "tokens"):
        assert first[what] == second[what] == alone[what]
    assert [each["asked"]["pictures"] for each in (first, second, alone)] == [3, 2, 5]
    assert [each["asked"]["recordings"] for each in (first, second, alone)] == [3, 2, 5]
