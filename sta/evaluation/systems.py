"""A corpus without attributes, measured: what speech finds before drawing, and what a judge sees in the drawings.

Beside the pipeline, on the same recordings: `cascade-perfect` and `cascade` (the true caption and a transcript, through
the text branch, or by the training recording of the nearest caption where there is none), `retrieval` (the training
picture nearest to the speech), `tokenizer` (the real picture through the tokenizer) and `shuffled` (each recording is
marked as another, which must be at chance).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from sta.data.cache import key_of, write_atomically
from sta.data.text import normalise
from sta.distributed import ranks
from sta.evaluation.evaluator import Evaluator
from sta.metrics.rows import ResultKey, Row
from sta.models.bottleneck import SpeechCondition
from sta.models.recogniser import WINDOW, Recogniser


def split_rows(evaluator: Evaluator, rows: np.ndarray, language: str, split: str) -> tuple[Tensor, list[Row]]:
    """Measure one language of a split; returns the pictures drawn of `rows`, [n, 3, H, W] in [-1, 1], too."""
    where = ResultKey(language=language, split=split, condition="clean", system="speech")
    asked = evaluator.select_recordings(split, language)
    tokens = evaluator.encode(asked, language)
    styles = evaluator.asked_styles(rows)
    pictures = evaluator.generate_styled(tokens[: len(rows)], rows, styles)
    features = evaluator.see(pictures)
    found = evaluator.rate(tokens, asked, where)
    found += evaluator.space.rows(tokens.embedding.cpu(), asked, where)
    found += _marked(evaluator, features, rows, where, styles)
    if evaluator.pictures is not None and features is not None:
        found += evaluator.pictures.novelty(features, **where)
        found += _unseen_style(evaluator, tokens[: len(rows)], rows, where)
    found += _shuffled(evaluator, tokens.embedding.cpu(), asked, features, rows, where)
    found += _bounds(evaluator, tokens.embedding.cpu(), rows, where)
    found += _written(evaluator, "cascade-perfect", [evaluator.workspace.texts[r] for r in asked], asked, rows, where)
    return pictures, found + cascade_rows(evaluator, asked, rows, evaluator.corpus.waveform, where)


def disturbed_rows(evaluator: Evaluator, waves: Sequence[np.ndarray], language: str, condition: str) -> list[Row]:
    """Measure the recordings of the condition's split, disturbed: the pipeline and the cascade."""
    where = ResultKey(language=language, split=evaluator.hardest, condition=condition, system="speech")
    asked, rows = (
        evaluator.select_recordings(evaluator.hardest, language),
        evaluator.select_rows(evaluator.hardest, language),
    )
    tokens = evaluator.encode_waves(waves, language)
    found = evaluator.space.rows(tokens.embedding.cpu(), asked, where)
    if evaluator.pictures is not None:
        styles = evaluator.asked_styles(rows)
        features = evaluator.see(evaluator.generate_styled(tokens[: len(rows)], rows, styles))
        found += _marked(evaluator, features, rows, where, styles)
    wave_of = dict(zip(asked.tolist(), waves, strict=True))
    return found + cascade_rows(evaluator, asked, rows, wave_of.__getitem__, where)


def _marked(
    evaluator: Evaluator, features: Tensor | None, rows: np.ndarray, where: ResultKey,
    styles: Sequence[str | None] | None = None,
) -> list[Row]:  # fmt: skip
    """Mark drawings for `rows` by the judge, and their styles by those that were asked for."""
    if evaluator.pictures is None or features is None:
        return []
    labels = [evaluator.space.known.labels[p] for p in evaluator.image_of[rows]]
    return evaluator.pictures.mark(features, labels, styles or [None] * len(rows), **where)


def _unseen_style(evaluator: Evaluator, tokens: SpeechCondition, rows: np.ndarray, where: ResultKey) -> list[Row]:
    """Mark drawings in the styles of the rows' own pictures, for those whose label training never has in that style."""
    known, own = evaluator.trained.space.known, evaluator.own_styles(rows)
    labels = [evaluator.space.known.labels[picture] for picture in evaluator.image_of[rows]]
    pairs = zip(own, labels, strict=True)
    unseen = [n for n, (s, x) in enumerate(pairs) if s is not None and x in known.trained_styles
              and s not in known.trained_styles[x]]  # fmt: skip
    if not unseen:
        return []
    some, styles = rows[unseen], [own[n] for n in unseen]
    drawn = evaluator.generate_styled(tokens[torch.tensor(unseen)], some, styles)
    return _marked(evaluator, evaluator.see(drawn), some, ResultKey(**{**where, "system": "unseen-style"}), styles)


def _shuffled(
    evaluator: Evaluator, embedding: Tensor, asked: np.ndarray, features: Tensor | None, rows: np.ndarray,
    where: ResultKey,
) -> list[Row]:  # fmt: skip
    """Mark each recording, and its drawing, as another one's."""
    where = ResultKey(**{**where, "system": "shuffled"})
    found = evaluator.space.rows(embedding[_away(len(asked))], asked, where)
    return found + _marked(evaluator, None if features is None else features[_away(len(rows))], rows, where)


def _away(count: int) -> np.ndarray:
    """Return another item's number for each of some; rows come in an order by chance."""
    return np.roll(np.arange(count), count // 2)


def _bounds(evaluator: Evaluator, embedding: Tensor, rows: np.ndarray, where: ResultKey) -> list[Row]:
    """Mark what draws nothing: the nearest training pictures, and the real pictures through the tokenizer."""
    if evaluator.pictures is None:
        return []
    nearest = torch.from_numpy(evaluator.trained.space.nearest_pictures(embedding[: len(rows)]))
    retrieved = ResultKey(**{**where, "system": "retrieval"})
    found = _marked(evaluator, evaluator.pictures.raw[nearest], rows, retrieved)
    through = evaluator.see(evaluator.reconstruct(evaluator.real_images(rows)))
    own = evaluator.own_styles(rows)
    return found + _marked(evaluator, through, rows, ResultKey(**{**where, "system": "tokenizer"}), own)


def cascade_rows(
    evaluator: Evaluator, asked: np.ndarray, rows: np.ndarray, wave: Callable[[int], np.ndarray], where: ResultKey
) -> list[Row]:
    """Measure the recogniser's transcripts, or the CTC head's, in the place of what was said."""
    language, recogniser = where["language"], evaluator.recogniser
    if recogniser is not None and recogniser.reads(language):
        texts = _transcripts(evaluator, recogniser, asked, wave, where)
    elif evaluator.pipe.pack(language).encoder.config.ctc_head:
        read = ranks.parallel_map(asked.tolist(), lambda row: evaluator.pipe.transcribe(wave(row), language)[0])
        texts = list(read)
    else:
        return []
    return _written(evaluator, "cascade", texts, asked, rows, where)


def _transcripts(
    evaluator: Evaluator, recogniser: Recogniser, asked: np.ndarray, wave: Callable[[int], np.ndarray], where: ResultKey
) -> list[str]:
    """Return what a recogniser reads of the recordings `asked`, which is kept in the corpus's cache."""
    language, batch = where["language"], evaluator.batch
    key = key_of([evaluator.settings.recogniser, WINDOW, language, where["condition"], evaluator.seed])
    path = evaluator.workspace.cache / f"transcripts-{key}.json"
    known = ranks.run_on_main(lambda: json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
    missing = [int(row) for row in asked if str(row) not in known]
    if missing:
        parts = [missing[start : start + batch] for start in range(0, len(missing), batch)]
        read = ranks.parallel_map(parts, lambda part: recogniser.transcribe([wave(row) for row in part], language))
        known |= dict(zip(map(str, missing), chain.from_iterable(read), strict=True))
        ranks.run_on_main(lambda: write_atomically(path, json.dumps(known, ensure_ascii=False).encode()))
    return [known[str(row)] for row in asked]


def _written(
    evaluator: Evaluator, system: str, texts: Sequence[str], asked: np.ndarray, rows: np.ndarray, where: ResultKey
) -> list[Row]:
    """Measure texts in the place of what was said in the recordings `asked`, of which `rows` are drawn."""
    where, language = ResultKey(**{**where, "system": system}), where["language"]
    spoken = evaluator.space.reads[asked]
    if not spoken.all():
        if ranks.is_main():
            print(f"evaluate: {system}, {language}: left out: the teacher does not read all captions", file=sys.stderr)
        return []
    steps = evaluator.workspace.cards[language].normaliser
    vectors = evaluator.read([normalise(text, steps) for text in texts])
    found = evaluator.space.rows(vectors, asked, where)
    if evaluator.pictures is None:
        return found
    if evaluator.pipe.pack(language).encoder.config.ctc_head:
        condition = evaluator.pipe.encode_text(list(texts[: len(rows)]), language)
    else:  # there is no text branch
        condition = nearest_condition(evaluator, vectors[: len(rows)], language)
    styles = evaluator.asked_styles(rows)
    drawn = evaluator.generate_styled(condition, rows, styles)
    return found + _marked(evaluator, evaluator.see(drawn), rows, where, styles)


def nearest_condition(evaluator: Evaluator, vectors: Tensor, language: str) -> SpeechCondition:
    """Return what the training recordings give whose captions are nearest to texts of vectors [n, E]."""
    trained, language = evaluator.trained, evaluator.pipe.pack(language).card.code
    rows, back = np.unique(trained.space.nearest_captions(vectors, language), return_inverse=True)
    return trained.encode(rows, language)[torch.from_numpy(back)]
