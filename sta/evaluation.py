"""The evaluate stage: draw the test recordings, read the drawings, and say where the loss is.

Systems, from the whole to its parts: `speech` (the pipeline), `tokens-probe` (what the tokens hold),
`truth-to-decoder` (the decoder fed with the true attributes in a plain written sentence), `tokenizer` (the real
picture through the codes), `shuffled` (each recording's tokens given to another: the chance line made flesh).
Beside them the pipelines that go through words: `cascade` (what the CTC head read, written) and `cascade-perfect`
(the true caption, written). Conditions disturb the recordings of the hardest split, or speak them anew.

The ranks of a launch hear and draw whole batches in turn; each then knows them all, and reckons for itself.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sta import ranks
from sta.data.audio import wav_bytes
from sta.data.cache import build_folder
from sta.data.disturb import DISTURBANCES
from sta.data.garden.corpus import world_of
from sta.data.garden.grammar import Grammar
from sta.data.garden.respeak import Respeaker, Utterance
from sta.data.garden.world import World
from sta.data.rows import TEST_SPLITS
from sta.errors import AudioError, VoiceError
from sta.metrics import fidelity, retrieval
from sta.metrics.attributes import Swap, attribute_rows, mood_rows, swap_rows
from sta.metrics.page import Example, write_grid, write_page
from sta.metrics.probe import probe
from sta.metrics.rows import Report, Row, Where, bootstrap
from sta.models.bottleneck import Tokens
from sta.models.layers import length_mask
from sta.models.loading import load_network
from sta.models.reader import AttributeReader
from sta.models.teacher import Teacher
from sta.models.vq import to_unit_range
from sta.pipeline import Audio, SpeechToImagePipeline, repeat_tokens
from sta.recipe import GardenCorpus
from sta.release import load_release
from sta.training.features import cached_frames, fast, group_rows, load_teacher_of, teacher_features
from sta.training.progress import Bar
from sta.training.stages import environment, provenance
from sta.training.workspace import Workspace

BATCH = 32
PROBE_ROWS = 4000


@dataclass
class _Judge:
    """What reads pictures: the attribute reader and the world it answers for; None where no truth is known."""

    reader: AttributeReader
    world: World

    def read(self, pictures: Tensor) -> list[dict[str, str]]:
        """Readings of pictures [n, 3, H, W] in [-1, 1]."""
        return self.reader.read(pictures)


class _KindAndColour(nn.Module):
    """Logits of the classes that the inception score is computed on: kind times the colour of its first part."""

    def __init__(self, reader: AttributeReader):
        super().__init__()
        self.reader = reader

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] to [n, classes]."""
        logits = {k: v.log_softmax(-1) for k, v in self.reader(images.float() / 127.5 - 1).items()}
        kinds = list(self.reader.config.slots["kind"])
        parts = {"bird": "head", "flower": "petals"}
        return torch.cat(
            [logits["kind"][:, [i]] + logits[parts[k]] for i, k in enumerate(kinds) if parts[k] in logits], 1
        )


class AttributeReaderFeatures(nn.Module):
    def __init__(self, reader: AttributeReader):
        super().__init__()
        self.reader = reader

    def forward(self, images: Tensor) -> Tensor:
        return self.reader.features(images.float() / 127.5 - 1)


class TeacherFeatures(nn.Module):
    def __init__(self, teacher: Teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        return self.teacher.encode_images(images.permute(0, 2, 3, 1))


class Evaluation:
    """One evaluation of a run: `rows()` measures, `examples()` draws what the page shows."""

    def __init__(self, workspace: Workspace, pipe: SpeechToImagePipeline):
        self.workspace, self.pipe, self.settings = workspace, pipe, workspace.recipe.evaluation
        self.corpus, self.seed = workspace.corpus, workspace.recipe.seed
        self.ids, self.moods = self.corpus.column("id"), self.corpus.column("mood")
        self.image_of, _ = self.corpus.image_index
        self.judge = self._judge()
        self.splits = [s for s in TEST_SPLITS if len(self.corpus.select(s))]
        self.hardest = self.splits[-1]
        self.drawn: list[Tensor] = []
        self.shown: list[np.ndarray] = []
        self.extractor: dict[str, Any] = {}

    def _judge(self) -> _Judge | None:
        settings = self.workspace.recipe.corpus
        if not isinstance(settings, GardenCorpus):
            return None
        reader = load_network(AttributeReader, self.workspace.final("reader") / "reader")
        return _Judge(reader, world_of(settings.world))

    def fill_caches(self) -> None:
        """Compute what frozen networks make of the corpus, where it is not there yet, as one process must."""
        teacher_features(self.workspace, self.pipe.device)
        for pack in self.pipe.languages.values() if self.judge is not None else ():
            cached_frames(self.workspace, pack.group, self.pipe.device)

    # ---- parts ----------------------------------------------------------------------------------------

    def pick(self, split: str, language: str) -> np.ndarray:
        """The rows evaluated of a split: the first ones, at most `evaluation.items`."""
        return self.corpus.select(split, language)[: self.settings.items]

    def hear(self, rows: np.ndarray, language: str, hearings: int | None = None) -> Tokens:
        """Tokens of the corpus's recordings, in the order of `rows`."""
        return self.hear_waves([self.corpus.waveform(int(r)) for r in rows], language, hearings)

    def hear_waves(self, waves: Sequence[np.ndarray], language: str, hearings: int | None = None) -> Tokens:
        """Tokens of recordings, in their order."""
        order = np.argsort([len(w) for w in waves], kind="stable")

        def hear(start: int) -> tuple[Tensor, ...]:
            batch: list[Audio] = [waves[i] for i in order[start : start + BATCH]]
            with fast(self.pipe.device):
                tokens = self.pipe.encode_speech(batch, language, num_hearings=hearings)
            return tuple(x.cpu() for x in (tokens.tokens, tokens.embedding, tokens.kl))

        parts = list(ranks.share_out(range(0, len(waves), BATCH), hear))
        back = torch.from_numpy(np.argsort(order))
        return Tokens(*(torch.cat(part)[back].to(self.pipe.device) for part in zip(*parts, strict=True)))

    def draw(
        self, tokens: Tokens, seeds: Sequence[int], steps: int | None = None, guidance: float | None = None
    ) -> Tensor:
        """Pictures [n, 3, H, W] in [-1, 1], each from a seed of its own, so that batches do not matter.

        Drawn in bfloat16 where the machine has it, several times as fast.
        """

        def draw(start: int) -> Tensor:
            generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + BATCH]]
            part = Tokens(*(x[start : start + BATCH] for x in (tokens.tokens, tokens.embedding, tokens.kl)))
            with fast(self.pipe.device):
                drawn = self.pipe.decode_latents(self.pipe.draw_latents(part, steps, guidance, generators))
            return drawn.float().cpu()

        return torch.cat(list(ranks.share_out(range(0, len(seeds), BATCH), draw)))

    def seeds(self, rows: np.ndarray) -> list[int]:
        return [self.seed * 1_000_003 + int(r) for r in rows]

    def real(self, rows: np.ndarray) -> Tensor:
        """The recordings' own pictures [n, 3, H, W] in [-1, 1]."""
        return to_unit_range(torch.from_numpy(np.array(self.workspace.pixels[self.image_of[rows]])))

    def said(self, rows: np.ndarray) -> list[dict[str, str]]:
        """What each caption says of its picture, the kind included."""
        truths = [self.corpus.truths[self.ids[r]] for r in rows]
        return [{"kind": t.kind, **t.said} for t in truths]

    def marks(
        self, readings: Sequence[Mapping[str, str]], rows: np.ndarray, moods: Sequence[str] | None = None, **where: Any
    ) -> list[Row]:
        """Rows of attributes and mood for readings of pictures drawn for `rows`, spoken in their own or other moods."""
        assert self.judge is not None
        spoken = [self.moods[r] for r in rows] if moods is None else moods
        pairs = [(mood, read["mood"]) for mood, read in zip(spoken, readings, strict=True) if mood is not None]
        return [
            *attribute_rows(self.said(rows), readings, self.judge.world, **where),
            *mood_rows([m for m, _ in pairs], [r for _, r in pairs], self.judge.world, **where),
        ]

    # ---- the report -----------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """Every number of the report."""
        found: list[Row] = []
        steps = len(self.workspace.recipe.languages) * (len(self.splits) + 2 + len(self.settings.conditions)) + 1
        with Bar("evaluate", steps, "parts") as bar:
            for language in self.workspace.recipe.languages:
                for split in self.splits:
                    found += self._split(language, split)
                    bar.advance()
                if self.judge is not None:
                    found += self._bounds(language, self.hardest)
                    bar.advance()
                    found += self._swaps(language)
                    found += self._every_mood(language)
                bar.advance()
                for condition in self.settings.conditions:
                    found += self._condition(language, condition)
                    bar.advance()
            where = Where(language="all", split="all", condition="clean", system="speech")
            drawn = torch.cat(self.drawn)
            found += self.fidelity(drawn, np.concatenate(self.shown), where) + self._inception_score(drawn, where)
        return found

    def _split(self, language: str, split: str) -> list[Row]:
        where = Where(language=language, split=split, condition="clean", system="speech")
        rows = self.pick(split, language)
        tokens = self.hear(rows, language)
        pictures = self.draw(tokens, self.seeds(rows))
        self.drawn.append(pictures)
        self.shown.append(rows)
        found = [Row.of("bits", bootstrap(tokens.bits.cpu().numpy()), len(rows), **where)]
        found += self._retrieval(tokens, rows, where)
        if self.judge is None:
            return found
        reading = self.judge.read(self.real(rows))
        pairs = zip(reading, self.all_of(rows), strict=True)
        right = np.array([np.mean([read[k] == v for k, v in truth.items() if k in read]) for read, truth in pairs])
        found.append(Row.of("reader", bootstrap(right), len(rows), **where))
        return found + self.marks(self.judge.read(pictures), rows, **where)

    def all_of(self, rows: np.ndarray) -> list[dict[str, str]]:
        """Everything true of each picture, said or not."""
        truths = [self.corpus.truths[self.ids[r]] for r in rows]
        return [{"kind": t.kind, **t.attributes, "mood": self.moods[r]} for t, r in zip(truths, rows, strict=True)]

    def _retrieval(self, tokens: Tokens, rows: np.ndarray, where: Where) -> list[Row]:
        image, _ = teacher_features(self.workspace, self.pipe.device)
        names = [str(i) for i in self.image_of[rows]]
        ids, unique = retrieval.unique_images(names, torch.from_numpy(image[self.image_of[rows]]))
        return retrieval.retrieval_rows(tokens.embedding.cpu(), unique, names, ids, **where)

    def _bounds(self, language: str, split: str) -> list[Row]:
        """The systems that bound the pipeline or must be at chance."""
        assert self.judge is not None
        rows, found = self.pick(split, language), []
        tokens = self.hear(rows, language)
        away = torch.from_numpy(np.roll(np.arange(len(rows)), len(rows) // 2))
        shuffled = Tokens(tokens.tokens[away], tokens.embedding[away], tokens.kl[away])
        pictures = {"shuffled": self.draw(shuffled, self.seeds(rows)), "tokenizer": self._reconstruct(rows)}
        for system, texts in self._written(rows, language).items():
            pictures[system] = self.draw(self.pipe.encode_text(texts, language), self.seeds(rows))
        for system, drawn in pictures.items():
            where = Where(language=language, split=split, condition="clean", system=system)
            found += self.marks(self.judge.read(drawn), rows, **where)
        where = Where(language=language, split=split, condition="clean", system="tokenizer")
        errors = (pictures["tokenizer"] - self.real(rows)).pow(2).flatten(1).mean(1).numpy()
        psnr = bootstrap(10 * np.log10(4 / np.maximum(errors, 1e-10)))
        found.append(Row.of("psnr", psnr, len(rows), **where))
        return found + self._probe(tokens, rows, language, split)

    def _written(self, rows: np.ndarray, language: str) -> dict[str, list[str]]:
        """What each system that goes through words gives to the text branch."""
        assert self.judge is not None
        grammar, rng = Grammar(self.workspace.cards[language], self.judge.world), np.random.default_rng(self.seed)
        truths = [self.corpus.truths[self.ids[r]] for r in rows]
        # One by one: a transcript must not depend on its batch.
        heard = ranks.share_out(rows.tolist(), lambda r: self.pipe.transcribe(self.corpus.waveform(r), language)[0])
        return {
            "truth-to-decoder": [grammar.describe(t.kind, t.said, rng, pattern=0) for t in truths],
            "cascade-perfect": [self.corpus.column("text")[r] for r in rows],
            "cascade": list(heard),
        }

    def _condition(self, language: str, condition: str) -> list[Row]:
        """Attributes and mood of the hardest split's recordings, disturbed; retrieval where no attributes are known."""
        rows = self.pick(self.hardest, language)
        where = Where(language=language, split=self.hardest, condition=condition, system="speech")
        try:
            tokens = self.hear_waves(self._disturbed(rows, language, condition), language)
        except (VoiceError, AudioError) as error:
            return _left_out(where, error)
        if self.judge is None:
            return self._retrieval(tokens, rows, where)
        return self.marks(self.judge.read(self.draw(tokens, self.seeds(rows))), rows, **where)

    def _disturbed(self, rows: np.ndarray, language: str, condition: str) -> list[np.ndarray]:
        """The recordings of `rows` under a condition, each with noise or a delivery of its own."""
        if condition in DISTURBANCES:
            disturb = DISTURBANCES[condition]
            return list(ranks.share_out(rows.tolist(), lambda r: disturb(self.corpus.waveform(r), self._chance(r))))
        respeaker = self._respeaker(language)
        return list(
            ranks.share_out(rows.tolist(), lambda r: respeaker.speak(condition, self._utterance(r), self._chance(r)))
        )

    def _chance(self, row: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, row])

    def _every_mood(self, language: str) -> list[Row]:
        """The same words in the same voice in every mood: the light must change and the content stay."""
        assert self.judge is not None
        moods, respeaker = self.judge.world.moods, self._respeaker(language)
        rows = self.pick(self.hardest, language)[: max(1, self.settings.items // len(moods))]
        where = Where(language=language, split=self.hardest, condition="every-mood", system="speech")
        try:
            spoken = [(int(row), mood) for row in rows for mood in moods]
            waves = ranks.share_out(
                spoken, lambda one: respeaker.in_mood(self._utterance(one[0]), one[1], self._chance(one[0]))
            )
            tokens = self.hear_waves(list(waves), language)
        except (VoiceError, AudioError) as error:
            return _left_out(where, error)
        rows = rows.repeat(len(moods))
        readings = self.judge.read(self.draw(tokens, self.seeds(rows)))
        return self.marks(readings, rows, list(moods) * (len(rows) // len(moods)), **where)

    def _respeaker(self, language: str) -> Respeaker:
        corpus = self.workspace.recipe.corpus
        if not isinstance(corpus, GardenCorpus):
            raise VoiceError("only Garden's recordings can be spoken anew, and this corpus is a folder")
        return Respeaker(self.workspace.cards[language], world_of(corpus.world), corpus.rate)

    def _utterance(self, row: int) -> Utterance:
        truth, column = self.corpus.truths[self.ids[row]], self.corpus.column
        return Utterance(column("text")[row], column("speaker")[row], self.moods[row], truth.kind, truth.said)

    def _reconstruct(self, rows: np.ndarray) -> Tensor:
        """The pictures through what the decoder draws: codes or latents."""
        with torch.no_grad():
            return self.pipe.decoder.reconstruct(self.real(rows).to(self.pipe.device), self.pipe.tokenizer).cpu()

    def _probe(self, tokens: Tokens, rows: np.ndarray, language: str, split: str) -> list[Row]:
        assert self.judge is not None
        known = self.corpus.select("train", language)
        known = np.random.default_rng(self.seed).permutation(known)[:PROBE_ROWS]
        said = [{**s, "mood": self.moods[r]} for s, r in zip(self.said(known), known, strict=True)]
        slots = self.judge.reader.config.slots
        readings = probe(self._heard_in_training(known, language).cpu(), said, tokens.tokens.cpu(), slots)
        return self.marks(readings, rows, language=language, split=split, condition="clean", system="tokens-probe")

    @torch.no_grad()
    def _heard_in_training(self, rows: np.ndarray, language: str) -> Tensor:
        """Tokens [n, K, C] of training rows, from the frames that the decoder stage cached."""
        pack = self.pipe.pack(language)
        frames = cached_frames(self.workspace, pack.group, self.pipe.device)
        places = np.searchsorted(group_rows(self.workspace, pack.group), rows)
        parts = []
        for start in range(0, len(places), BATCH):
            values, lengths = frames.padded(places[start : start + BATCH].tolist(), 1)
            mask = length_mask(torch.from_numpy(lengths), values.shape[1]).to(self.pipe.device)
            parts.append(pack.bottleneck(torch.from_numpy(values).float().to(self.pipe.device), mask).tokens)
        return torch.cat(parts)

    def _swaps(self, language: str) -> list[Row]:
        """S2IGAN's test: one colour word changes, and only that part may."""
        assert self.judge is not None
        rows = self.corpus.select("swap", language)
        if not len(rows):
            return []  # a world of too few colours has nothing to swap
        by_id = {self.ids[r]: int(r) for r in rows}
        firsts = sorted(i for i in by_id if i.endswith(f"a-{language}"))[: self.settings.items]
        pairs = np.array([[by_id[i], by_id[i.replace(f"a-{language}", f"b-{language}")]] for i in firsts])
        readings = [
            self.judge.read(self.draw(self.hear(pairs[:, side], language), self.seeds(pairs[:, 0]))) for side in (0, 1)
        ]
        said = [self.said(pairs[:, side]) for side in (0, 1)]
        swaps = [Swap(*four) for four in zip(*said, *readings, strict=True)]
        return swap_rows(
            swaps, self.judge.world, language=language, split=self.hardest, condition="clean", system="speech"
        )

    def fidelity(self, pictures: Tensor, rows: np.ndarray, where: Where) -> list[Row]:
        """FID of pictures [n, 3, H, W] in [-1, 1] against the real ones of `rows`."""
        extractor = (
            TeacherFeatures(load_teacher_of(self.workspace))
            if self.judge is None
            else AttributeReaderFeatures(self.judge.reader)
        )
        real, drawn = (fidelity.extract(extractor, _bytes(x)) for x in (self.real(rows), pictures))
        self.extractor |= fidelity.extractor_meta(extractor, real)
        return fidelity.fid_rows(real, drawn, seed=self.seed, **where)

    def _inception_score(self, pictures: Tensor, where: Where) -> list[Row]:
        if self.judge is None:
            return []
        logits = fidelity.extract(_KindAndColour(self.judge.reader), _bytes(pictures))
        self.extractor["is_classifier"] = "the attribute reader's kind x colour of head or petals"
        return fidelity.inception_score_rows(logits, seed=self.seed, **where)

    def examples(self) -> list[Example]:
        """What the page shows: recordings of the hardest split, several drawings each."""
        shown = []
        for language in self.workspace.recipe.languages:
            rows, times = self.pick(self.hardest, language)[: self.settings.pictures], self.settings.samples
            seeds = [s + k for s in self.seeds(rows) for k in range(times)]
            pictures = self.draw(repeat_tokens(self.hear(rows, language), times), seeds)
            readings = self.judge.read(pictures) if self.judge else []
            for number, row in enumerate(rows):
                mine = slice(number * times, (number + 1) * times)
                shown.append(self._example(int(row), language, pictures[mine], readings[mine]))
        return shown

    def _example(self, row: int, language: str, pictures: Tensor, readings: list[dict[str, str]]) -> Example:
        from PIL import Image

        from sta.models.vq import to_pixels

        truth = self.said(np.array([row]))[0] if self.judge else {}
        return Example(
            caption=self.corpus.column("text")[row], language=language,
            direction=self.workspace.cards[language].direction, mood=self.moods[row] or "",
            heard=f"split {self.hardest}", audio=wav_bytes(self.corpus.waveform(row)), truth=self.corpus.picture(row),
            drawn=[Image.fromarray(p.numpy()) for p in to_pixels(pictures)], said=truth, read=readings,
        )  # fmt: skip


def _left_out(where: Where, error: Exception) -> list[Row]:
    """No rows, and a line that says why."""
    if ranks.is_main():
        print(f"condition {where['condition']}, {where['language']}: left out: {error}", file=sys.stderr)
    return []


def _bytes(pictures: Tensor) -> Tensor:
    """Floats in [-1, 1] to uint8 of the same layout."""
    return ((pictures + 1) * 127.5).round().to(torch.uint8)


def evaluate(workspace: Workspace, release: Path) -> Report:
    """Measure a run's release; writes `evaluation/report.json`, `report.html` and `grid.png`.

    Every process of a launch calls this, and the main one writes.
    """
    folder = workspace.folder / "evaluation"
    if not ranks.on_main(folder.exists):
        evaluation = Evaluation(workspace, load_release(release))
        ranks.on_main(evaluation.fill_caches)
        rows, examples = evaluation.rows(), evaluation.examples()
        report = Report(_meta(workspace) | evaluation.extractor, rows)
        ranks.on_main(lambda: build_folder(folder, lambda partial: _write(partial, report, examples)))
    return ranks.on_main(lambda: Report.read(folder / "report.json"))


def _write(folder: Path, report: Report, examples: Sequence[Example]) -> None:
    report.write(folder / "report.json")
    write_page(folder / "report.html", report, examples, report.meta["recipe"])
    write_grid(folder / "grid.png", examples)


def evaluate_again(workspace: Workspace) -> Report:
    """Measure a finished run anew; the report that it has stays until there is another."""
    new, old = workspace.folder / "evaluation", workspace.folder / "evaluation.old"
    ranks.on_main(lambda: _set_aside(new, old))
    try:
        return evaluate(workspace, workspace.folder / "release")
    finally:
        if ranks.is_main() and old.exists():
            shutil.rmtree(old) if new.exists() else old.replace(new)


def _set_aside(new: Path, old: Path) -> None:
    if new.exists():
        shutil.rmtree(old, ignore_errors=True)
        new.replace(old)


def _meta(workspace: Workspace) -> dict[str, Any]:
    recipe = workspace.recipe
    return {
        "recipe": recipe.name, "seed": recipe.seed, "languages": recipe.languages,
        "sampling": recipe.sampling.model_dump(), "training": provenance(workspace), **environment(),
    }  # fmt: skip
