"""How an aggregate's outlier report comes about: from distances at hand, or in the pass that combines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import MapBlocks, Matrix, Vector
from scarcity_ray.robust.arrays.mixed_rows import Mixture
from scarcity_ray.robust.combination import report_block
from scarcity_ray.robust.measures.approximate_distances import MOST_ERROR, NORMS
from scarcity_ray.robust.measures.geometry import squares_to
from scarcity_ray.robust.outliers import OutlierReport, combined_report, report_of_squares
from scarcity_ray.robust.rules.base import Rule, Selection


def reported_in_the_same_pass(
    map_blocks: MapBlocks,
    norms: NDArray[np.float64] | None,
    rule: Rule,
    selection: Selection,
    num_byzantine: int,
    mixture: Mixture | None,
) -> tuple[Vector, OutlierReport | None]:
    """The result and the report on it; twice over only where rows all but equal the result."""
    if norms is not None and NORMS[0] < norms.max() < NORMS[1]:
        parts = map_blocks(report_block, rule, selection, num_byzantine, mixture, False)
        vector, seen = combined_report(parts, norms)
        if seen is not None:
            return vector, seen
    return combined_report(map_blocks(report_block, rule, selection, num_byzantine, mixture, True), None)


def report_from_within(selection: Selection, squared: Matrix | None, num_rows: int) -> OutlierReport | None:
    """The report on a weighted sum of rows from their distances, without the rows, where they suffice."""
    if squared is None:
        return None
    shares = np.full(len(selection.rows), 1.0 / len(selection.rows))
    weights = np.zeros(len(squared))
    weights[list(selection.rows)] = shares if selection.weights is None else selection.weights
    rest = 1.0 - float(weights.sum())
    if len(squared) > num_rows:
        weights[-1] = max(0.0, rest)
    elif abs(rest) > MOST_ERROR:
        return None
    squares = squares_to(squared, weights)
    return None if squares is None else report_of_squares(squares[:num_rows])
