"""Outlier reports: how far each row is from a result, which rows are outliers, and how far each agrees.

*Outliers.* A classic z-score cannot exceed (n - 1) / sqrt(n), and one far row inflates the deviation that
hides the next. So distances are standardised by their median and their median absolute deviation, which fewer
than half of the rows cannot move far.

*Agreement.* A row agrees if it is about as far from the result as the middle row is, in units of the same
deviation, which is taken to be at least a twentieth of the median distance: among few rows that are all alike
some would otherwise disagree by accident. A row is nearer to a mean that holds it than to the mean of the
others, and more so if few are averaged. So the distance of a row with a share w in the result is divided by
1 - w, which gives that to the weighted mean of the others. Whether a rule selected a row therefore does not
matter: Krum selects one row of n, whoever is honest.

Guarantees:
    A row far from the others is reported, whatever the others beyond half of them do.
    A row that is not finite is reported.
    A report changes no bit of the result.
    Distances in a report are those from the rows to the result.
    A row's outside share counts the coordinates looked at in which it lies beyond all values averaged.
    Agreement is bounded: in [0, 1], for any distances.
    Agreement is monotone: a row that stands further off, all else equal, never agrees more.
    Agreement does not depend on the unit of distance.
    A row no further off than the middle one agrees entirely; one that is not finite, not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import MapBlocks, Matrix, Rows, Vector, column_blocks, joined
from scarcity_ray.robust.arrays.mixed_rows import Mixture
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.measures.approximate_distances import MOST_ERROR, NORMS
from scarcity_ray.robust.measures.distances import ordered_sum, squares_to
from scarcity_ray.robust.measures.rows import as_rows, row_norm
from scarcity_ray.robust.rules.base import Rule, Selection, combine_block, copied_block
from scarcity_ray.robust.rules.coordinatewise import CoordinatewiseRule

MAD_TO_SIGMA = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""

LEAST_SCALE = 2.0**-20
"""Least deviation, relative to the median distance: below it, differences are float32 rounding."""

CANCELLED = 2.0**12
"""A squared distance this much below the squares it is a difference of has lost its digits in float32."""

FULL, NONE = 2.0, 4.0
"""Robust standard deviations above the median up to which a row agrees, and from which on it does not."""

FINEST = 0.05
"""Least standard deviation, relative to the median distance."""

LOOK_COLUMNS = 1024
"""Columns of each block in which a report counts values left out. All of them would cost a quarter of a
rule's own time; the share of a million coordinates is known to 0.2 % from those of every block."""

SQUARES = (2.0**-60, 2.0**60)
"""Sums of float32 squares outside are formed again in float64: a square may have left float32's range."""


@dataclass(frozen=True, eq=False)
class OutlierReport:
    """How far each row is from the result. It depends on private data, so it must never become a weight.

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
        distances = spread(self.distances, kept, num_rows, np.inf)
        outside = None if self.outside is None else spread(self.outside, kept, num_rows, 1.0)
        return OutlierReport(distances, robust_z(distances), outside)


def spread(
    values: NDArray[np.float64], indices: Sequence[int], length: int, rest: float
) -> NDArray[np.float64]:
    """An array of this length that holds the values at these indices, and `rest` elsewhere."""
    whole = np.full(length, rest)
    whole[list(indices)] = values
    return whole


class BlockReport(NamedTuple):
    """One block's part of a result and of its report.

    Attributes:
        vector: (b,) float32; of tensors one of theirs.
        square: Its squared length; 0 where differences were formed, which do without.
        squares: (n,) float64, each row's squared distance to the vector, or that less its own square.
        outside: (n,) int64, coordinates looked at in which it lies beyond what was averaged; None where rows
            are averaged.
    """

    vector: Vector
    square: float
    squares: NDArray[np.float64]
    outside: NDArray[np.int64] | None
    looked: int


def combine_and_report(
    map_blocks: MapBlocks,
    norms: NDArray[np.float64] | None,
    rule: Rule,
    selection: Selection,
    num_byzantine: int,
    mixture: Mixture | None,
) -> tuple[Vector, OutlierReport | None]:
    """The result and its report in one pass over the blocks; in two if some row all but equals the result."""
    combination = rule, selection, num_byzantine, mixture
    if norms is not None and NORMS[0] < norms.max() < NORMS[1]:
        vector, seen = joined_report(map_blocks(report_block, *combination, False), norms)
        if seen is not None:
            return vector, seen
    return joined_report(map_blocks(report_block, *combination, True), None)


def distances_report(selection: Selection, squared: Matrix | None, num_rows: int) -> OutlierReport | None:
    """The report on a weighted sum of rows from their distances alone; None where these do not suffice."""
    if squared is None:
        return None
    weights = np.zeros(len(squared))
    weights[list(selection.rows)] = selection.shares
    rest = 1.0 - float(weights.sum())
    if len(squared) > num_rows:
        weights[-1] = max(0.0, rest)
    elif abs(rest) > MOST_ERROR:
        return None
    squares = squares_to(squared, weights)
    return None if squares is None else report_of_squares(squares[:num_rows])


def whole_report(map_blocks: MapBlocks, vector: Vector) -> OutlierReport:
    """The report on a result, (d,), that was not made in blocks."""
    blocks = zip(map_blocks(copied_block, None), column_blocks(len(vector)), strict=True)
    return report_of_squares(ordered_sum(_squares(block, vector[columns]) for block, columns in blocks))


def report_block(
    block: Rows,
    rule: Rule,
    selection: Selection,
    num_byzantine: int,
    mixture: Mixture | None,
    differences: bool,
) -> BlockReport:
    """Kernel: what `combine_block` gives, and how far each row is from it.

    With `differences`, distances come from the rows' differences from the result; that takes three times as
    long as their inner products, which suffice where the rows' own squares are known and not almost equal.
    """
    if not isinstance(rule, CoordinatewiseRule) or mixture is not None:
        vector, outside, look = combine_block(block, rule, selection, num_byzantine, mixture), None, 0
    else:
        look = min(LOOK_COLUMNS, len(block[0]))
        window = rule.summary(block, selection, num_byzantine)
        vector = window.mean
        outside = _outside(block, window.least[:look], window.largest[:look])
    squares = _squares(block, vector) if differences else _squares_less_norms(block, vector)
    square = 0.0 if differences else float(np.dot(vector, vector))
    return BlockReport(vector, square, squares, outside, look)


def _squares_less_norms(block: Rows, vector: Vector) -> NDArray[np.float64]:
    """Squared distances to the vector less each row's own square: |v|^2 - 2 x.v, (n,) float64."""
    inner = np.array([np.dot(row, vector) for row in block], np.float64)
    return float(np.dot(vector, vector)) - 2.0 * inner


def _squares(block: Rows, vector: Vector) -> NDArray[np.float64]:
    """Squared distances to the vector, (n,) float64, to a relative 2^-18."""
    apart = workspace("apart", vector.shape, np.float32)
    squares = np.empty(len(block), np.float64)
    with np.errstate(over="ignore"):
        for index, row in enumerate(block):
            np.subtract(row, vector, out=apart)
            squares[index] = np.dot(apart, apart)
    for index in np.flatnonzero(~((squares > SQUARES[0]) & (squares < SQUARES[1]))).tolist():
        exact = np.subtract(block[index], vector, dtype=np.float64)
        squares[index] = np.dot(exact, exact)
    return squares


def _outside(block: Rows, low: Vector, high: Vector) -> NDArray[np.int64]:
    looked = np.array([row[: len(low)] for row in block])
    counts: NDArray[np.int64] = ((looked < low) | (looked > high)).sum(axis=1, dtype=np.int64)
    return counts


def joined_report(
    parts: Iterable[BlockReport], norms: NDArray[np.float64] | None
) -> tuple[Vector, OutlierReport | None]:
    """The result and its report from what `report_block` gave, in block order.

    `norms` are the rows', (n,) float64, where it formed no differences. The report is None if it needs them.
    """
    blocks = list(parts)
    vector = joined([block.vector for block in blocks])
    counts = [block.outside for block in blocks if block.outside is not None]
    outside = np.sum(counts, axis=0) / sum(block.looked for block in blocks) if counts else None
    squares = ordered_sum(block.squares for block in blocks)
    if norms is not None:
        own = np.square(norms)
        largest = own + sum(block.square for block in blocks)
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
    """How many standard deviations each of (n,) distances, n >= 1, lies above the median one, (n,) float64.

    It is ``inf`` where the distance is not finite.
    """
    finite = np.isfinite(distances)
    z = np.full(len(distances), np.inf)
    if not finite.any():
        return z
    middle, scale = _middle_and_scale(distances[finite], LEAST_SCALE)
    with np.errstate(over="ignore"):
        z[finite] = (distances[finite] - middle) / scale
    return z


def _middle_and_scale(distances: NDArray[np.float64], least: float) -> tuple[float, float]:
    """The median and the robust standard deviation, which is at least `least` of the median."""
    middle = float(np.median(distances))
    deviation = MAD_TO_SIGMA * float(np.median(np.abs(distances - middle)))
    return middle, max(deviation, least * middle, float(np.finfo(np.float64).tiny))


def agreement(
    distances: NDArray[np.float64], shares: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Each row's agreement with the result.

    Args:
        distances: (n,) float64 distances to the result, at least 0; ``inf`` for a row that was masked.
        shares: (n,) float64, each row's share in the result, in [0, 1]; 0 for all by default. A row that is
            the result has distance 0 and the share 1.

    Returns:
        (n,) float64: 1 up to two robust standard deviations above the median distance, 0 from four on, linear
        in between.

    >>> agreement(np.array([1.0, 1.0, 1.0, 1.15, 3.0])).round(2).tolist()
    [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    finite = np.isfinite(distances)
    agreed = np.zeros(len(distances))
    if not finite.any():
        return agreed
    alone = np.ones(len(distances)) if shares is None else np.where(shares < 1.0, 1.0 - shares, 1.0)
    with np.errstate(over="ignore"):
        apart = distances[finite] / alone[finite]
    middle, scale = _middle_and_scale(apart, FINEST)
    excess = np.clip(apart - middle, 0.0, NONE * scale) / scale
    agreed[finite] = np.minimum((NONE - excess) / (NONE - FULL), 1.0)
    return agreed


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
    with np.errstate(over="ignore", invalid="ignore"):
        distances = np.array([row_norm(row - middle) for row in rows])
    return np.flatnonzero(robust_z(distances) > z_thresh).tolist()
