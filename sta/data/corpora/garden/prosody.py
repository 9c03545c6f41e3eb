"""Mood as prosody: how a Garden caption is said, never which words.

The speaker's own pitch and level are unknown to the listener, so moods differ in several cues at once: loudness,
rate, height and liveliness of the intonation, each far enough apart to hold across speakers.
"""

from __future__ import annotations

import numpy as np

from sta.data.synthesis.base import Delivery

#: Moods before jitter; the order of loudness is angry, happy, neutral, fearful, sad.
PROSODY = {
    "neutral": Delivery(rate=0.95, pitch=-2, range=40, volume=0.42),
    "happy": Delivery(rate=1.12, pitch=22, range=95, volume=0.66),
    "sad": Delivery(rate=0.72, pitch=-14, range=10, volume=0.18),
    "angry": Delivery(rate=1.2, pitch=-8, range=60, volume=1.0, effort=1.0),
    "fearful": Delivery(rate=1.35, pitch=26, range=15, volume=0.27),
}
JITTER = 0.04


def delivery(mood: str, rng: np.random.Generator) -> Delivery:
    """Draw how `mood` sounds this time: each cue within 4 % of the mood's own, independently.

    Raises KeyError for a word that is not in `world.MOODS`.
    """
    mean = PROSODY[mood]
    rate, pitch, liveliness, volume = 1 + JITTER * rng.uniform(-1, 1, 4)
    return Delivery(
        rate=mean.rate * rate,
        # The offset is on a scale of 100 that starts at the voice's base, so its jitter is 4 % of 50.
        pitch=round(mean.pitch + 50 * (pitch - 1)),
        range=min(99, round(mean.range * liveliness)),
        volume=min(1.0, mean.volume * volume),
        effort=mean.effort,
    )
