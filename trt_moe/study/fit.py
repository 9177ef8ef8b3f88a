"""How well one variable explains another: fits, R^2, rank correlation, bootstrap. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
_MOST_STEPS = 32
_IMAGES_PER_STEP = 20
# As if one more image with the mean target lay on every step: short ones do not follow single images.
_RIDGE = 1.0


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


class Line:
    """Least-squares linear function of one or more variables."""

    def __init__(self, x: Floats, y: Floats) -> None:
        """Fit [N, V] variables to [N]."""
        self._means, self._mean = x.mean(axis=0), float(y.mean())
        # The solution of the smallest norm: variables without spread count for nothing.
        self._slopes = np.linalg.lstsq(x - self._means, y - self._mean, rcond=None)[0]

    def __call__(self, x: Floats) -> Floats:
        """Predict [N] for [N, V]."""
        predicted: Floats = self._mean + (x - self._means) @ self._slopes
        return predicted


class Curve:
    """Least-squares sum of one step function per variable, steps at quantiles: any shape, no interactions.

    Step functions, since a cue need not rise with what it tells: blur lowers the Laplacian variance, noise
    raises it.
    """

    def __init__(self, x: Floats, y: Floats) -> None:
        """Fit [N, V] variables to [N]; the more images for each variable, the finer."""
        steps = int(np.clip(x.shape[0] / x.shape[1] / _IMAGES_PER_STEP, 2, _MOST_STEPS))
        self._edges = [np.unique(np.quantile(column, np.linspace(0, 1, steps + 1)[1:-1])) for column in x.T]
        self._mean = float(y.mean())
        design = self._design(x)
        gram = design.T @ design + _RIDGE * np.eye(design.shape[1])
        self._heights = np.linalg.solve(gram, design.T @ (y - self._mean))

    def __call__(self, x: Floats) -> Floats:
        """Predict [N] for [N, V]."""
        predicted: Floats = self._mean + self._design(x) @ self._heights
        return predicted

    def _design(self, x: Floats) -> Floats:
        columns = [
            np.eye(len(edges) + 1)[np.searchsorted(edges, column, side="right")]
            for edges, column in zip(self._edges, x.T, strict=True)
        ]
        return np.concatenate(columns, axis=1)


class RankCorrelation:
    """Spearman's rank correlation of two variables [N]; sorts once, then takes any weights."""

    def __init__(self, x: Floats, y: Floats) -> None:
        """Note which values are equal."""
        self._groups = [np.unique(values, return_inverse=True)[1] for values in (x, y)]

    def __call__(self, weights: Floats) -> float:
        """From -1 to 1; 0 where one of them has no spread. Equal values share their mean rank."""
        first, second = (self._ranks(group, weights) for group in self._groups)
        covariance = float(weights @ (first * second))
        spread = float(weights @ first**2) * float(weights @ second**2)
        return covariance / spread**0.5 if spread > 0 else 0.0

    @staticmethod
    def _ranks(group: Ints, weights: Floats) -> Floats:
        """Mean ranks, centred on zero."""
        size = np.bincount(group, weights=weights)
        ranks = (np.cumsum(size) - size / 2)[group]
        centred: Floats = ranks - np.average(ranks, weights=weights)
        return centred


class Bootstrap:
    """Draws clusters of images again and again, always the same ones.

    Clusters, since one image at six severities is one observation, not six. A statistic's values are those of
    the sample itself, then of every draw, float64 [1 + RESAMPLES].
    """

    def __init__(self, clusters: Ints, seed: int) -> None:
        """Take the cluster 0..C-1 of each image, int64 [N], and the seed of the draws."""
        count = int(clusters.max()) + 1
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
        self._clusters = clusters
        self._counts = np.concatenate([np.ones((1, count)), draws])

    def values(self, statistic: Callable[[Floats], float]) -> Floats:
        """Values of a function of weights [N]: how often each image was drawn."""
        return np.array([statistic(counts[self._clusters]) for counts in self._counts])

    def r_squared(self, y: Floats, predicted: Floats) -> Floats:
        """Values of 1 - squared error / spread, for [N] and [N].

        Below 0 where the mean would predict better, 0 where `y` has no spread.
        """
        centred = y - y.mean()
        count, total, squares, errors = (
            self._counts @ np.bincount(self._clusters, weights=column)
            for column in (np.ones(len(y)), centred, centred**2, (y - predicted) ** 2)
        )
        spread = squares - total**2 / count
        # What is left of equal values is rounding.
        known = spread > 1e-12 * squares.max()
        return np.where(known, 1 - errors / np.where(known, spread, 1.0), 0.0)


def estimate(values: Floats) -> Estimate:
    """Of `Bootstrap.values`: the sample's, and the 95 % percentile interval of the draws'."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))
