"""The systems that bound the pipeline or must be at chance, and the test of one changed word."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sta import ranks
from sta.data.garden.grammar import Grammar
from sta.evaluation.examiner import BATCH, Examiner
from sta.metrics.attributes import Swap, swap_rows
from sta.metrics.probe import probe
from sta.metrics.rows import Row, Where, bootstrap
from sta.models.bottleneck import Tokens
from sta.models.layers import length_mask
from sta.training.features import cached_frames, group_rows

PROBE_ROWS = 4000


def bound_rows(examiner: Examiner, language: str, split: str) -> list[Row]:
    """The systems that bound the pipeline or must be at chance."""
    assert examiner.judge is not None
    rows, found = examiner.pick(split, language), []
    tokens = examiner.hear(rows, language)
    away = torch.from_numpy(np.roll(np.arange(len(rows)), len(rows) // 2))
    shuffled = Tokens(tokens.tokens[away], tokens.embedding[away], tokens.kl[away])
    pictures = {"shuffled": examiner.draw(shuffled, examiner.seeds(rows)), "tokenizer": _reconstruct(examiner, rows)}
    for system, texts in _written(examiner, rows, language).items():
        pictures[system] = examiner.draw(examiner.pipe.encode_text(texts, language), examiner.seeds(rows))
    for system, drawn in pictures.items():
        where = Where(language=language, split=split, condition="clean", system=system)
        found += examiner.marks(examiner.judge.read(drawn), rows, **where)
    where = Where(language=language, split=split, condition="clean", system="tokenizer")
    errors = (pictures["tokenizer"] - examiner.real(rows)).pow(2).flatten(1).mean(1).numpy()
    psnr = bootstrap(10 * np.log10(4 / np.maximum(errors, 1e-10)))
    found.append(Row.of("psnr", psnr, len(rows), **where))
    return found + _probe(examiner, tokens, rows, language, split)


def _written(examiner: Examiner, rows: np.ndarray, language: str) -> dict[str, list[str]]:
    """What each system that goes through words gives to the text branch."""
    assert examiner.judge is not None
    grammar, rng = (
        Grammar(examiner.workspace.cards[language], examiner.judge.world),
        np.random.default_rng(examiner.seed),
    )
    truths = [examiner.corpus.truths[examiner.ids[r]] for r in rows]
    # One by one: a transcript must not depend on its batch.
    heard = ranks.share_out(rows.tolist(), lambda r: examiner.pipe.transcribe(examiner.corpus.waveform(r), language)[0])
    return {
        "truth-to-decoder": [grammar.describe(t.kind, t.said, rng, pattern=0) for t in truths],
        "cascade-perfect": [examiner.corpus.column("text")[r] for r in rows],
        "cascade": list(heard),
    }


def _reconstruct(examiner: Examiner, rows: np.ndarray) -> Tensor:
    """The pictures through what the decoder draws: codes or latents."""
    pipe = examiner.pipe

    @torch.no_grad()
    def reconstruct(pictures: Tensor) -> Tensor:
        return pipe.decoder.reconstruct(pictures.to(pipe.device), pipe.tokenizer).cpu()

    return torch.cat(list(ranks.share_out(examiner.real(rows).split(BATCH), reconstruct)))


def _probe(examiner: Examiner, tokens: Tokens, rows: np.ndarray, language: str, split: str) -> list[Row]:
    assert examiner.judge is not None
    known = examiner.corpus.select("train", language)
    known = np.random.default_rng(examiner.seed).permutation(known)[:PROBE_ROWS]
    said = [{**s, "mood": examiner.moods[r]} for s, r in zip(examiner.said(known), known, strict=True)]
    slots = examiner.judge.reader.config.slots
    readings = probe(_heard_in_training(examiner, known, language), said, tokens.tokens.cpu(), slots)
    return examiner.marks(readings, rows, language=language, split=split, condition="clean", system="tokens-probe")


def _heard_in_training(examiner: Examiner, rows: np.ndarray, language: str) -> Tensor:
    """Tokens [n, K, C] of training rows, from the frames that the decoder stage cached."""
    pack, device = examiner.pipe.pack(language), examiner.pipe.device
    frames = cached_frames(examiner.workspace, pack.group, device)
    places = np.searchsorted(group_rows(examiner.workspace, pack.group), rows)

    @torch.no_grad()
    def hear(start: int) -> Tensor:
        values, lengths = frames.padded(places[start : start + BATCH].tolist(), 1)
        mask = length_mask(torch.from_numpy(lengths), values.shape[1]).to(device)
        return pack.bottleneck(torch.from_numpy(values).float().to(device), mask).tokens.cpu()

    return torch.cat(list(ranks.share_out(range(0, len(places), BATCH), hear)))


def swapped_rows(examiner: Examiner, language: str) -> list[Row]:
    """S2IGAN's test: one colour word changes, and only that part may."""
    assert examiner.judge is not None
    rows = examiner.corpus.select("swap", language)
    if not len(rows):
        return []  # a world of too few colours has nothing to swap
    by_id = {examiner.ids[r]: int(r) for r in rows}
    firsts = sorted(i for i in by_id if i.endswith(f"a-{language}"))[: examiner.settings.items]
    pairs = np.array([[by_id[i], by_id[i.replace(f"a-{language}", f"b-{language}")]] for i in firsts])
    readings = [
        examiner.judge.read(examiner.draw(examiner.hear(pairs[:, side], language), examiner.seeds(pairs[:, 0])))
        for side in (0, 1)
    ]
    said = [examiner.said(pairs[:, side]) for side in (0, 1)]
    swaps = [Swap(*four) for four in zip(*said, *readings, strict=True)]
    return swap_rows(
        swaps, examiner.judge.world, language=language, split=examiner.hardest, condition="clean", system="speech"
    )
