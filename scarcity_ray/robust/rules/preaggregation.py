"""Pre-aggregation: replace the rows by combinations of them, the *mixed rows*, before a rule is applied.

Each step is a matrix of coefficients computed from the rows' geometry, so steps compose without forming a
mixed row: a rule on whole rows ends in one weighted sum, and a coordinate-wise rule mixes one column block at
a time.

Guarantees:
    Nearest-neighbour mixing averages each row with its nearest others, n - f in all.
    Mixing that approximate distances settle on is that of the exact ones.
    Bucketing averages every row in exactly one bucket.
    After clipping no row is longer than the radius, and shorter ones stand as they are.
    Adaptive clipping shortens floor(2 f / n (n - f)) rows at most, to the length of the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import stream
from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import Matrix
from scarcity_ray.robust.measures.distances import Geometry, with_origin
from scarcity_ray.robust.measures.rows import as_integer
from scarcity_ray.robust.rules.base import Rule, Selection

ExactPairs: TypeAlias = Callable[[NDArray[np.intp]], NDArray[np.float64]]
"""From (p, 2) row indices to the (p,) float64 squared distances of the pairs."""

MOST_PAIRS = 2
"""Pairs a row that are measured again at most: as many cost about what all cost in float64."""


class PreAggregation(ABC):
    """One step of pre-aggregation.

    Attributes:
        name: The name in `registry.PRE_AGGREGATIONS`, and in errors.
        needs_origin: Whether it asks for norms.
        may_settle: Whether `settle` is worth asking.
    """

    name: str
    needs_origin: bool = False
    may_settle: bool = False

    @abstractmethod
    def coefficients(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """Coefficients (m, p) float64 of the new rows on the points, each row of which sums to 1.

        The geometry is of the n rows so far, and of the origin where some step or rule asks for it; f is less
        than n / 2.
        """

    def settle(self, distances: Matrix, error: float, num_byzantine: int, exact: ExactPairs) -> Matrix | None:
        """Coefficients (m, n) on the rows alone, if they are the same for all distances within the error.

        Args:
            distances: (n, n) float64 squared distances; equal rows have equal ones.
            error: Largest relative error of a distance.
            exact: Gives exact distances of few pairs, for a pass over their rows.
        """
        return None


@dataclass(frozen=True)
class NearestNeighborMixing(PreAggregation):
    """NNM (Allouah et al. 2023, algorithm 2): each row becomes the mean of the n - f rows nearest to it."""

    name = "nnm"
    may_settle = True

    def coefficients(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """See `PreAggregation.coefficients`."""
        return _nearest_means(geometry.distances, geometry.num_rows - num_byzantine, len(geometry.squared))

    def settle(self, distances: Matrix, error: float, num_byzantine: int, exact: ExactPairs) -> Matrix | None:
        """See `PreAggregation.settle`; a pair is in doubt if errors could move it past the last one taken."""
        num_rows = len(distances)
        count = num_rows - num_byzantine
        ordered = np.sort(distances, axis=1)
        last, next_one = ordered[:, count - 1 : count], ordered[:, count:][:, :1]
        taken, doubtful = distances <= last, np.zeros((num_rows, num_rows), np.bool_)
        if num_byzantine:
            doubtful = taken & (distances * (1.0 + error) >= next_one * (1.0 - error))
            doubtful |= ~taken & (distances * (1.0 - error) <= last * (1.0 + error))
        doubtful = np.triu(doubtful | doubtful.T, 1) & (distances > 0.0)
        pairs = np.argwhere(doubtful)
        if len(pairs) > MOST_PAIRS * num_rows:
            return None
        if len(pairs):
            distances = distances.copy()
            distances[pairs[:, 0], pairs[:, 1]] = distances[pairs[:, 1], pairs[:, 0]] = exact(pairs)
        return _nearest_means(distances, count, num_rows)


def _nearest_means(distances: Matrix, count: int, num_points: int) -> Matrix:
    apart = np.array(distances)
    np.fill_diagonal(apart, -1.0)
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :count]
    coefficients = np.zeros((len(distances), num_points))
    np.put_along_axis(coefficients, nearest, 1.0 / count, axis=1)
    return coefficients


@dataclass(frozen=True)
class Bucketing(PreAggregation):
    """Means of random buckets (Karimireddy, He, Jaggi 2022, algorithm 1); f rows spoil at most f buckets.

    Attributes:
        size: Rows in a bucket; the last may have fewer.
        seed: Of the permutation. Take another each round: who knows it can fill buckets at will.
    """

    size: int
    seed: int
    name = "bucketing"

    def __post_init__(self) -> None:
        as_integer(self.size, "size", 1)
        as_integer(self.seed, "seed", 0)

    def coefficients(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """See `PreAggregation.coefficients`."""
        order = stream(self.seed, "bucketing").permutation(geometry.num_rows)
        buckets = [order[start : start + self.size] for start in range(0, len(order), self.size)]
        coefficients = np.zeros((len(buckets), len(geometry.squared)))
        for bucket, of_bucket in zip(buckets, coefficients, strict=True):
            of_bucket[bucket] = 1.0 / len(bucket)
        return coefficients


@dataclass(frozen=True)
class StaticClipping(PreAggregation):
    """Each row scaled to a length of at most `radius`."""

    radius: float
    name = "static_clipping"
    needs_origin = True

    def __post_init__(self) -> None:
        if not 0.0 < self.radius < np.inf:
            raise UsageError(f"radius must be positive and finite, got {self.radius!r}")

    def coefficients(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """See `PreAggregation.coefficients`."""
        return _scaled_to(geometry.norms, self.radius)


@dataclass(frozen=True)
class AdaptiveClipping(PreAggregation):
    """ARC (Allouah et al. 2025): the floor(2 f / n (n - f)) longest rows, scaled to the next one's length."""

    name = "arc"
    needs_origin = True

    def coefficients(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """See `PreAggregation.coefficients`."""
        num_rows, norms = geometry.num_rows, geometry.norms
        num_clipped = 2 * num_byzantine * (num_rows - num_byzantine) // num_rows
        return _scaled_to(norms, float(np.sort(norms)[num_rows - 1 - num_clipped]))


def _scaled_to(norms: NDArray[np.float64], radius: float) -> Matrix:
    factors = np.divide(radius, norms, out=np.ones_like(norms), where=norms > radius)
    return np.concatenate([np.diag(factors), (1.0 - factors)[:, np.newaxis]], axis=1)


def may_approximate(rule: Rule, steps: Sequence[PreAggregation]) -> bool:
    """Whether approximate distances may settle what a rule behind these steps selects."""
    if not steps:
        return rule.may_settle
    return len(steps) == 1 and steps[0].may_settle and not rule.measures


def mixed_geometry(
    geometry: Geometry, steps: Sequence[PreAggregation], num_byzantine: int
) -> tuple[Geometry, Matrix | None]:
    """The geometry after all steps, and the last rows' coefficients on the points that came in."""
    total: Matrix | None = None
    for step in steps:
        coefficients = step.coefficients(geometry, num_byzantine)
        geometry = geometry.mixed(coefficients)
        if total is None:
            total = coefficients
        else:
            has_origin = coefficients.shape[1] > len(total)
            total = coefficients @ (with_origin(total) if has_origin else total)
    return geometry, total


def unmixed(selection: Selection, coefficients: Matrix) -> Selection:
    """The selection of original rows that equals a selection of mixed rows."""
    return Selection.weighing(selection.shares @ coefficients[list(selection.rows)])
