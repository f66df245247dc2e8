"""Krum scores over a set of rows that shrinks, one row at a time.

Row i's neighbours are the nearest rows that are left. When a row is removed and every row has to make do with
one neighbour fewer, i's neighbours lose exactly one: the removed row if it was among them, else the furthest.
So each row's distances are sorted once, and a step costs O(n) instead of O(n^2).

*Guarantees*
    - After any removals, scores are those computed anew over the rows left.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.blocks import Matrix

STEPS_BETWEEN_SUMS = 256
"""Steps after which running sums are formed anew: until then they lose less than `krum.TIE`."""


class ShrinkingScores:
    """Sums of squared distances to the nearest rows left.

    Args:
        distances: (n, n) float64 squared distances; the diagonal is ignored.
        num_neighbours: Neighbours counted at first, 1 <= k <= n - 1.

    Attributes:
        scores: (n,) float64; meaningless for removed rows.
        left: (n,) bool, the rows not removed.
        num_neighbours: Neighbours counted now.
    """

    def __init__(self, distances: Matrix, num_neighbours: int) -> None:
        num_rows = len(distances)
        self._distances = np.array(distances, np.float64)
        np.fill_diagonal(self._distances, np.inf)
        self._order = np.argsort(self._distances, axis=1, kind="stable")
        self._rank = np.empty_like(self._order)
        np.put_along_axis(self._rank, self._order, np.arange(num_rows)[np.newaxis], axis=1)
        self._furthest = np.full(num_rows, num_neighbours - 1)
        self.left = np.ones(num_rows, np.bool_)
        self.num_neighbours = num_neighbours
        self.scores = np.zeros(num_rows)
        self._summed = np.zeros(num_rows)
        self._steps = 0
        self._sum_anew(np.arange(num_rows))

    def remove(self, row: int) -> None:
        """Take `row` away, and count one neighbour fewer; at least one must be counted afterwards."""
        self.left[row] = False
        self.num_neighbours -= 1
        rows = np.flatnonzero(self.left)
        furthest = self._order[rows, self._furthest[rows]]
        leaving = np.where(self._rank[rows, row] <= self._furthest[rows], row, furthest)
        self.scores[rows] -= self._distances[rows, leaving]
        self._step_down(rows[leaving == furthest])
        self._steps += 1
        if self._steps % STEPS_BETWEEN_SUMS == 0:
            self._sum_anew(rows)
        else:
            self._sum_anew(rows[self.scores[rows] < 0.5 * self._summed[rows]])

    def copy(self) -> ShrinkingScores:
        """The same scores, from which rows can be removed apart."""
        twin = copy.copy(self)
        twin.left, twin.scores = self.left.copy(), self.scores.copy()
        twin._furthest, twin._summed = self._furthest.copy(), self._summed.copy()
        return twin

    def _step_down(self, rows: NDArray[np.intp]) -> None:
        """Let the furthest neighbour of each of `rows` be the next nearer one that is left."""
        while len(rows):
            self._furthest[rows] -= 1
            rows = rows[~self.left[self._order[rows, self._furthest[rows]]]]

    def _sum_anew(self, rows: NDArray[np.intp]) -> None:
        for row in rows.tolist():
            nearest = self._order[row, : self._furthest[row] + 1]
            self.scores[row] = self._distances[row, nearest[self.left[nearest]]].sum()
        self._summed[rows] = self.scores[rows]
