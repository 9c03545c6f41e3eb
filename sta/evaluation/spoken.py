"""Recordings of the hardest split heard again: disturbed, spoken otherwise, or in every mood."""

from __future__ import annotations

import sys

import numpy as np

from sta import ranks
from sta.data.disturb import DISTURBANCES
from sta.data.garden.corpus import world_of
from sta.data.garden.respeak import Respeaker, Utterance
from sta.errors import AudioError, VoiceError
from sta.evaluation.examiner import Examiner
from sta.metrics.rows import Row, Where
from sta.recipe import GardenCorpus


def condition_rows(examiner: Examiner, language: str, condition: str) -> list[Row]:
    """Attributes and mood of the hardest split's recordings, disturbed; retrieval where no attributes are known."""
    rows = examiner.pick(examiner.hardest, language)
    where = Where(language=language, split=examiner.hardest, condition=condition, system="speech")
    try:
        tokens = examiner.hear_waves(disturbed(examiner, rows, language, condition), language)
    except (VoiceError, AudioError) as error:
        return _left_out(where, error)
    if examiner.judge is None:
        return examiner.retrieval(tokens, rows, where)
    return examiner.marks(examiner.judge.read(examiner.draw(tokens, examiner.seeds(rows))), rows, **where)


def every_mood_rows(examiner: Examiner, language: str) -> list[Row]:
    """The same words in the same voice in every mood: the light must change and the content stay."""
    assert examiner.judge is not None
    moods, respeaker = examiner.judge.world.moods, _respeaker(examiner, language)
    rows = examiner.pick(examiner.hardest, language)[: max(1, examiner.settings.items // len(moods))]
    where = Where(language=language, split=examiner.hardest, condition="every-mood", system="speech")
    try:
        spoken = [(int(row), mood) for row in rows for mood in moods]
        waves = ranks.share_out(
            spoken, lambda one: respeaker.in_mood(_utterance(examiner, one[0]), one[1], _chance(examiner, one[0]))
        )
        tokens = examiner.hear_waves(list(waves), language)
    except (VoiceError, AudioError) as error:
        return _left_out(where, error)
    rows = rows.repeat(len(moods))
    readings = examiner.judge.read(examiner.draw(tokens, examiner.seeds(rows)))
    return examiner.marks(readings, rows, list(moods) * (len(rows) // len(moods)), **where)


def disturbed(examiner: Examiner, rows: np.ndarray, language: str, condition: str) -> list[np.ndarray]:
    """The recordings of `rows` under a condition, each with noise or a delivery of its own."""
    respeaker = None if condition in DISTURBANCES else _respeaker(examiner, language)

    def heard(row: int) -> np.ndarray:
        chance = _chance(examiner, row)
        if respeaker is None:
            return DISTURBANCES[condition](examiner.corpus.waveform(row), chance)
        return respeaker.speak(condition, _utterance(examiner, row), chance)

    return list(ranks.share_out(rows.tolist(), heard))


def _respeaker(examiner: Examiner, language: str) -> Respeaker:
    corpus = examiner.workspace.recipe.corpus
    if not isinstance(corpus, GardenCorpus):
        raise VoiceError("only Garden's recordings can be spoken anew, and this corpus is a folder")
    return Respeaker(examiner.workspace.cards[language], world_of(corpus.world), corpus.rate)


def _utterance(examiner: Examiner, row: int) -> Utterance:
    truth, column = examiner.corpus.truths[examiner.ids[row]], examiner.corpus.column
    return Utterance(column("text")[row], column("speaker")[row], examiner.moods[row], truth.kind, truth.said)


def _chance(examiner: Examiner, row: int) -> np.random.Generator:
    return np.random.default_rng([examiner.seed, row])


def _left_out(where: Where, error: Exception) -> list[Row]:
    """No rows, and a line that says why."""
    if ranks.is_main():
        print(f"condition {where['condition']}, {where['language']}: left out: {error}", file=sys.stderr)
    return []
