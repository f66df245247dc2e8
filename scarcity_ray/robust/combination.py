"""The last round over the blocks: each block's part of the result, and how its rows stood to it.

*Guarantees*
    - A report changes no bit of the result.
    - Distances in a report are those from the rows to the result.
    - A row's outside share counts the coordinates in which it lies beyond all values that were averaged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.blocks import Matrix, Rows, Vector, one_blas_thread, workspace
from scarcity_ray.robust.columns import WindowSummary
from scarcity_ray.robust.coordinate import ColumnRule
from scarcity_ray.robust.rule import Rule, Selection


class BlockReport(NamedTuple):
    """One block's part of a result and of its report.

    Attributes:
        vector: (b,) float32.
        squares: (n,) float64, each row's squared distance to the vector.
        outside: (n,) int64, coordinates in which it lies beyond what was averaged; None where rows are
            averaged.
    """

    vector: Vector
    squares: NDArray[np.float64]
    outside: NDArray[np.int64] | None


def combine_block(
    block: Rows, rule: Rule, selection: Selection, num_byzantine: int, mixing: Matrix | None = None
) -> Vector:
    """Kernel: the rule's result within the block, (b,) float32; see `Rule.combine`.

    Args:
        block: n float32 rows of length b.
        rule: The rule.
        selection: What its `select` gave.
        num_byzantine: f.
        mixing: (m, n) float64; the rule then combines the m rows `mixing` @ block.
    """
    return rule.combine(_mixed(block, mixing), selection, num_byzantine)


def report_block(
    block: Rows, rule: Rule, selection: Selection, num_byzantine: int, mixing: Matrix | None = None
) -> BlockReport:
    """Kernel: what `combine_block` gives, and how each row stands to it; arguments as there."""
    window: WindowSummary | None = None
    if isinstance(rule, ColumnRule) and mixing is None:
        window = rule.summary(block, selection, num_byzantine)
        vector = window.mean
    else:
        vector = combine_block(block, rule, selection, num_byzantine, mixing)
    apart = workspace("apart", vector.shape, np.float64)
    squares = np.empty(len(block), np.float64)
    for index, row in enumerate(block):
        np.copyto(apart, row)
        np.subtract(apart, vector, out=apart)
        squares[index] = np.dot(apart, apart)
    if window is None:
        return BlockReport(vector, squares, None)
    outside = [np.count_nonzero((row < window.least) | (row > window.largest)) for row in block]
    return BlockReport(vector, squares, np.array(outside, np.int64))


def _mixed(block: Rows, mixing: Matrix | None) -> Rows:
    if mixing is None:
        return block
    rows = workspace("rows", (len(block), len(block[0])), np.float64)
    for row, out in zip(block, rows, strict=True):
        np.copyto(out, row)
    mixed = workspace("mixed", (len(mixing), len(block[0])), np.float32)
    with one_blas_thread():
        mixed[:] = mixing @ rows
    return mixed
