"""Rules that treat every coordinate on its own: median and trimmed mean, and Bulyan's second phase.

*Guarantees*
    - Median: the middle value of each column, or the mean of the two middle ones.
    - Trimmed mean: the mean of what is left of each column without its f smallest and f largest values.
    - Mean around the median: the mean of the count values closest to the median, a tie going to the lower
      values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.blocks import Matrix, Rows, Vector, workspace
from scarcity_ray.robust.rule import Rule, Selection, Setting, chosen


def sorted_columns(rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The rows' columns in ascending order, (m, b) float32, valid until the next call in this thread."""
    columns: NDArray[np.float32] = workspace("columns", (len(rows), len(rows[0])), np.float32)
    for row, out in zip(rows, columns, strict=True):
        np.copyto(out, row)
    columns.sort(axis=0)
    return columns


def median(columns: NDArray[np.float32]) -> NDArray[np.float64]:
    """Median of each sorted column, (b,) float64."""
    high = len(columns) // 2
    low = (len(columns) - 1) // 2
    middle: NDArray[np.float64] = (columns[low].astype(np.float64) + columns[high]) * 0.5
    return middle


def mean_of(columns: NDArray[np.float32]) -> Vector:
    """Mean of each column, summed in float64 from the first row on and rounded once, (b,) float32."""
    total = np.zeros(columns.shape[1], np.float64)
    for row in columns:
        total += row
    total /= len(columns)
    return total.astype(np.float32)


def mean_around_median(columns: NDArray[np.float32], count: int) -> Vector:
    """Mean of the `count` values of each column that are closest to its median.

    They are a contiguous window of the sorted column. The window starts at the bottom and moves up while the
    value that would enter is strictly closer to the median than the one that would leave.

    Args:
        columns: (m, b) float32, each column ascending.
        count: Values to average, 1 <= count <= m.

    Returns:
        (b,) float32.
    """
    middle = median(columns)
    start = np.zeros(columns.shape[1], np.intp)
    for lowest in range(len(columns) - count):
        moves = (columns[lowest + count] - middle) < (middle - columns[lowest])
        start[moves] = lowest + 1
    total = np.zeros(columns.shape[1], np.float64)
    positions = np.arange(columns.shape[1])
    for offset in range(count):
        total += columns[start + offset, positions]
    total /= count
    return total.astype(np.float32)


class ColumnRule(Rule):
    """A rule that takes all rows and decides in each column."""

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        return Selection(tuple(range(setting.num_rows)))


class Median(ColumnRule):
    """Coordinate-wise median (Yin et al. 2018, definition 1)."""

    name = "median"

    def least_rows(self, num_byzantine: int) -> int:
        """2f + 1: a majority is honest."""
        return 2 * num_byzantine + 1

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The median of each column; see `Rule.combine`."""
        return median(sorted_columns(chosen(block, selection))).astype(np.float32)


class TrimmedMean(ColumnRule):
    """Coordinate-wise trimmed mean (Yin et al. 2018, definition 2): f values go at either end."""

    name = "trimmed_mean"

    def least_rows(self, num_byzantine: int) -> int:
        """2f + 1: at least one value is left."""
        return 2 * num_byzantine + 1

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The trimmed mean of each column; see `Rule.combine`."""
        columns = sorted_columns(chosen(block, selection))
        return mean_of(columns[num_byzantine : len(columns) - num_byzantine])
