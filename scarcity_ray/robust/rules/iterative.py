"""Rules that iterate towards a point: geometric median, centred clipping, covariance filter.

They never touch a row: their iterates are combinations of points, kept as coefficients on a `Geometry`, and
the rows are combined once at the end.

Guarantees:
    The geometric median minimises the sum of distances to the rows.
    A step of centred clipping moves by at most the radius, and one row by at most radius / n.
    The covariance filter is that of its paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import Matrix
from scarcity_ray.robust.arrays.threads import one_blas_thread
from scarcity_ray.robust.measures.distances import Geometry
from scarcity_ray.robust.measures.rows import as_integer
from scarcity_ray.robust.rules.base import Selection, Setting
from scarcity_ray.robust.rules.mean import RowRule

SMOOTHING = 2.0**-20
"""Least distance in the geometric median's weights, relative to the rows' median distance to its start."""

WEISZFELD_STEPS = 500
"""Steps at most; most problems settle within 30."""


class GeometricMedian(RowRule):
    """The geometric median by smoothed Weiszfeld iteration (Pillutla, Kakade, Harchaoui 2022)."""

    name = "geometric_median"
    needs_distances = True

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        return Selection.weighing(weiszfeld(setting.points))


def weiszfeld(geometry: Geometry) -> NDArray[np.float64]:
    """Coefficients (n,) of the geometric median of the rows; they are positive and sum to 1."""
    num_rows = geometry.num_rows
    central = np.argsort(np.sqrt(geometry.distances).sum(axis=1), kind="stable")[: (num_rows + 1) // 2]
    weights = np.zeros(len(geometry.squared))
    weights[central] = 1.0 / len(central)
    floor = SMOOTHING * float(np.median(geometry.distances_to(weights)[:num_rows]))
    if floor == 0.0:
        return weights[:num_rows]
    for _ in range(WEISZFELD_STEPS):
        pull = 1.0 / np.maximum(geometry.distances_to(weights)[:num_rows], floor)
        pull /= pull.sum()
        moved = float(np.abs(pull - weights[:num_rows]).max())
        weights[:num_rows] = pull
        if moved < 2.0**-45:
            break
    return weights[:num_rows]


@dataclass(frozen=True)
class CenteredClipping(RowRule):
    """Centred clipping (Karimireddy, He, Jaggi 2021, equation CClip) around the zero vector.

    v <- v + (1/n) sum of (x_i - v) min(1, radius / |x_i - v|), from v = 0: the rows are meant to be deltas
    against a public model. With one step it is the mean of clipped rows, whose sensitivity is 2 radius / n,
    and the norms are all it takes.

    Attributes:
        radius: Largest distance at which a row pulls with full weight.
        steps: Iterations, at least 1.
    """

    radius: float = 1.0
    steps: int = 1
    name = "centered_clipping"
    needs_origin = True

    def __post_init__(self) -> None:
        one_step = as_integer(self.steps, "steps", 1) == 1
        object.__setattr__(self, "needs_norms", one_step)
        object.__setattr__(self, "needs_distances", not one_step)
        if not 0.0 < self.radius < np.inf:
            raise UsageError(f"radius must be positive and finite, got {self.radius!r}")

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        num_rows = setting.num_rows
        if setting.geometry is None and setting.norms is not None:
            return Selection.weighing(self.radius / np.maximum(setting.norms, self.radius) / num_rows)
        geometry = setting.points
        coefficients = np.zeros(num_rows + 1)
        coefficients[-1] = 1.0
        for _ in range(self.steps):
            apart = geometry.distances_to(coefficients)[:num_rows]
            share = self.radius / np.maximum(apart, self.radius)
            coefficients *= 1.0 - share.mean()
            coefficients[:num_rows] += share / num_rows
        return Selection.weighing(coefficients[:num_rows])


class CovarianceFilter(RowRule):
    """CAF, the covariance-bound-agnostic filter (Allouah, Guerraoui, Stephan 2025, algorithm 2).

    Rows lose weight in proportion to their squared deviation along the direction of greatest weighted
    variance, until n - 2f of the weight is left; the furthest of those that still have any loses all. Of the
    weighted means on the way, the one with the least greatest variance is the result.
    """

    name = "caf"
    needs_distances = True

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        geometry, num_rows = setting.points, setting.num_rows
        gram = geometry.gram[:num_rows, :num_rows]
        weights = np.ones(num_rows)
        best, least = weights / num_rows, np.inf
        while weights.sum() > num_rows - 2 * setting.num_byzantine:
            shares = weights / weights.sum()
            variance, deviations = _greatest_variance(gram, shares)
            if variance < least:
                best, least = shares, variance
            if variance <= 0.0:
                break
            weights = weights * np.maximum(1.0 - deviations / deviations[weights > 0.0].max(), 0.0)
        return Selection.weighing(best)


def _greatest_variance(gram: Matrix, shares: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The greatest weighted variance along a direction, and each row's squared deviation along it."""
    inner = gram @ shares
    centred = gram - inner[:, np.newaxis] - inner[np.newaxis, :] + shares @ inner
    roots = np.sqrt(shares)
    with one_blas_thread():
        values, vectors = np.linalg.eigh(roots[:, np.newaxis] * centred * roots[np.newaxis, :])
    variance = float(values[-1])
    if variance <= 0.0:
        return 0.0, np.zeros(len(gram))
    along = centred @ (roots * vectors[:, -1])
    return variance, np.square(along) / variance
