"""What mood a voice has is heard in its pitch and tempo, at whatever level a microphone is set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sta.config.recipe import load_recipe
from sta.data.audio import LOG_STEPS
from sta.training.losses.mood import MoodLoss
from sta.training.tasks.distill import Distillation, DistillBatch, DistillTask
from tests.training.facts import FACTS

STEPS, BATCH, FRAMES, MOODS = 300, 32, 64, 3
DECIBEL = LOG_STEPS * np.log(10) / 10  # in steps of quantised log-mel


def voices(rng: np.random.Generator, tells: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel uint8 [B, S, 80] of voices and their moods: happier ones are higher and quicker.

    Args:
        tells: decibels by which they are louder besides, a mood.
    """
    mood, time, band = rng.integers(0, MOODS, BATCH), np.arange(FRAMES), np.arange(80)
    pitch = 20 + 10 * mood + rng.normal(0, 2, BATCH)
    tempo = 0.25 + 0.1 * mood + rng.normal(0, 0.03, BATCH)
    syllables = np.cos(tempo[:, None] * time + rng.uniform(0, 6, (BATCH, 1)))
    formant = np.exp(-(((band - pitch[:, None]) / 6) ** 2))
    level = tells * (mood - 1) + rng.normal(0, 1, BATCH)
    mel = 100 + 20 * syllables[..., None] + 40 * formant[:, None] + rng.normal(0, 10, (BATCH, FRAMES, 80))
    mel += DECIBEL * level[:, None, None]
    return torch.from_numpy(mel.clip(0, 255).astype(np.uint8)), torch.from_numpy(mood)


def louder(mel: torch.Tensor, decibels: float) -> torch.Tensor:
    return (mel.float() + DECIBEL * decibels).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def heard(module: Distillation, batch: DistillBatch, mel: torch.Tensor) -> torch.Tensor:
    out = module.encoder(module.encoder.inputs(mel), batch.lengths, batch.language)
    tokens = module.bottleneck(out.frames, out.mask, batch.language).tokens
    loss = module.losses[0]
    assert isinstance(loss, MoodLoss)
    found: torch.Tensor = loss.classifier(tokens)[:, 0].argmax(-1)
    return found


@pytest.mark.parametrize(("gain", "holds"), [(12.0, True), (0.0, False)])
def test_a_microphones_level_changes_no_mood(gain: float, holds: bool) -> None:
    """In training the level tells the mood, as it does where each mood is recorded in a session of its own."""
    rng = np.random.default_rng(0)
    recipe = load_recipe("garden-tiny", [
        "encoder={width: 24, convolutions: 2, layers: 1, heads: 2}", "bottleneck={tokens: 2, width: 8, layers: 1}",
        "stages.distill.losses={image: 0, text: 0, text_branch: 0, ctc: 0, caption: 0, kl: 0, mood: 1}",
        "stages.distill.augment=0", f"stages.distill.gain={gain}",
    ])  # fmt: skip
    module = DistillTask.build_network(recipe, FACTS, "distill-pooled").train()
    batch = DistillTask.example_batch(recipe, FACTS, "distill-pooled", BATCH, FRAMES / 100)
    batch = replace(batch, lengths=torch.full((BATCH,), FRAMES))
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    torch.manual_seed(0)
    for _ in range(STEPS):
        mel, mood = voices(rng, tells=3.0)
        module(replace(batch, features=mel, targets={"mood": {"values": mood}}))["mood"].backward()
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
    module.eval()
    mel, mood = voices(rng, tells=0.0)
    as_it_is = heard(module, batch, mel)
    same = torch.stack([heard(module, batch, louder(mel, by)) == as_it_is for by in (-12, 12)]).float().mean()
    if holds:
        assert (as_it_is == mood).float().mean() > 0.85
        assert same > 0.85
    else:
        assert same < 0.6, "a third is by chance"
