"""Pre-aggregation: replace the rows by combinations of them before a rule sees them.

Each step is a matrix of coefficients made from the rows' geometry, so that steps compose without forming a
mixed
row: a rule on whole rows ends in one weighted sum, and a column rule mixes each column block as it comes.

*Guarantees*
    - Nearest-neighbour mixing averages each row with its nearest others, n - f in all.
    - Bucketing averages every row in exactly one bucket.
    - After clipping no row is longer than the radius, and shorter ones stand as they are.
    - Adaptive clipping shortens floor(2 f / n (n - f)) rows at most, to the length of the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import stream
from scarcity_ray.errors import UsageError
from scarcity_ray.robust.blocks import Matrix
from scarcity_ray.robust.geometry import Geometry
from scarcity_ray.robust.rows import as_integer


class PreAggregation(ABC):
    """One step. Attributes: `name`, and `needs_origin`: whether it asks for norms."""

    name: str
    needs_origin: bool = False

    @abstractmethod
    def mixing(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """Coefficients of the new rows on the points.

        Args:
            geometry: Of the n rows so far, and the origin where some step or rule asks for it.
            num_byzantine: f, less than n / 2.

        Returns:
            (m, p) float64, each row of which sums to 1.
        """


@dataclass(frozen=True)
class NearestNeighborMixing(PreAggregation):
    """NNM (Allouah et al. 2023, algorithm 2): each row becomes the mean of the n - f rows nearest to it."""

    name = "nnm"

    def mixing(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """See `PreAggregation.mixing`."""
        count = geometry.num_rows - num_byzantine
        apart = np.array(geometry.distances)
        np.fill_diagonal(apart, -1.0)
        nearest = np.argsort(apart, axis=1, kind="stable")[:, :count]
        mixing = np.zeros((geometry.num_rows, len(geometry.squared)))
        np.put_along_axis(mixing, nearest, 1.0 / count, axis=1)
        return mixing


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

    def mixing(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """See `PreAggregation.mixing`."""
        order = stream(self.seed, "bucketing").permutation(geometry.num_rows)
        buckets = [order[start : start + self.size] for start in range(0, len(order), self.size)]
        mixing = np.zeros((len(buckets), len(geometry.squared)))
        for bucket, coefficients in zip(buckets, mixing, strict=True):
            coefficients[bucket] = 1.0 / len(bucket)
        return mixing


@dataclass(frozen=True)
class StaticClipping(PreAggregation):
    """Each row scaled to a length of at most `radius`."""

    radius: float
    name = "static_clipping"
    needs_origin = True

    def __post_init__(self) -> None:
        if not 0.0 < self.radius < np.inf:
            raise UsageError(f"radius must be positive and finite, got {self.radius!r}")

    def mixing(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """See `PreAggregation.mixing`."""
        return _scaled_to(geometry.norms, self.radius)


@dataclass(frozen=True)
class AdaptiveClipping(PreAggregation):
    """ARC (Allouah et al. 2025): the floor(2 f / n (n - f)) longest rows, scaled to the next one's length."""

    name = "arc"
    needs_origin = True

    def mixing(self, geometry: Geometry, num_byzantine: int) -> Matrix:
        """See `PreAggregation.mixing`."""
        num_rows, norms = geometry.num_rows, geometry.norms
        num_clipped = 2 * num_byzantine * (num_rows - num_byzantine) // num_rows
        return _scaled_to(norms, float(np.sort(norms)[num_rows - 1 - num_clipped]))


def _scaled_to(norms: NDArray[np.float64], radius: float) -> Matrix:
    factors = np.divide(radius, norms, out=np.ones_like(norms), where=norms > radius)
    return np.concatenate([np.diag(factors), (1.0 - factors)[:, np.newaxis]], axis=1)
