"""Which rows stand far from a reference, and what a result says of its rows.

A classic z-score cannot exceed (n - 1) / sqrt(n), and one far row inflates the deviation that hides the next.
So distances are standardised by their median and their median absolute deviation.

*Guarantees*
    - A row far from the others is reported, whatever the others beyond half of them do.
    - A row that is not finite is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import Vector
from scarcity_ray.robust.combination import BlockReport
from scarcity_ray.robust.measures.distances import ordered_sum
from scarcity_ray.robust.measures.rows import as_rows, row_norm

MAD_TO_SIGMA = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""

LEAST_SCALE = 2.0**-20
"""Least deviation, relative to the median distance: below it, differences are float32 rounding."""

CANCELLED = 2.0**12
"""A squared distance this much below the squares it is a difference of has lost its digits in float32."""


@dataclass(frozen=True, eq=False)
class OutlierReport:
    """How each row stood to the result. It is made of private data: a report, never a weight.

    Attributes:
        distances: (n,) float64 distances to the result, to a relative 2^-6 at worst, and seldom
            above 1e-5; ``inf`` for a masked row.
        z: (n,) float64, what `robust_z` makes of them.
        outside: (n,) float64, the share of coordinates (of the first `LOOK_COLUMNS` of each block) in which
            the row lies beyond all values that were averaged; 1 for a masked row; None for rules that average
            whole rows, and for mixed rows.
    """

    distances: NDArray[np.float64]
    z: NDArray[np.float64]
    outside: NDArray[np.float64] | None

    def spread(self, kept: Sequence[int], num_rows: int) -> OutlierReport:
        """The same for all rows of which only those at `kept` were not masked."""
        distances = np.full(num_rows, np.inf)
        distances[list(kept)] = self.distances
        outside = None
        if self.outside is not None:
            outside = np.ones(num_rows)
            outside[list(kept)] = self.outside
        return OutlierReport(distances, robust_z(distances), outside)


def combined_report(
    parts: Iterable[BlockReport], norms: NDArray[np.float64] | None
) -> tuple[Vector, OutlierReport | None]:
    """The result and its report from those of the blocks, in block order.

    Args:
        parts: What `report_block` gave.
        norms: (n,) float64, the rows' norms, where it formed no differences; the report is None if one is
            needed.
    """
    blocks = list(parts)
    vector = np.concatenate([block.vector for block in blocks])
    counts = [block.outside for block in blocks if block.outside is not None]
    outside = np.sum(counts, axis=0) / sum(block.looked for block in blocks) if counts else None
    squares = ordered_sum(block.squares for block in blocks)
    if norms is not None:
        own = np.square(norms)
        largest = own + float(sum(np.dot(block.vector, block.vector) for block in blocks))
        squares = squares + own
        if bool((squares * CANCELLED < largest).any()):
            return vector, None
    return vector, report_of_squares(squares, outside)


def report_of_squares(
    squares: NDArray[np.float64], outside: NDArray[np.float64] | None = None
) -> OutlierReport:
    """The report for these squared distances, (n,) float64, and outside shares."""
    distances = np.sqrt(squares)
    return OutlierReport(distances, robust_z(distances), outside)


def robust_z(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many standard deviations each distance lies above the median one; ``inf`` if it is not finite.

    Args:
        distances: (n,) float64 distances, n >= 1.

    Returns:
        (n,) float64.
    """
    finite = np.isfinite(distances)
    z = np.full(len(distances), np.inf)
    if not finite.any():
        return z
    middle = np.median(distances[finite])
    deviation = MAD_TO_SIGMA * np.median(np.abs(distances[finite] - middle))
    scale = max(deviation, LEAST_SCALE * middle, float(np.finfo(np.float64).tiny))
    with np.errstate(over="ignore"):
        z[finite] = (distances[finite] - middle) / scale
    return z


def detect_outliers(
    updates: ArrayLike | Sequence[ArrayLike], reference: ArrayLike, z_thresh: float = 4.0
) -> list[int]:
    """Indices of the rows that stand further from `reference` than the others do.

    Args:
        updates: (n, d) array or a sequence of n rows.
        reference: (d,) finite vector, e.g. the aggregate.
        z_thresh: Robust standard deviations above the median distance, > 0.

    Raises:
        UsageError: For wrong shapes or types.

    >>> detect_outliers([[0.0], [1.0], [-1.2], [0.9], [50.0]], [0.0])
    [4]
    """
    rows = as_rows(updates)
    if len(rows) == 0:
        return []
    (middle,) = as_rows([reference])
    if len(middle) != len(rows[0]):
        raise UsageError(f"reference has {len(middle)} entries, the updates have {len(rows[0])}")
    if not z_thresh > 0:
        raise UsageError(f"z_thresh must be positive, got {z_thresh!r}")
    distances = np.array([_distance(row, middle) for row in rows])
    return np.flatnonzero(robust_z(distances) > z_thresh).tolist()


def _distance(row: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return row_norm(row - reference)
