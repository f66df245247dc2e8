"""The last round over the blocks: each block's part of the result, and how its rows stood to it.

*Guarantees*
    - A report changes no bit of the result.
    - Distances in a report are those from the rows to the result.
    - A row's outside share counts the coordinates looked at in which it lies beyond all values averaged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Rows, Vector
from scarcity_ray.robust.arrays.mixed_rows import MixedRows, Mixture
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.rules.base import Rule, Selection
from scarcity_ray.robust.rules.coordinatewise import ColumnRule

LOOK_COLUMNS = 1024
"""Columns of each block in which a report looks for what was left out: all of them would cost a quarter of a
rule's own time, and the share of a million coordinates is known to 0.2 % from those of every block."""

SQUARES = (2.0**-60, 2.0**60)
"""Sums of float32 squares outside are formed again in float64: a square may have left float32's range."""


class BlockReport(NamedTuple):
    """One block's part of a result and of its report.

    Attributes:
        vector: (b,) float32.
        squares: (n,) float64, each row's squared distance to the vector, or that less its own square.
        outside: (n,) int64, coordinates looked at in which it lies beyond what was averaged; None where rows
            are averaged.
        looked: Coordinates looked at.
    """

    vector: Vector
    squares: NDArray[np.float64]
    outside: NDArray[np.int64] | None
    looked: int


def combine_block(
    block: Rows, rule: Rule, selection: Selection, num_byzantine: int, mixture: Mixture | None = None
) -> Vector:
    """Kernel: the rule's result within the block, (b,) float32; see `Rule.combine`.

    Args:
        block: n float32 rows of length b.
        rule: The rule.
        selection: What its `select` gave.
        num_byzantine: f.
        mixture: The rule then combines the rows that it makes of the block's.
    """
    rows = block if mixture is None else MixedRows(block, mixture)
    return rule.combine(rows, selection, num_byzantine)


def report_block(
    block: Rows,
    rule: Rule,
    selection: Selection,
    num_byzantine: int,
    mixture: Mixture | None,
    differences: bool,
) -> BlockReport:
    """Kernel: what `combine_block` gives, and how each row stands to it; arguments as there.

    Args:
        block: n float32 rows of length b.
        rule: The rule.
        selection: What its `select` gave.
        num_byzantine: f.
        mixture: As for `combine_block`.
        differences: Whether to form the rows' differences from the result. It takes three times as long as
            their inner products, which suffice where the rows' own squares are known and not almost equal to
            them.
    """
    if not isinstance(rule, ColumnRule) or mixture is not None:
        vector, outside, look = combine_block(block, rule, selection, num_byzantine, mixture), None, 0
    else:
        look = min(LOOK_COLUMNS, len(block[0]))
        window = rule.summary(block, selection, num_byzantine)
        vector = window.mean
        outside = _outside(block, window.least[:look], window.largest[:look])
    squares = _squares(block, vector) if differences else _squares_less_own(block, vector)
    return BlockReport(vector, squares, outside, look)


def _squares_less_own(block: Rows, vector: Vector) -> NDArray[np.float64]:
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
    seen = np.array([row[: len(low)] for row in block])
    counts: NDArray[np.int64] = ((seen < low) | (seen > high)).sum(axis=1, dtype=np.int64)
    return counts
