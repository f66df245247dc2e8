"""Krum and Multi-Krum (Blanchard et al. 2017, section 3).

*Guarantees*
    - A score is the sum of the squared distances to the n - f - 2 nearest other rows.
    - Ties go to the lowest index: scores within rounding of each other are tied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.blocks import Matrix
from scarcity_ray.robust.linear import RowRule
from scarcity_ray.robust.rows import as_integer
from scarcity_ray.robust.rule import Selection, Setting

TIE = 2.0**-42
"""Scores that differ by less than this share are tied: about what rounding leaves of equal ones."""


def krum_scores(distances: Matrix, num_neighbours: int) -> NDArray[np.float64]:
    """Sum of each row's squared distances to its nearest other rows.

    Args:
        distances: (n, n) float64 squared distances; the diagonal is ignored.
        num_neighbours: Rows to count, at most n - 1.

    Returns:
        (n,) float64.
    """
    others = np.array(distances, np.float64)
    np.fill_diagonal(others, np.inf)
    others.sort(axis=1)
    scores: NDArray[np.float64] = others[:, :num_neighbours].sum(axis=1)
    return scores


def lowest(scores: NDArray[np.float64], candidates: NDArray[np.bool_]) -> int:
    """The lowest index among the candidates whose score ties with their least."""
    least = scores[candidates].min()
    return int(np.argmax(candidates & (scores <= least + TIE * least)))


def is_settled(
    scores: NDArray[np.float64], selected: NDArray[np.bool_], distances: Matrix, error: float
) -> bool:
    """Whether no row outside could score as low as a selected one, but for rows equal to it.

    Args:
        scores: (n,) sums of distances.
        selected: (n,) bool, the lowest scores, ties by index.
        distances: (n, n) squared distances.
        error: Largest relative error of a distance, and so of a score.
    """
    could = np.less_equal.outer(scores[~selected] * (1.0 - error), scores[selected] * (1.0 + error))
    return not (could & (distances[np.ix_(~selected, selected)] > 0.0)).any()


class Krum(RowRule):
    """The row with the lowest score."""

    name = "krum"
    needs_distances = True
    may_settle = True

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        scores = krum_scores(distances, setting.num_rows - setting.num_byzantine - 2)
        return Selection((lowest(scores, np.ones(setting.num_rows, np.bool_)),), scores=scores)

    def settle(self, distances: Matrix, error: float, setting: Setting) -> Selection | None:
        """See `Rule.settle`."""
        return _settled(self._select(distances, setting), distances, error)


class MultiKrum(RowRule):
    """The mean of the m rows with the lowest scores, scores computed once; m is n - f - 2 unless given."""

    name = "multi_krum"
    needs_distances = True
    may_settle = True
    takes_num_selected = True

    def check(
        self, num_rows: int, num_byzantine: int, *, num_selected: object = None, weights: object = None
    ) -> int:
        """Check as `Rule.check` does, and that m is at most n - f - 2."""
        num_byzantine = super().check(num_rows, num_byzantine, weights=weights)
        most = num_rows - num_byzantine - 2
        if num_selected is not None and as_integer(num_selected, "num_selected", 1) > most:
            raise UsageError(f"num_selected must be at most n - f - 2 = {most}, got {num_selected}")
        return num_byzantine

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        scores = krum_scores(distances, setting.num_rows - setting.num_byzantine - 2)
        left = np.ones(setting.num_rows, np.bool_)
        most = setting.num_rows - setting.num_byzantine - 2
        for _ in range(most if setting.num_selected is None else setting.num_selected):
            left[lowest(scores, left)] = False
        return Selection(tuple(np.flatnonzero(~left).tolist()), scores=scores)

    def settle(self, distances: Matrix, error: float, setting: Setting) -> Selection | None:
        """See `Rule.settle`."""
        return _settled(self._select(distances, setting), distances, error)


def _settled(selection: Selection, distances: Matrix, error: float) -> Selection | None:
    selected = np.zeros(len(distances), np.bool_)
    selected[list(selection.rows)] = True
    if selection.scores is None or not is_settled(selection.scores, selected, distances, error):
        return None
    return selection
