"""Recordings of the hardest split heard again: disturbed, spoken otherwise, or in every mood."""

from __future__ import annotations

import sys

import numpy as np

from sta.config.recipe import GardenCorpus
from sta.data.corpora.garden.corpus import world_of
from sta.data.corpora.garden.respeak import Respeaker, Utterance
from sta.data.corruptions import CORRUPTIONS
from sta.distributed import ranks
from sta.errors import AudioError, VoiceError
from sta.evaluation.evaluator import Evaluator
from sta.metrics.rows import ResultKey, Row


def condition_rows(evaluator: Evaluator, language: str, condition: str) -> list[Row]:
    """Attributes and mood of the hardest split's recordings, disturbed; retrieval where no attributes are known."""
    rows = evaluator.select_rows(evaluator.hardest, language)
    where = ResultKey(language=language, split=evaluator.hardest, condition=condition, system="speech")
    try:
        tokens = evaluator.encode_waves(disturbed(evaluator, rows, language, condition), language)
    except (VoiceError, AudioError) as error:
        return _left_out(where, error)
    if evaluator.judge is None:
        return evaluator.retrieval(tokens, rows, where)
    return evaluator.score(evaluator.judge.predict(evaluator.generate(tokens, evaluator.seeds(rows))), rows, **where)


def every_mood_rows(evaluator: Evaluator, language: str) -> list[Row]:
    """The same words in the same voice in every mood: the light must change and the content stay."""
    assert evaluator.judge is not None
    moods, respeaker = evaluator.judge.world.moods, _respeaker(evaluator, language)
    rows = evaluator.select_rows(evaluator.hardest, language)[: max(1, evaluator.settings.items // len(moods))]
    where = ResultKey(language=language, split=evaluator.hardest, condition="every-mood", system="speech")
    try:
        spoken = [(int(row), mood) for row in rows for mood in moods]
        waves = ranks.parallel_map(
            spoken, lambda one: respeaker.in_mood(_utterance(evaluator, one[0]), one[1], _chance(evaluator, one[0]))
        )
        tokens = evaluator.encode_waves(list(waves), language)
    except (VoiceError, AudioError) as error:
        return _left_out(where, error)
    rows = rows.repeat(len(moods))
    readings = evaluator.judge.predict(evaluator.generate(tokens, evaluator.seeds(rows)))
    return evaluator.score(readings, rows, list(moods) * (len(rows) // len(moods)), **where)


def disturbed(evaluator: Evaluator, rows: np.ndarray, language: str, condition: str) -> list[np.ndarray]:
    """The recordings of `rows` under a condition, each with noise or a delivery of its own."""
    respeaker = None if condition in CORRUPTIONS else _respeaker(evaluator, language)

    def heard(row: int) -> np.ndarray:
        chance = _chance(evaluator, row)
        if respeaker is None:
            return CORRUPTIONS[condition](evaluator.corpus.waveform(row), chance)
        return respeaker.speak(condition, _utterance(evaluator, row), chance)

    return list(ranks.parallel_map(rows.tolist(), heard))


def _respeaker(evaluator: Evaluator, language: str) -> Respeaker:
    corpus = evaluator.workspace.recipe.corpus
    if not isinstance(corpus, GardenCorpus):
        raise VoiceError("only Garden's recordings can be spoken anew, and this corpus is a folder")
    return Respeaker(evaluator.workspace.cards[language], world_of(corpus.world), corpus.tempo)


def _utterance(evaluator: Evaluator, row: int) -> Utterance:
    truth, column = evaluator.corpus.truths[evaluator.ids[row]], evaluator.corpus.column
    return Utterance(column("text")[row], column("speaker")[row], evaluator.moods[row], truth.kind, truth.said)


def _chance(evaluator: Evaluator, row: int) -> np.random.Generator:
    return np.random.default_rng([evaluator.seed, row])


def _left_out(where: ResultKey, error: Exception) -> list[Row]:
    """No rows, and a line that says why."""
    if ranks.is_main():
        print(f"condition {where['condition']}, {where['language']}: left out: {error}", file=sys.stderr)
    return []
