"""A corpus in numbers, for tests that need networks and batches and no corpus."""

from __future__ import annotations

from sta.training.task import CorpusFacts

FACTS = CorpusFacts(
    source="made up", pieces={"en": 40, "ar": 60}, recordings=800, others=80, pictures=500, seconds=2.0, longest=4.0,
    raw=2.0, full=2.0, phrase=0.0, pieces_a_second=5.0, moods=3, attributes={"kind": 3, "head": 4},
    picture_bytes=1000.0, holds_audio=True,
)  # fmt: skip
