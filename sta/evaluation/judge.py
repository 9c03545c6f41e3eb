"""A judge of pictures that knows no attributes: a published network's features, and whose they are most like.

It is neither the teacher nor anything that a decoder got a gradient of. Classes are the corpus's labels and styles.
What it says of drawings is bounded by what it says of real pictures that it never saw, so both are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from sta.data.cache import key_of
from sta.data.rows import Corpus
from sta.metrics.discriminant import Discriminant
from sta.metrics.judged import class_rows, mean_pairwise_distance, nearest_distance
from sta.metrics.rows import ResultKey, Row, bootstrap, everywhere
from sta.models.teachers.base import Preprocessing
from sta.models.timm_networks import load_timm
from sta.training.caching import cache_arrays
from sta.training.workspace import Workspace

STAGES = 3  # last ones of the network, beside its end, by which concepts are told; first ones, by which styles are
SHADES = 8  # of each channel, in the histogram of colours
UNSEEN_STYLE = "style"  # the split whose pictures the judge never sees
NOWHERE = everywhere("clean", "real")
CONCEPT, STYLE = {"concept_top1": 1, "concept_top5": 5}, {"style": 1}


class PictureFeatures(nn.Module):
    """What a timm network sees: the pooled features of its end, then mean and maximum of its last stages.

    Args:
        network: of timm. preprocessing: of its pictures.
    """

    def __init__(self, network: Any, preprocessing: Preprocessing):
        super().__init__()
        self.network, self.preprocessing = network, preprocessing
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, name: str) -> PictureFeatures:
        """Load a network by its name on the Hub, such as `timm/tf_efficientnet_lite0.in1k`, or from a folder of it.

        A folder has the name of the network's architecture and holds `model.safetensors`.

        Raises:
            WeightsError: it is not to be had.
        """
        network = load_timm(name, "evaluation.judge")
        found = resolve_model_data_config(network)
        size, interpolation = found["input_size"][-1], found["interpolation"]
        return cls(network, Preprocessing(size, found["mean"], found["std"], interpolation, "squash"))

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 [n, 3, H, W] of any size to [n, sum of the widths of `parts`], laid end to end."""
        return torch.cat(self.parts(images), 1)

    def parts(self, images: Tensor) -> list[Tensor]:
        """Map uint8 [n, 3, H, W] to the pooled end, each of the pooled last stages, and what tells a style."""
        x = self.preprocessing.normalise(images.permute(0, 2, 3, 1))
        last, stages = self.network.forward_intermediates(x)
        late = [torch.cat([stage.mean((2, 3)), stage.amax((2, 3))], 1) for stage in stages[-STAGES:]]
        early = [
            pool
            for stage in stages[:STAGES]
            for pool in (stage.mean((2, 3)), stage.std((2, 3), correction=0), stage.amax((2, 3)))
        ]
        end = self.network.forward_head(last, pre_logits=True)
        return [end, *late, torch.cat([*early, colours(images)], 1)]

    def widths(self) -> list[int]:
        """Return how many features each of `parts` has."""
        size = self.preprocessing.size
        empty = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=next(self.parameters()).device)
        return [part.shape[1] for part in self.parts(empty)]


def colours(images: Tensor) -> Tensor:
    """Return the root of each colour's share of the pixels, uint8 [n, 3, H, W] to [n, shades ** 3]."""
    levels = images.long() * SHADES // 256
    numbers = (levels[:, 0] * SHADES + levels[:, 1]) * SHADES + levels[:, 2]
    numbers = numbers.flatten(1) + SHADES**3 * torch.arange(len(images), device=images.device)[:, None]
    counts = torch.bincount(numbers.flatten(), minlength=len(images) * SHADES**3).view(len(images), -1)
    return (counts / counts.sum(1, keepdim=True)).sqrt()


@dataclass(frozen=True)
class KnownPictures:
    """What a corpus says of its pictures.

    Attributes:
        labels, styles: objects [pictures], names, None where a picture has none.
        trained: bool [pictures], which of them training rows show.
        hidden: bool [pictures], which of them only rows of an unseen style show.
    """

    labels: np.ndarray
    styles: np.ndarray
    trained: np.ndarray
    hidden: np.ndarray

    @cached_property
    def trained_styles(self) -> dict[str, list[str]]:
        """The styles in which training shows each label, sorted."""
        shown = {(x, y) for x, y, seen in zip(self.labels, self.styles, self.trained, strict=True) if seen and x and y}
        return {label: sorted(style for x, style in shown if x == label) for label in {x for x, _ in shown}}

    @classmethod
    def of(cls, corpus: Corpus) -> KnownPictures:
        """Read the rows of a corpus: what the first row of a picture says of it holds for all."""
        picture_of, first = corpus.image_index
        columns = map(corpus.column, ("label", "style"))
        labels, styles = (np.array([column[row] for row in first], object) for column in columns)
        trained, other = np.zeros(len(first), bool), np.zeros(len(first), bool)
        trained[picture_of[corpus.select("train")]] = True
        other[picture_of[~corpus.column("split").equal(UNSEEN_STYLE)]] = True
        return cls(labels, styles, trained, ~other)

    @cached_property
    def references(self) -> np.ndarray:
        """The labelled pictures that classes are learnt from: training's, and those of labels that training lacks."""
        known = {None, *self.labels[self.trained]}
        lacking = np.array([label not in known for label in self.labels], bool)
        labelled = self.labels != np.array(None)
        return np.flatnonzero(labelled & (self.trained | (lacking & ~self.hidden)))

    @cached_property
    def styled(self) -> np.ndarray:
        """The training pictures by which styles are told: of concepts that training shows in several."""
        nothing, shown = np.array(None), dict[str, set[str]]()
        named = np.flatnonzero(self.trained & (self.labels != nothing) & (self.styles != nothing))
        for picture in named:
            shown.setdefault(self.labels[picture], set()).add(self.styles[picture])
        return named[np.array([len(shown[label]) > 1 for label in self.labels[named]], bool)]


class Classes:
    """Names, told apart by features.

    Args:
        features: [n, F]. names: of each item.
    """

    def __init__(self, features: Tensor, names: Sequence[str]):
        self.names = sorted(set(names))
        self.number = {name: number for number, name in enumerate(self.names)}
        self.discriminant = Discriminant(features, self.numbers(names))

    def numbers(self, names: Sequence[str]) -> Tensor:
        """Return the number of each name: int64 [n]."""
        return torch.tensor([self.number[name] for name in names])

    def rows(
        self, metrics: dict[str, int], features: Tensor, names: Sequence[str | None], **where: Unpack[ResultKey]
    ) -> list[Row]:
        """Compute what share of features [n, F] is found to be of the names wanted, where these are known."""
        known = [number for number, name in enumerate(names) if name in self.number]
        if not known:
            return []
        wanted = self.numbers([str(names[number]) for number in known])
        return class_rows(metrics, self.discriminant.scores(features[known]), wanted, **where)


class PictureJudge:
    """What says which concept and which style a picture is of, how new it is, and how different several are.

    Concepts are told by the network's end and last stages; styles by its first stages and the colours, less their mean
    over all styles of what is shown.

    Args:
        raw: float32 [pictures, F], `PictureFeatures` of the corpus's pictures.
        widths: of its parts.
        known: what the corpus says of the pictures.
    """

    def __init__(self, raw: np.ndarray, widths: Sequence[int], known: KnownPictures):
        self.raw, self.widths, self.known = torch.from_numpy(np.array(raw)), list(widths), known
        self.features = self.unit(self.raw)
        references = known.references
        self.concepts = self._concept_classes(references) if len(references) else None
        self.styles = self._style_classes(known.styled) if len(known.styled) else None

    def unit(self, raw: Tensor) -> Tensor:
        """Return unit vectors [n, E] in which the network's end and each of its last stages weigh the same."""
        parts = raw.float().split(self.widths, 1)[:-1]  # all but what tells a style
        return F.normalize(torch.cat([F.normalize(part, dim=-1) for part in parts], 1), dim=-1)

    def mark(
        self, raw: Tensor, labels: Sequence[str | None], styles: Sequence[str | None], **where: Unpack[ResultKey]
    ) -> list[Row]:
        """Mark pictures by their features, with the judge's own accuracy beside each number.

        Args:
            raw: [n, F]. labels, styles: what was said and asked for; None is not marked.
        """
        found = self.concepts.rows(CONCEPT, self.unit(raw), labels, **where) if self.concepts else []
        found += [replace(row, **where) for row in self.own_concepts] if found else []
        drawn = self.styles.rows(STYLE, *self._less_content(raw, labels, styles), **where) if self.styles else []
        return found + drawn + ([replace(row, **where) for row in self.own_styles] if drawn else [])

    @cached_property
    def own_concepts(self) -> list[Row]:
        """The accuracy on pictures of an unseen style, or others that are no references, or by halves of these."""
        assert self.concepts is not None
        labels, references, metrics = self.known.labels, self.known.references, {"judge_top1": 1, "judge_top5": 5}
        others = np.setdiff1d(
            [p for p, label in enumerate(labels) if label in self.concepts.number], references
        ).astype(int)
        others = others[self.known.hidden[others]] if self.known.hidden[others].any() else others
        classes = self.concepts
        if not len(others):
            by_label = references[np.argsort(labels[references].astype(str), kind="stable")]
            classes, others = self._concept_classes(by_label[::2]), by_label[1::2]
        return classes.rows(metrics, self.features[torch.from_numpy(others)], labels[others], **NOWHERE)

    def _concept_classes(self, pictures: np.ndarray) -> Classes:
        return Classes(self.features[torch.from_numpy(pictures)], self.known.labels[pictures])

    @cached_property
    def own_styles(self) -> list[Row]:
        """The accuracy on the pictures of one half of the concepts, as learnt from the other half's."""
        kinds = np.unique(self.known.labels[self.known.styled].astype(str), return_inverse=True)[1]
        some, others = self.known.styled[kinds % 2 == 0], self.known.styled[kinds % 2 == 1]
        if not len(some) or not len(others):
            return []
        return self._style_classes(some).rows({"judge_style": 1}, *self._styled(others), **NOWHERE)

    def _style_classes(self, pictures: np.ndarray) -> Classes:
        features, names = self._styled(pictures)
        return Classes(features, [str(name) for name in names])

    def _styled(self, pictures: np.ndarray) -> tuple[Tensor, list[str | None]]:
        """Return what tells the styles of some of the corpus's pictures, and these."""
        raw, known = self.raw[torch.from_numpy(pictures)], self.known
        return self._less_content(raw, known.labels[pictures].tolist(), known.styles[pictures].tolist())

    def _less_content(
        self, raw: Tensor, labels: Sequence[str | None], styles: Sequence[str | None]
    ) -> tuple[Tensor, list[str | None]]:
        """Return what tells a style less its mean over the concept, of pictures of known concepts, and their styles."""
        means, deviation = self._style_means
        known = [n for n, label in enumerate(labels) if label in means]
        content = torch.stack([means[str(labels[n])] for n in known]) if known else raw[:0, -self.widths[-1] :]
        return (raw[known, -self.widths[-1] :].float() - content) / deviation, [styles[n] for n in known]

    @cached_property
    def _style_means(self) -> tuple[dict[str, Tensor], Tensor]:
        """The mean [S] of each concept that training shows in several styles, and the deviation [S] from these."""
        shown: dict[str, list[Tensor]] = {}
        for picture in self.known.styled:
            shown.setdefault(self.known.labels[picture], []).append(self.raw[picture, -self.widths[-1] :])
        means = {label: torch.stack(of).mean(0) for label, of in shown.items()}
        apart = torch.cat([torch.stack(of) - means[label] for label, of in shown.items()])
        return means, apart.square().mean(0).sqrt() + 1e-4

    def novelty(self, raw: Tensor, **where: Unpack[ResultKey]) -> list[Row]:
        """Measure how far pictures are from the nearest training picture, and real ones that training never had."""
        found = {"novelty": nearest_distance(self.unit(raw), self._trained), "novelty_real": self._real_distances}
        return [Row.of(name, bootstrap(far.numpy()), len(far), **where) for name, far in found.items() if len(far)]

    @cached_property
    def _trained(self) -> Tensor:
        return self.features[torch.from_numpy(self.known.trained)]

    @cached_property
    def _real_distances(self) -> Tensor:
        return nearest_distance(self.features[torch.from_numpy(~self.known.trained)], self._trained)

    def diversity(self, raw: Tensor, times: int, **where: Unpack[ResultKey]) -> list[Row]:
        """Measure how much drawings [n * times, F] of each recording differ, and real pictures of one concept."""
        if times < 2:
            return []
        found = {"diversity": mean_pairwise_distance(self.unit(raw).unflatten(0, (-1, times)))}
        by_label: dict[str, list[int]] = {}
        for picture in self.known.references:
            by_label.setdefault(self.known.labels[picture], []).append(int(picture))
        if real := [mean_pairwise_distance(self.features[p][None]) for p in by_label.values() if len(p) > 1]:
            found["diversity_real"] = torch.cat(real)
        return [Row.of(name, bootstrap(far.numpy()), len(far), **where) for name, far in found.items()]

    def likeliest(self, raw: Tensor) -> list[str]:
        """Return the concept that each picture [n, F] is most like; nothing where there are no concepts."""
        if self.concepts is None:
            return []
        return [self.concepts.names[n] for n in self.concepts.discriminant.scores(self.unit(raw)).argmax(1).tolist()]


def cached_features(workspace: Workspace, name: str, network: PictureFeatures) -> np.ndarray:
    """Return features of every picture as the decoder learns it, float32 [pictures, F], computed once."""
    pixels, device = workspace.pixels, next(network.parameters()).device

    @torch.no_grad()
    def see(part: range) -> Tensor:
        seen = torch.from_numpy(np.array(pixels[part.start : part.stop])).permute(0, 3, 1, 2)
        return network(seen.to(device)).float().cpu()

    folder = workspace.cache / f"judge-{key_of([name, workspace.recipe.corpus.size])}"
    cache_arrays(folder, {"values": (len(pixels), see)}, "judge's view", None)
    return np.asarray(np.load(folder / "values.npy"))
