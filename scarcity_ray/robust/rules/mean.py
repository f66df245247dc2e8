"""Rules whose result is a weighted sum of whole rows: the mean, with and without weights.

Guarantees:
    A weighted sum is formed in float64, row by row, and rounded once.
    The compiled kernel's bits are those of NumPy's.
    A single row comes back bit by bit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import Matrix, Rows, Vector
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.measures.rows import as_weights
from scarcity_ray.robust.native.loader import checked_kernel, worth_a_kernel
from scarcity_ray.robust.native.sum_kernel import SumKernel
from scarcity_ray.robust.rules.base import Rule, Selection, Setting, chosen


def weighted_sum(rows: Sequence[NDArray[np.float32]], weights: NDArray[np.float64] | None) -> Vector:
    """Sum of weights[i] * rows[i], or the mean without weights; (b,) float32, rounded once from float64."""
    if len(rows) == 1 and weights is None:
        return np.array(rows[0], np.float32)
    kernel = sum_kernel() if worth_a_kernel(len(rows), len(rows[0])) else None
    return numpys_sum(rows, weights) if kernel is None else kernel(rows, weights)


def numpys_sum(rows: Sequence[NDArray[np.float32]], weights: NDArray[np.float64] | None) -> Vector:
    """What `weighted_sum` gives, by NumPy."""
    total = workspace("total", (len(rows[0]),), np.float64)
    total[:] = 0.0
    if weights is None:
        for row in rows:
            np.add(total, row, out=total)
        np.divide(total, float(len(rows)), out=total)
        return total.astype(np.float32)
    term = workspace("term", (len(rows[0]),), np.float64)
    for row, weight in zip(rows, weights.tolist(), strict=True):
        np.copyto(term, row)
        np.multiply(term, weight, out=term)
        np.add(total, term, out=total)
    return total.astype(np.float32)


@functools.cache
def sum_kernel() -> SumKernel | None:
    """The compiled kernel, unless it cannot be had here or does not give NumPy's bits."""
    return checked_kernel(SumKernel, _gives_numpys_bits, "rows are summed by NumPy")


def _gives_numpys_bits(kernel: SumKernel) -> bool:
    entries = np.arange(13 * 1100)
    rows = list((np.sin(entries) * 2.0 ** (entries % 61 - 30)).astype(np.float32).reshape(13, 1100))
    return all(
        kernel(rows, weights).tobytes() == numpys_sum(rows, weights).tobytes()
        for weights in (None, np.cos(np.arange(13)))
    )


class RowRule(Rule):
    """A rule whose result is the weighted sum of the rows that it selects."""

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The weighted sum of the selected rows within one block; see `Rule.combine`."""
        return weighted_sum(chosen(block, selection), selection.weights)


class Mean(RowRule):
    """The arithmetic mean: no robustness at all (breakdown point 0)."""

    name = "mean"

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        return Selection(tuple(range(setting.num_rows)))


class WeightedMean(RowRule):
    """The mean with public weights, sum of w_i x_i over sum of w_i; equal weights if none are given.

    A weight must never be what a client says of itself without a cap: a claimed example count of 1e9 would
    own the result (`FederationPlan.row_weight` caps it).
    """

    name = "weighted"
    takes_weights = True

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        given = np.ones(setting.num_rows) if setting.weights is None else setting.weights
        weights = as_weights(given, setting.num_rows)
        with np.errstate(over="ignore"):
            total = weights.sum()
        if not np.isfinite(total) or np.any(weights < 0.0) or total <= 0.0:
            raise UsageError("weights must be finite and nonnegative, with a positive finite sum")
        return Selection(tuple(range(setting.num_rows)), weights=weights / total)
