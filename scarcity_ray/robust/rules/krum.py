"""Krum and Multi-Krum (Blanchard et al. 2017, section 3).

Guarantees:
    A score is the sum of the squared distances to the n - f - 2 nearest other rows.
    Ties go to the lowest index: scores within rounding of each other are tied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import Matrix
from scarcity_ray.robust.measures.rows import as_integer
from scarcity_ray.robust.rules.base import ExactRows, Selection, Setting
from scarcity_ray.robust.rules.mean import RowRule

TIE = 2.0**-42
"""Scores that differ by less than this share are tied: about what rounding leaves of equal ones."""


def krum_scores(distances: Matrix, num_neighbours: int) -> NDArray[np.float64]:
    """Sum of each row's squared distances to its `num_neighbours` nearest other rows, (n,) float64.

    The diagonal of the (n, n) distances is ignored.
    """
    others = np.array(distances, np.float64)
    np.fill_diagonal(others, np.inf)
    others.sort(axis=1)
    scores: NDArray[np.float64] = others[:, :num_neighbours].sum(axis=1)
    return scores


def lowest(scores: NDArray[np.float64]) -> int:
    """The lowest index whose score ties with the least; rows that must not be taken have infinite scores."""
    least = scores.min()
    return int(np.argmax(scores <= least + TIE * least))


def settled_lowest(
    distances: Matrix, error: float, num_neighbours: int, count: int, exact: ExactRows
) -> NDArray[np.bool_] | None:
    """The `count` rows with the lowest scores, if distances within `error` and a few exact ones tell.

    A row that is taken and one that is not are in doubt if they could change places. Rows not in doubt stay
    where they are, whatever the scores of the others are; among those in doubt, exact scores decide.

    Args:
        distances: (n, n) float64 squared distances; zero means that two rows are equal.
        error: Largest relative error of a distance, and so of a score.
        exact: Gives exact distances of few rows.

    Returns:
        (n,) bool, or None if more than a quarter of the rows are in doubt.
    """
    scores = krum_scores(distances, num_neighbours)
    taken = lowest_scores(scores, np.ones(len(scores), np.bool_), count)
    could_change = np.less_equal.outer(scores * (1.0 - error), scores * (1.0 + error)) & (distances > 0.0)
    could_change &= np.logical_and.outer(~taken, taken)
    in_doubt = np.logical_or(could_change.any(axis=0), could_change.any(axis=1))
    rows = np.flatnonzero(in_doubt)
    if len(rows) == 0:
        return taken
    if 4 * len(rows) > len(scores):
        return None
    apart = exact(rows)
    apart[np.arange(len(rows)), rows] = np.inf
    apart.sort(axis=1)
    scores[rows] = apart[:, :num_neighbours].sum(axis=1)
    settled = lowest_scores(scores, in_doubt, int(np.count_nonzero(taken & in_doubt)))
    settled[taken & ~in_doubt] = True
    return settled


def lowest_scores(
    scores: NDArray[np.float64], candidates: NDArray[np.bool_], count: int
) -> NDArray[np.bool_]:
    """Mask of the `count` candidates with the lowest scores, a tie going to the lowest index."""
    left, taken = np.where(candidates, scores, np.inf), np.zeros(len(scores), np.bool_)
    for _ in range(count):
        row = lowest(left)
        left[row], taken[row] = np.inf, True
    return taken


class Krum(RowRule):
    """The row with the lowest score."""

    name = "krum"
    needs_distances = True
    may_settle = True

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        scores = krum_scores(distances, _num_neighbours(setting))
        taken = lowest_scores(scores, np.ones(setting.num_rows, np.bool_), self._num_selected(setting))
        return Selection(tuple(np.flatnonzero(taken).tolist()), scores=scores)

    def settle(self, distances: Matrix, error: float, setting: Setting, exact: ExactRows) -> Selection | None:
        """See `Rule.settle`."""
        num_neighbours = _num_neighbours(setting)
        taken = settled_lowest(distances, error, num_neighbours, self._num_selected(setting), exact)
        if taken is None:
            return None
        scores = krum_scores(distances, num_neighbours)
        return Selection(tuple(np.flatnonzero(taken).tolist()), scores=scores)

    def _num_selected(self, setting: Setting) -> int:
        return 1


class MultiKrum(Krum):
    """The mean of the m rows with the lowest scores, scores computed once; m is n - f - 2 unless given."""

    name = "multi_krum"
    takes_num_selected = True

    def check(self, setting: Setting) -> None:
        """Check as `Rule.check` does, and that m is at most n - f - 2."""
        super().check(setting)
        most, count = _num_neighbours(setting), setting.num_selected
        if count is not None and as_integer(count, "num_selected", 1) > most:
            raise UsageError(f"num_selected must be at most n - f - 2 = {most}, got {count}")

    def _num_selected(self, setting: Setting) -> int:
        return _num_neighbours(setting) if setting.num_selected is None else setting.num_selected


def _num_neighbours(setting: Setting) -> int:
    return setting.num_rows - setting.num_byzantine - 2
