"""Which class features belong to: the nearest class mean after whitening within classes (Fisher 1936)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Discriminant:
    """Class means compared by cosine, once the spread within a class, shrunk towards a sphere, is the same everywhere.

    Args:
        features: [n, F].
        classes: int64 [n], from 0.
        shrinkage: share of the sphere in the covariance within classes; there may be fewer items than features.
    """

    def __init__(self, features: Tensor, classes: Tensor, shrinkage: float = 0.2):
        x, count = features.double(), torch.bincount(classes)
        self.centre = x.mean(0)
        means = torch.zeros(len(count), x.shape[1], dtype=x.dtype).index_add_(0, classes, x)
        within = x - (means / count.clamp(min=1)[:, None])[classes]
        covariance = within.T @ within / len(x)
        sphere = covariance.trace().clamp(min=1e-12) / len(covariance) * torch.eye(len(covariance), dtype=x.dtype)
        self.factor = torch.linalg.cholesky(torch.lerp(covariance, sphere, shrinkage))
        directions = torch.zeros(len(count), x.shape[1]).index_add_(0, classes, self._whiten(features))
        self.means = F.normalize(directions, dim=-1)  # of a class without items zero, which is nearest to nothing

    def scores(self, features: Tensor) -> Tensor:
        """Compute the cosine [m, classes] of features [m, F] with each class."""
        return self._whiten(features) @ self.means.T

    def _whiten(self, features: Tensor) -> Tensor:
        """Return unit vectors [m, F] whose covariance within classes is the identity."""
        centred = features.double() - self.centre
        return F.normalize(torch.linalg.solve_triangular(self.factor, centred.T, upper=False).T.float(), dim=-1)
