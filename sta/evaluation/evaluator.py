"""The evaluator: a run's recordings encoded, drawn and scored, by all ranks together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sta.config.limits import SAMPLE_RATE
from sta.data.rows import TEST_SPLITS
from sta.data.speech import other_engines
from sta.data.store import Ragged
from sta.distributed import ranks
from sta.errors import StaError
from sta.evaluation.extractors import (
    KindAndColour,
    PooledFeatures,
    TeacherFeatures,
    features_of,
    fid_extractor,
    load_judge,
)
from sta.evaluation.judge import KnownPictures, PictureFeatures, PictureJudge, cached_features
from sta.evaluation.space import TeacherSpace
from sta.inference.pipeline import Audio, SpeechToImagePipeline
from sta.metrics import fidelity, retrieval
from sta.metrics.attributes import attribute_rows, mood_rows
from sta.metrics.rows import ResultKey, Row, bootstrap
from sta.models.bottleneck import SpeechCondition
from sta.models.layers import length_mask
from sta.models.recogniser import Recogniser
from sta.models.teachers.base import Teacher
from sta.models.vq import to_unit_range
from sta.training.runtime import bf16_autocast
from sta.training.speech_features import cached_frames
from sta.training.teacher_features import load_teacher_of, teacher_features, teacher_reads
from sta.training.workspace import Workspace

BATCH = 32


class BatchedPipeline:
    """A pipeline that encodes, generates and reconstructs in whole batches, which the ranks of a launch take in turn.

    Args:
        batch: recordings or pictures of a batch.
        autocast: of a device; by default bfloat16 where the machine has it.
    """

    def __init__(
        self,
        pipe: SpeechToImagePipeline,
        batch: int = BATCH,
        autocast: Callable[[torch.device], AbstractContextManager[object]] = bf16_autocast,
    ):
        self.pipe, self.batch, self.autocast = pipe, batch, autocast

    def encode_waves(
        self, waves: Sequence[np.ndarray], language: str, tta_samples: int | None = None
    ) -> SpeechCondition:
        """Return tokens of recordings, in their order."""
        order = np.argsort([len(w) for w in waves], kind="stable")

        def encode(start: int) -> tuple[Tensor, ...]:
            batch: list[Audio] = [waves[i] for i in order[start : start + self.batch]]
            with self.autocast(self.pipe.device):
                tokens = self.pipe.encode_speech(batch, language, num_tta_samples=tta_samples)
            return tuple(x.cpu() for x in (tokens.tokens, tokens.embedding, tokens.kl))

        parts = list(ranks.parallel_map(range(0, len(waves), self.batch), encode))
        back = torch.from_numpy(np.argsort(order))
        return SpeechCondition(*(torch.cat(part)[back].to(self.pipe.device) for part in zip(*parts, strict=True)))

    def generate(
        self, tokens: SpeechCondition, seeds: Sequence[int], steps: int | None = None, guidance: float | None = None
    ) -> Tensor:
        """Return pictures [n, 3, H, W] in [-1, 1], each from a seed of its own, so that batches do not matter.

        Drawn in bfloat16 where the machine has it, several times as fast.
        """

        def generate(start: int) -> Tensor:
            generators = [torch.Generator().manual_seed(s) for s in seeds[start : start + self.batch]]
            part = tokens[start : start + self.batch]
            with self.autocast(self.pipe.device):
                drawn = self.pipe.decode_latents(self.pipe.denoise(part, steps, guidance, generators))
            return drawn.float().cpu()

        return torch.cat(list(ranks.parallel_map(range(0, len(seeds), self.batch), generate)))

    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Return pictures [n, 3, H, W] through what the decoder draws: codes or latents."""
        pipe = self.pipe

        @torch.no_grad()
        def reconstruct(part: Tensor) -> Tensor:
            return pipe.decoder.reconstruct(part.to(pipe.device), pipe.tokenizer).cpu()

        return torch.cat(list(ranks.parallel_map(pictures.split(self.batch), reconstruct)))

    def tokens_of(self, frames: Ragged, places: np.ndarray, language: str) -> Tensor:
        """Return tokens [n, K, C] of an encoder's frames, those in some places of their store."""
        pack, device = self.pipe.pack(language), self.pipe.device

        @torch.no_grad()
        def condition(start: int) -> Tensor:
            values, lengths = frames.padded(places[start : start + self.batch].tolist(), 1)
            mask = length_mask(torch.from_numpy(lengths), values.shape[1]).to(device)
            spoken = pack.encoder.language_indices([language] * len(values)).to(device)
            return pack.bottleneck(torch.from_numpy(values).float().to(device), mask, spoken).tokens.cpu()

        return torch.cat(list(ranks.parallel_map(range(0, len(places), self.batch), condition)))


class Evaluator(BatchedPipeline):
    """Encodes a run's recordings, generates pictures with its pipeline, and scores them against the captions.

    Args:
        trained: of the corpus that the run was trained on, where the workspace's is another: what is known of concepts,
            what the judge learns from and what is retrieved are of that one. Attributes are then not measured.

    Attributes:
        judge: what reads pictures' attributes; None where a corpus does not know what is true of them.
        hardest: `evaluation.condition_split`, or the last test split with recordings whose attributes are known, if
            any are.
        extractor: what `fidelity` and `inception_score` were computed with.
    """

    def __init__(self, workspace: Workspace, pipe: SpeechToImagePipeline, trained: Evaluator | None = None):
        super().__init__(pipe)
        self.trained = trained or self
        self.workspace, self.settings = workspace, workspace.recipe.evaluation
        self.corpus, self.seed = workspace.corpus, workspace.recipe.seed
        self.ids, self.moods = self.corpus.column("id"), self.corpus.column("mood")
        self.image_of, _ = self.corpus.image_index
        attributes = None if trained else workspace.source.attributes()
        self.judge = None
        if attributes is not None:
            self.judge = load_judge(workspace.final("classifier") / "classifier", attributes, pipe.device)
        self.splits = [s for s in TEST_SPLITS if self.corpus.has_audio[self.corpus.select(s)].any()]
        self.hardest = self._condition_split()
        self.extractor: dict[str, Any] = {}

    def fill_caches(self) -> None:
        """Compute what frozen networks make of the corpus, where it is not there yet, as one process must."""
        for line in other_engines(self.workspace.source.speeches(), self.corpus):
            print(f"evaluate: {line}", file=sys.stderr)
        teacher_features(self.workspace, self.pipe.device)
        if self.trained is not self:
            self.trained.fill_caches()
        elif self.network is not None:
            self._picture_features()
        for pack in self.pipe.languages.values() if self.judge is not None else ():
            cached_frames(self.workspace, pack.group, self.pipe.device)

    def _condition_split(self) -> str:
        """Return the split that is disturbed.

        Raises:
            StaError: the recipe names one without recordings.
        """
        known = [s for s in self.splits if len(self.known(self.corpus.select(s)))]
        chosen = self.settings.condition_split or known[-1]
        if chosen not in known:
            raise StaError(f"evaluation.condition_split '{chosen}' has no recordings; name one of {', '.join(known)}")
        return chosen

    def select_rows(self, split: str, language: str) -> np.ndarray:
        """Return the recordings drawn of a split: the first ones, at most `evaluation.items`."""
        return self._recordings(split, language)[: self.settings.items]

    def select_recordings(self, split: str, language: str) -> np.ndarray:
        """Return the recordings encoded of a split: those drawn first, then others, up to `evaluation.recordings`."""
        return self._recordings(split, language)[: max(self.settings.recordings, self.settings.items)]

    def _recordings(self, split: str, language: str) -> np.ndarray:
        """Return the recordings of a split, in an order by chance where no attributes are known.

        Of another corpus than that of training, those come first whose concepts that one has.
        """
        rows = self.corpus.select(split, language)
        rows = rows[self.corpus.has_audio[rows]]
        if self.judge is not None:
            return rows
        rows = np.random.default_rng(self.seed).permutation(rows)
        if self.trained is self:
            return rows
        return rows[np.argsort(self.space.concept_of[self.image_of[rows]] < 0, kind="stable")]

    # ---- where no attributes are known -------------------------------------------------------------------

    @cached_property
    def network(self) -> PictureFeatures | None:
        """What the judge sees pictures by, if the recipe names one."""
        if self.trained is not self:
            return self.trained.network
        name = self.settings.judge
        return None if name is None else PictureFeatures.load(name).to(self.pipe.device)

    def _picture_features(self) -> np.ndarray:
        assert self.network is not None
        assert self.settings.judge is not None
        return cached_features(self.workspace, self.settings.judge, self.network)

    @cached_property
    def pictures(self) -> PictureJudge | None:
        """What says of pictures which concept and style they are of, if the recipe names a judge."""
        if self.network is None:
            return None
        if self.trained is not self:
            return self.trained.pictures
        return PictureJudge(self._picture_features(), self.network.widths(), self.space.known)

    @cached_property
    def space(self) -> TeacherSpace:
        """The teacher's galleries."""
        vectors = teacher_features(self.workspace, self.pipe.device)
        known, reads = KnownPictures.of(self.corpus), teacher_reads(self.workspace)
        trained = None if self.trained is self else self.trained.space
        return TeacherSpace(self.corpus, self.workspace.texts, *vectors, reads, known, trained)

    @cached_property
    def teacher(self) -> Teacher:
        """The frozen teacher."""
        return load_teacher_of(self.workspace).to(self.pipe.device)

    @cached_property
    def recogniser(self) -> Recogniser | None:
        """What a cascade reads recordings by, if the recipe names one."""
        name = self.settings.recogniser
        return None if name is None else Recogniser.load(name, self.pipe.device)

    def read(self, texts: Sequence[str]) -> Tensor:
        """Return the teacher's unit vectors [n, E] of texts, in their order."""
        batches = [texts[start : start + self.batch] for start in range(0, len(texts), self.batch)]
        return torch.cat(list(ranks.parallel_map(batches, lambda batch: self.teacher.encode_texts(batch).cpu())))

    def see(self, pictures: Tensor) -> Tensor | None:
        """Return the judge's features [n, F] of pictures [n, 3, H, W] in [-1, 1], if there is a judge."""
        return None if self.network is None else features_of(self.network, _bytes(pictures))

    def own_styles(self, rows: np.ndarray) -> list[str | None]:
        """Return the style of each row's picture where the decoder knows it."""
        styles = [self.space.known.styles[picture] for picture in self.image_of[rows]]
        return [style if style in self.pipe.decoder.styles else None for style in styles]

    def asked_styles(self, rows: np.ndarray) -> list[str | None]:
        """Return the style in which each row is drawn: one in which training had its label, else its picture's own."""
        labels = [self.space.known.labels[picture] for picture in self.image_of[rows]]
        known = [self.trained.space.known.trained_styles.get(label, []) for label in labels]
        found = [[style for style in styles if style in self.pipe.decoder.styles] for styles in known]
        own = self.own_styles(rows)
        return [s[int(row) % len(s)] if s else o for row, s, o in zip(rows, found, own, strict=True)]

    def generate_styled(self, tokens: SpeechCondition, rows: np.ndarray, styles: Sequence[str | None]) -> Tensor:
        """Draw `rows` in some styles: [n, 3, H, W] in [-1, 1]."""
        return self.generate(self.pipe.with_style(tokens, styles), self.seeds(rows))

    # ---- what is measured --------------------------------------------------------------------------------

    def known(self, rows: np.ndarray) -> np.ndarray:
        """Return those of some rows whose pictures' attributes are known; all of a corpus that knows none."""
        if self.judge is None:
            return rows
        return rows[np.array([self.ids[r] in self.corpus.truths for r in rows], bool)]

    def encode(self, rows: np.ndarray, language: str, tta_samples: int | None = None) -> SpeechCondition:
        """Return tokens of the corpus's recordings, in the order of `rows`."""
        return self.encode_waves([self.corpus.waveform(int(r)) for r in rows], language, tta_samples)

    def seeds(self, rows: np.ndarray) -> list[int]:
        """Return a seed for the drawing of each row."""
        return [self.seed * 1_000_003 + int(r) for r in rows]

    def real_images(self, rows: np.ndarray) -> Tensor:
        """Return the recordings' own pictures [n, 3, H, W] in [-1, 1]."""
        return to_unit_range(torch.from_numpy(np.array(self.workspace.pixels[self.image_of[rows]])))

    def caption_attributes(self, rows: np.ndarray) -> list[dict[str, str]]:
        """Return what each caption says of its picture, the kind included."""
        truths = [self.corpus.truths[self.ids[r]] for r in rows]
        return [{"kind": t.kind, **t.said} for t in truths]

    def true_attributes(self, rows: np.ndarray) -> list[dict[str, str]]:
        """Return everything true of each picture, said or not."""
        truths = [self.corpus.truths[self.ids[r]] for r in rows]
        return [{"kind": t.kind, **t.attributes, "mood": self.moods[r]} for t, r in zip(truths, rows, strict=True)]

    def score(
        self, readings: Sequence[Mapping[str, str]], rows: np.ndarray, moods: Sequence[str] | None = None, **where: Any
    ) -> list[Row]:
        """Mark readings of pictures drawn for rows of known attributes, spoken in their own moods or in others."""
        assert self.judge is not None
        world, spoken = self.judge.world, [self.moods[r] for r in rows] if moods is None else moods
        pairs = [(mood, read["mood"]) for mood, read in zip(spoken, readings, strict=True) if mood in world.moods]
        return [
            *attribute_rows(self.caption_attributes(rows), readings, world, **where),
            *mood_rows([m for m, _ in pairs], [r for _, r in pairs], world, **where),
        ]

    def rate(self, tokens: SpeechCondition, rows: np.ndarray, where: ResultKey) -> list[Row]:
        """Measure the bits that the bottleneck lets through, of each recording and of each second of it."""
        lengths = ranks.parallel_map(rows.tolist(), lambda row: len(self.corpus.waveform(row)))
        bits, seconds = tokens.bits.cpu().numpy(), np.array(list(lengths)) / SAMPLE_RATE
        found = {"bits": bits, "bits_per_second": bits / seconds}
        return [Row.of(metric, bootstrap(values), len(rows), **where) for metric, values in found.items()]

    def retrieval(self, tokens: SpeechCondition, rows: np.ndarray, where: ResultKey) -> list[Row]:
        """Measure how well speech finds its picture among those of `rows`, and pictures their speech."""
        image, _ = teacher_features(self.workspace, self.pipe.device)
        names = [str(i) for i in self.image_of[rows]]
        ids, unique = retrieval.unique_images(names, torch.from_numpy(image[self.image_of[rows]]))
        return retrieval.retrieval_rows(tokens.embedding.cpu(), unique, names, ids, **where)

    def fidelity(self, pictures: Tensor, rows: np.ndarray, where: ResultKey) -> list[Row]:
        """Measure the FID of pictures [n, 3, H, W] in [-1, 1] against the real ones of `rows`."""
        return fidelity.fid_rows(*self.fid_features(pictures, rows), seed=self.seed, **where)

    def fid_features(self, pictures: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return features [n, F] of the real pictures of `rows`, and of others."""
        extractor = fid_extractor(self.judge, self._load_extractor, self.pipe.device)
        real, drawn = (features_of(extractor, _bytes(x)) for x in (self.real_images(rows), pictures))
        self.extractor |= fidelity.extractor_meta(extractor, real)
        return real, drawn

    def _load_extractor(self) -> nn.Module:
        """Return what pictures without attributes are compared by: the judge's network, or the teacher."""
        return TeacherFeatures(self.teacher) if self.network is None else PooledFeatures(self.network)

    def inception_score(self, pictures: Tensor, where: ResultKey) -> list[Row]:
        """Measure the inception score of pictures, where a classifier judges them."""
        if self.judge is None:
            return []
        logits = features_of(KindAndColour(self.judge.classifier), _bytes(pictures))
        self.extractor["is_classifier"] = "the attribute classifier's kind x colour of head or petals"
        return fidelity.inception_score_rows(logits, seed=self.seed, **where)


def _bytes(pictures: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to uint8 of the same layout."""
    return ((pictures + 1) * 127.5).round().to(torch.uint8)
