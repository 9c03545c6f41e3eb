"""Recordings of the condition's split again: disturbed, spoken otherwise, or in every mood."""

from __future__ import annotations

import sys

import numpy as np

from sta.data.corpora.base import Utterance
from sta.data.corruptions import CORRUPTIONS
from sta.distributed import ranks
from sta.errors import AudioError, VoiceError
from sta.evaluation.evaluator import Evaluator
from sta.evaluation.systems import disturbed_rows
from sta.metrics.rows import ResultKey, Row


def condition_rows(evaluator: Evaluator, language: str, condition: str) -> list[Row]:
    """Measure the condition split's recordings, disturbed: attributes and mood, or what else is measured."""
    where = ResultKey(language=language, split=evaluator.hardest, condition=condition, system="speech")
    select = evaluator.select_recordings if evaluator.judge is None else evaluator.select_rows
    rows = evaluator.known(select(evaluator.hardest, language))
    try:
        waves = disturbed(evaluator, rows, language, condition)
        if evaluator.judge is None:
            return disturbed_rows(evaluator, waves, language, condition)
        tokens = evaluator.encode_waves(waves, language)
    except (VoiceError, AudioError) as error:
        return _left_out(where, error)
    return evaluator.score(evaluator.judge.predict(evaluator.generate(tokens, evaluator.seeds(rows))), rows, **where)


def every_mood_rows(evaluator: Evaluator, language: str) -> list[Row]:
    """Measure the same words in the same voice in every mood: the light must change and the content stay."""
    assert evaluator.judge is not None
    moods = evaluator.judge.world.moods
    rows = evaluator.known(evaluator.select_rows(evaluator.hardest, language))
    rows = rows[: max(1, evaluator.settings.items // len(moods))]
    where = ResultKey(language=language, split=evaluator.hardest, condition="every-mood", system="speech")
    try:
        spoken = [(int(row), mood) for row in rows for mood in moods]
        waves = ranks.parallel_map(spoken, lambda one: _respoken(evaluator, one[0], language, "same", one[1]))
        tokens = evaluator.encode_waves(list(waves), language)
    except (VoiceError, AudioError) as error:
        return _left_out(where, error)
    rows = rows.repeat(len(moods))
    readings = evaluator.judge.predict(evaluator.generate(tokens, evaluator.seeds(rows)))
    return evaluator.score(readings, rows, list(moods) * (len(rows) // len(moods)), **where)


def disturbed(evaluator: Evaluator, rows: np.ndarray, language: str, condition: str) -> list[np.ndarray]:
    """Return the recordings of `rows` under a condition, each with noise or a delivery of its own."""

    def disturbed(row: int) -> np.ndarray:
        if condition in CORRUPTIONS:
            return CORRUPTIONS[condition](evaluator.corpus.waveform(row), _chance(evaluator, row))
        return _respoken(evaluator, row, language, condition)

    return list(ranks.parallel_map(rows.tolist(), disturbed))


def _respoken(evaluator: Evaluator, row: int, language: str, condition: str, mood: str | None = None) -> np.ndarray:
    """Say a recording anew, in its own mood or in another."""
    if evaluator.judge is None:
        raise VoiceError(f"the recordings of corpus '{evaluator.workspace.recipe.corpus.name}' cannot be spoken anew")
    column, truth = evaluator.corpus.column, evaluator.corpus.truths[evaluator.ids[row]]
    utterance = Utterance(column("text")[row], column("speaker")[row], mood or evaluator.moods[row], truth)
    return evaluator.judge.attributes.respeak(language, condition, utterance, _chance(evaluator, row))


def _chance(evaluator: Evaluator, row: int) -> np.random.Generator:
    return np.random.default_rng([evaluator.seed, row])


def _left_out(where: ResultKey, error: Exception) -> list[Row]:
    """No rows, and a line that says why."""
    if ranks.is_main():
        print(f"condition {where['condition']}, {where['language']}: left out: {error}", file=sys.stderr)
    return []
