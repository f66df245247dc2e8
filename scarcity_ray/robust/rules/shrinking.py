"""Krum scores over a set of rows that shrinks, one row at a time.

Row i's neighbours are the nearest rows that are left. When a row is removed and every row has to make do with
one neighbour fewer, i's neighbours lose exactly one: the removed row if it was among them, else the furthest.
So each row's distances are sorted once, and a step costs O(n) instead of O(n^2): about fifteen operations on
vectors of n entries. Rows that were removed keep their own neighbours, so that no step has to pick rows out.

*Guarantees*
    - After any removals, scores are those computed anew over the rows left.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Matrix

STEPS_BETWEEN_SUMS = 256
"""Steps after which running sums are formed anew: until then they lose less than `krum.TIE`."""


class ShrinkingScores:
    """Sums of squared distances to the nearest rows left.

    Args:
        distances: (n, n) float64 squared distances, symmetric; the diagonal is ignored.
        num_neighbours: Neighbours counted at first, 1 <= k <= n - 1.

    Attributes:
        scores: (n,) float64; infinite for removed rows.
        left: (n,) bool, the rows not removed.
        num_neighbours: Neighbours counted now.
    """

    def __init__(self, distances: Matrix, num_neighbours: int) -> None:
        num_rows = len(distances)
        self._distances = np.array(distances, np.float64)
        np.fill_diagonal(self._distances, np.inf)
        order = np.argsort(self._distances, axis=1)
        places = np.arange(num_rows * num_rows).reshape(num_rows, num_rows)
        self._place_of = np.empty_like(places)
        self._place_of[order, np.arange(num_rows)[:, np.newaxis]] = places
        self._order = order.ravel()
        self._sorted = np.take_along_axis(self._distances, order, axis=1)
        self._last = places[:, num_neighbours - 1].copy()
        self._furthest = self._sorted[:, num_neighbours - 1].copy()
        self.left = np.ones(num_rows, np.bool_)
        self.num_neighbours = num_neighbours
        self.scores: NDArray[np.float64] = self._sorted[:, :num_neighbours].sum(axis=1)
        self._least_accurate = 0.5 * self.scores
        self._steps = 0

    def remove(self, row: int) -> None:
        """Take `row` away, and count one neighbour fewer; at least one must be counted afterwards."""
        self.left[row] = False
        self.num_neighbours -= 1
        beyond = self._place_of[row] >= self._last
        self.scores -= np.where(beyond, self._furthest, self._distances[row])
        self.scores[row] = np.inf
        steps = beyond
        while steps.any():
            self._last -= steps
            steps = steps & ~self.left[self._order[self._last]]
        self._furthest = self._sorted.ravel()[self._last]
        self._steps += 1
        inaccurate = self.scores < self._least_accurate
        if self._steps % STEPS_BETWEEN_SUMS == 0:
            self._sum_anew(np.flatnonzero(self.left))
        elif inaccurate.any():
            self._sum_anew(np.flatnonzero(inaccurate))

    def copy(self) -> ShrinkingScores:
        """The same scores, from which rows can be removed apart."""
        twin = copy.copy(self)
        twin.left, twin.scores, twin._last = self.left.copy(), self.scores.copy(), self._last.copy()
        twin._least_accurate = self._least_accurate.copy()
        return twin

    def _sum_anew(self, rows: NDArray[np.intp]) -> None:
        num_rows = len(self.left)
        counted = np.arange(num_rows) <= (self._last[rows] - num_rows * rows)[:, np.newaxis]
        counted &= self.left[self._order.reshape(num_rows, num_rows)[rows]]
        self.scores[rows] = np.where(counted, self._sorted[rows], 0.0).sum(axis=1)
        self._least_accurate[rows] = 0.5 * self.scores[rows]
