"""FID and inception score against their known answers."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from sta.metrics.fidelity import extract, extractor_meta, fid_rows, frechet, inception_score, inception_score_rows
from sta.metrics.rows import ResultKey

WHERE: ResultKey = {"language": "en", "split": "both", "condition": "clean", "system": "speech"}


def normal(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


class Extractor(nn.Module):
    """A small stand-in: mean colour through a linear layer, and dropout that must be off."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [b, 3, H, W] to [b, width]."""
        return self.dropout(self.linear(images.float().mean((2, 3)) / 255))


class Given(nn.Module):
    """Stands where torchmetrics wants an extractor, for features that are already there."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def test_identical_sets_are_at_distance_zero() -> None:
    assert frechet(normal(200, 16), normal(200, 16)) == pytest.approx(0, abs=1e-9)


def test_equal_covariance_gives_the_squared_distance_of_the_means() -> None:
    shift = torch.tensor([3.0, 0.0, -4.0, 0.0])
    assert frechet(normal(500, 4), normal(500, 4) + shift) == pytest.approx(25, rel=1e-6)


def test_frechet_of_scaled_features_is_known() -> None:
    features = normal(300, 5) - normal(300, 5).mean(0)
    variance = features.var(0).sum().item()
    assert frechet(features, 3 * features) == pytest.approx((3 - 1) ** 2 * variance, rel=1e-4)


@pytest.mark.parametrize(("real", "drawn", "width"), [(300, 200, 24), (20, 30, 40), (30, 200, 40)])
def test_frechet_is_the_distance_of_torchmetrics(real: int, drawn: int, width: int) -> None:
    mixing = normal(width, width, 3)
    a, b = normal(real, width, 1) @ mixing, 0.5 * normal(drawn, width, 2) @ mixing + 1
    theirs = FrechetInceptionDistance(feature=Given(width))
    theirs.update(a.double(), real=True)
    theirs.update(b.double(), real=False)
    # Where there are fewer items than features, its eigenvalues of a product of singular matrices are off by 1e-8.
    assert frechet(a, b) == pytest.approx(theirs.compute().item(), rel=1e-3)


def test_fid_row_has_an_interval_around_its_value_that_narrows_with_n() -> None:
    (few,) = fid_rows(normal(60, 8), normal(60, 8, 1) + 1, **WHERE)
    (many,) = fid_rows(normal(2000, 8), normal(2000, 8, 1) + 1, **WHERE)
    assert 0 <= few.low < few.value < few.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert (few.metric, few.n) == ("fid", 60)
    assert fid_rows(normal(60, 8), normal(60, 8, 1) + 1, **WHERE)[0].low == few.low


def test_fid_refuses_features_of_different_extractors() -> None:
    with pytest.raises(ValueError, match="one width"):
        fid_rows(normal(5, 8), normal(5, 9), **WHERE)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("splits", [1, 4, 10])
def test_inception_score_is_that_of_torchmetrics(splits: int) -> None:
    logits = 3 * normal(95, 7)
    theirs = InceptionScore(feature=Given(7), splits=splits)
    theirs.update(logits.double())
    torch.manual_seed(5)  # which it shuffles by
    assert inception_score(logits, splits, 5) == pytest.approx(theirs.compute()[0].item(), rel=1e-9)


def test_inception_score_of_certain_and_even_classes_is_their_number() -> None:
    logits = 100 * torch.eye(4).repeat(100, 1)
    assert inception_score(logits, splits=1) == pytest.approx(4, rel=1e-3)


def test_inception_score_of_one_sort_or_of_no_certainty_is_one() -> None:
    assert inception_score(100 * torch.eye(4)[:1].repeat(40, 1)) == pytest.approx(1)
    assert inception_score(torch.zeros(40, 4)) == pytest.approx(1)


def test_inception_score_is_seeded_and_leaves_the_global_generator_alone() -> None:
    logits = 3 * normal(95, 7)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = inception_score(logits)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert inception_score(logits) == first != inception_score(logits, seed=5)


def test_inception_score_row() -> None:
    (row,) = inception_score_rows(3 * normal(95, 7), **WHERE)
    assert (row.metric, row.n, row.chance) == ("is", 95, 1.0)
    assert 1 <= row.low < row.value < row.high
    with pytest.raises(ValueError, match="3 pictures"):
        inception_score(normal(3, 7))


def test_extract_runs_in_batches_without_dropout() -> None:
    images = torch.randint(0, 256, (11, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = Extractor().train()
    features = extract(extractor, images, batch=4)
    assert features.shape == (11, 6)
    assert not features.requires_grad
    torch.testing.assert_close(features, extractor.linear(images.float().mean((2, 3)) / 255).detach())


@pytest.mark.parametrize("images", [torch.rand(2, 3, 4, 4), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)])
def test_extract_refuses_what_is_not_bytes_in_channels(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        extract(Extractor(), images)


def test_extractor_meta_tells_weights_apart() -> None:
    extractor, features = Extractor(), torch.zeros(1, 6)
    before = extractor_meta(extractor, features)["fid_extractor"]
    assert before.startswith("Extractor-6-")
    assert before == extractor_meta(extractor, features)["fid_extractor"]
    with torch.no_grad():
        extractor.linear.bias.add_(1)
    assert extractor_meta(extractor, features)["fid_extractor"] != before
