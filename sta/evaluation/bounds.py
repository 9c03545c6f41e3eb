"""The systems that bound the pipeline or must be at chance, and the test of one changed word."""

from __future__ import annotations

import numpy as np
import torch

from sta.distributed import ranks
from sta.evaluation.evaluator import Evaluator
from sta.metrics.attributes import Swap, swap_rows
from sta.metrics.probe import probe
from sta.metrics.rows import ResultKey, Row, bootstrap
from sta.models.bottleneck import SpeechCondition
from sta.training.speech_features import cached_frames, group_rows

PROBE_ROWS = 4000


def bound_rows(evaluator: Evaluator, language: str, split: str) -> list[Row]:
    """Measure the systems that bound the pipeline or must be at chance."""
    assert evaluator.judge is not None
    rows, found = evaluator.known(evaluator.select_rows(split, language)), list[Row]()
    tokens = evaluator.encode(rows, language)
    away = torch.from_numpy(np.roll(np.arange(len(rows)), len(rows) // 2))
    shuffled = tokens[away]
    pictures = {
        "shuffled": evaluator.generate(shuffled, evaluator.seeds(rows)),
        "tokenizer": evaluator.reconstruct(evaluator.real_images(rows)),
    }
    for system, texts in _written(evaluator, rows, language).items():
        pictures[system] = evaluator.generate(evaluator.pipe.encode_text(texts, language), evaluator.seeds(rows))
    for system, drawn in pictures.items():
        where = ResultKey(language=language, split=split, condition="clean", system=system)
        found += evaluator.score(evaluator.judge.predict(drawn), rows, **where)
    where = ResultKey(language=language, split=split, condition="clean", system="tokenizer")
    errors = (pictures["tokenizer"] - evaluator.real_images(rows)).pow(2).flatten(1).mean(1).numpy()
    psnr = bootstrap(10 * np.log10(4 / np.maximum(errors, 1e-10)))
    found.append(Row.of("psnr", psnr, len(rows), **where))
    return found + _probe(evaluator, tokens, rows, language, split)


def _written(evaluator: Evaluator, rows: np.ndarray, language: str) -> dict[str, list[str]]:
    """Return what each system that goes through words gives to the text branch, which takes a CTC head."""
    assert evaluator.judge is not None
    if not evaluator.pipe.pack(language).encoder.config.ctc_head:
        return {}
    describe, rng = evaluator.judge.attributes.describe, np.random.default_rng(evaluator.seed)
    truths = [evaluator.corpus.truths[evaluator.ids[r]] for r in rows]
    # One by one: a transcript must not depend on its batch.
    transcripts = ranks.parallel_map(
        rows.tolist(), lambda r: evaluator.pipe.transcribe(evaluator.corpus.waveform(r), language)[0]
    )
    return {
        "truth-to-decoder": [describe(language, truth, rng, plain=True) for truth in truths],
        "cascade-perfect": [evaluator.corpus.column("text")[r] for r in rows],
        "cascade": list(transcripts),
    }


def _probe(evaluator: Evaluator, tokens: SpeechCondition, rows: np.ndarray, language: str, split: str) -> list[Row]:
    assert evaluator.judge is not None
    known = evaluator.known(evaluator.corpus.select("train", language))
    known = np.random.default_rng(evaluator.seed).permutation(known)[:PROBE_ROWS]
    said = [{**s, "mood": evaluator.moods[r]} for s, r in zip(evaluator.caption_attributes(known), known, strict=True)]
    slots = evaluator.judge.classifier.config.slots
    group = evaluator.pipe.pack(language).group
    frames = cached_frames(evaluator.workspace, group, evaluator.pipe.device)  # those of the decoder stage
    places = np.searchsorted(group_rows(evaluator.workspace, group), known)
    readings = probe(evaluator.tokens_of(frames, places, language), said, tokens.tokens.cpu(), slots)
    return evaluator.score(readings, rows, language=language, split=split, condition="clean", system="tokens-probe")


def swapped_rows(evaluator: Evaluator, language: str) -> list[Row]:
    """Measure S2IGAN's test: one colour word changes, and only that part may."""
    assert evaluator.judge is not None
    rows = evaluator.corpus.select("swap", language)
    if not len(rows):
        return []  # a world of too few colours has nothing to swap
    by_id = {evaluator.ids[r]: int(r) for r in rows}
    firsts = sorted(i for i in by_id if i.endswith(f"a-{language}"))[: evaluator.settings.items]
    pairs = np.array([[by_id[i], by_id[i.replace(f"a-{language}", f"b-{language}")]] for i in firsts])
    readings = [
        evaluator.judge.predict(
            evaluator.generate(evaluator.encode(pairs[:, side], language), evaluator.seeds(pairs[:, 0]))
        )
        for side in (0, 1)
    ]
    said = [evaluator.caption_attributes(pairs[:, side]) for side in (0, 1)]
    swaps = [Swap(*four) for four in zip(*said, *readings, strict=True)]
    return swap_rows(
        swaps, evaluator.judge.world, language=language, split=evaluator.hardest, condition="clean", system="speech"
    )
