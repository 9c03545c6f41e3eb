"""What the evaluator draws, without a trained run."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import sta.evaluation.evaluator
from sta.evaluation.evaluator import Evaluator
from sta.models.bottleneck import SpeechCondition
from tests.release_fixtures import SIZE, STEPS, tiny_pipeline, wave


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    """Only what `draw` uses."""
    evaluator = Evaluator.__new__(Evaluator)
    evaluator.pipe = tiny_pipeline()
    return evaluator


@pytest.fixture(scope="module")
def tokens(evaluator: Evaluator) -> SpeechCondition:
    return evaluator.pipe.encode_speech([wave(seed=s) for s in range(5)], "en")


def test_draw_does_not_depend_on_batches(
    evaluator: Evaluator, tokens: SpeechCondition, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(sta.evaluation.evaluator, "bf16_autocast", lambda device: nullcontext())
    for batch in (1, 2, 5, 32):
        monkeypatch.setattr(sta.evaluation.evaluator, "BATCH", batch)
        drawn.append(evaluator.generate(tokens, seeds=[9, 8, 7, 6, 5]))
        torch.testing.assert_close(drawn[-1], drawn[0], atol=1e-4, rtol=0)
    assert drawn[0].shape == (5, 3, SIZE, SIZE)
    assert drawn[0].abs().max() <= 1


def test_drawing_in_bfloat16_gives_floats(
    evaluator: Evaluator, tokens: SpeechCondition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sta.evaluation.evaluator, "bf16_autocast", lambda device: torch.autocast(device.type, torch.bfloat16)
    )
    drawn = evaluator.generate(tokens, seeds=[9, 8, 7, 6, 5])
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()


def test_draw_is_what_the_pipeline_draws(
    evaluator: Evaluator, tokens: SpeechCondition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are of the pictures that a user gets with the same seed, but for the rounding of bfloat16."""
    monkeypatch.setattr(sta.evaluation.evaluator, "bf16_autocast", lambda device: nullcontext())
    image = evaluator.pipe(
        wave(seed=3), generator=torch.Generator().manual_seed(6), num_inference_steps=STEPS, output_type="pt"
    ).images
    drawn = evaluator.generate(tokens, seeds=[9, 8, 7, 6, 5])[3]
    torch.testing.assert_close((drawn + 1) / 2, image[0], atol=1e-4, rtol=0)
