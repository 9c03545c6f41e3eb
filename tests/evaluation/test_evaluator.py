"""What the evaluator draws, without a trained run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from sta.evaluation.evaluator import BatchedPipeline
from sta.inference.pipeline import SpeechToImagePipeline
from sta.models.bottleneck import SpeechCondition
from tests.release_fixtures import SIZE, STEPS, tiny_pipeline, wave

SEEDS = [9, 8, 7, 6, 5]


@pytest.fixture(scope="module")
def pipe() -> SpeechToImagePipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def tokens(pipe: SpeechToImagePipeline) -> SpeechCondition:
    return pipe.encode_speech([wave(seed=s) for s in range(5)], "en")


def in_float32(device: torch.device) -> AbstractContextManager[object]:
    return nullcontext()


def test_draw_does_not_depend_on_batches(pipe: SpeechToImagePipeline, tokens: SpeechCondition) -> None:
    drawn = [BatchedPipeline(pipe, batch, in_float32).generate(tokens, SEEDS) for batch in (1, 2, 5, 32)]
    for pictures in drawn[1:]:
        torch.testing.assert_close(pictures, drawn[0], atol=1e-4, rtol=0)
    assert drawn[0].shape == (5, 3, SIZE, SIZE)
    assert drawn[0].abs().max() <= 1


def test_drawing_in_bfloat16_gives_floats(pipe: SpeechToImagePipeline, tokens: SpeechCondition) -> None:
    batched = BatchedPipeline(pipe, autocast=lambda device: torch.autocast(device.type, torch.bfloat16))
    drawn = batched.generate(tokens, SEEDS)
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()


def test_draw_is_what_the_pipeline_draws(pipe: SpeechToImagePipeline, tokens: SpeechCondition) -> None:
    """The numbers are of the pictures that a user gets with the same seed, but for the rounding of bfloat16."""
    image = pipe(
        wave(seed=3), generator=torch.Generator().manual_seed(6), num_inference_steps=STEPS, output_type="pt"
    ).images
    drawn = BatchedPipeline(pipe, autocast=in_float32).generate(tokens, SEEDS)[3]
    torch.testing.assert_close((drawn + 1) / 2, image[0], atol=1e-4, rtol=0)
