"""What the examiner draws, without a trained run."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import sta.evaluation.examiner
from sta.evaluation.examiner import Examiner
from sta.models.bottleneck import Tokens
from tests.release_fixtures import SIZE, STEPS, tiny_pipeline, wave


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    """Only what `draw` uses."""
    examiner = Examiner.__new__(Examiner)
    examiner.pipe = tiny_pipeline()
    return examiner


@pytest.fixture(scope="module")
def tokens(examiner: Examiner) -> Tokens:
    return examiner.pipe.encode_speech([wave(seed=s) for s in range(5)], "en")


def test_draw_does_not_depend_on_batches(examiner: Examiner, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(sta.evaluation.examiner, "fast", lambda device: nullcontext())
    for batch in (1, 2, 5, 32):
        monkeypatch.setattr(sta.evaluation.examiner, "BATCH", batch)
        drawn.append(examiner.draw(tokens, seeds=[9, 8, 7, 6, 5]))
        torch.testing.assert_close(drawn[-1], drawn[0], atol=1e-4, rtol=0)
    assert drawn[0].shape == (5, 3, SIZE, SIZE)
    assert drawn[0].abs().max() <= 1


def test_drawing_in_bfloat16_gives_floats(examiner: Examiner, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sta.evaluation.examiner, "fast", lambda device: torch.autocast(device.type, torch.bfloat16))
    drawn = examiner.draw(tokens, seeds=[9, 8, 7, 6, 5])
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()


def test_draw_is_what_the_pipeline_draws(examiner: Examiner, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are of the pictures that a user gets with the same seed, but for the rounding of bfloat16."""
    monkeypatch.setattr(sta.evaluation.examiner, "fast", lambda device: nullcontext())
    image = examiner.pipe(
        wave(seed=3), generator=torch.Generator().manual_seed(6), num_inference_steps=STEPS, output_type="pt"
    ).images
    drawn = examiner.draw(tokens, seeds=[9, 8, 7, 6, 5])[3]
    torch.testing.assert_close((drawn + 1) / 2, image[0], atol=1e-4, rtol=0)
