"""Bulyan (El Mhamdi, Guerraoui, Rouault 2018, section 4) around Krum.

First phase: theta = n - 2f times, Krum picks a row of those that are left; scores are computed anew each
time, over the rows left, with r - f - 2 neighbours of r rows left, clamped at 1 in the last steps. Second
phase: per coordinate, the mean of the beta = theta - 2f values of the picked rows closest to their median.

*Guarantees*
    - Selection is that of repeated Krum on the shrinking set.
    - Each coordinate is the mean of the beta values closest to the median.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.blocks import Matrix
from scarcity_ray.robust.columns import Window
from scarcity_ray.robust.coordinate import ColumnRule
from scarcity_ray.robust.krum import krum_scores, lowest
from scarcity_ray.robust.rule import ExactRows, Selection, Setting
from scarcity_ray.robust.shrinking import ShrinkingScores

EXACT = 2.0**-38
"""Relative error to allow for in exact distances."""

MOST_PATHS = 16
"""Open paths at which `settled_selection` gives up."""


def with_exact_rows(distances: Matrix, rows: NDArray[np.intp], exact: Matrix) -> Matrix:
    """The distances with those of `rows` to all, (c, n), in place of what they were; symmetric."""
    better = distances.copy()
    better[rows] = exact
    better[:, rows] = exact.T
    among = np.triu(exact[:, rows], 1)
    better[np.ix_(rows, rows)] = among + among.T
    return better


def bulyan_selection(distances: Matrix, num_byzantine: int) -> tuple[list[int], NDArray[np.float64]]:
    """The rows that repeated Krum picks, in that order, and each row's score in the first step.

    Args:
        distances: (n, n) float64 squared distances.
        num_byzantine: f, with n >= 4f + 3.
    """
    num_rows = len(distances)
    theta = num_rows - 2 * num_byzantine
    running = ShrinkingScores(distances, num_rows - num_byzantine - 2)
    first = running.scores.copy()
    picked = [lowest(running.scores, running.left)]
    while len(picked) < theta and running.num_neighbours > 1:
        running.remove(picked[-1])
        picked.append(lowest(running.scores, running.left))
    while len(picked) < theta:
        left = np.delete(np.arange(num_rows), picked)
        scores = krum_scores(distances[np.ix_(left, left)], min(1, len(left) - 1))
        picked.append(int(left[lowest(scores, np.ones(len(left), np.bool_))]))
    return picked, first


def settled_selection(
    distances: Matrix, num_byzantine: int, errors: NDArray[np.float64]
) -> tuple[list[int] | None, NDArray[np.bool_]]:
    """The rows that repeated Krum picks, ascending, if they are the same for all distances within the errors.

    Every row that may score lowest is followed. Two that are close are usually picked one after the other, in
    either order, so that the paths soon meet again; if more than `MOST_PATHS` are open or several are left at
    the end, the answer is None.

    Args:
        distances: (n, n) float64 squared distances.
        num_byzantine: f >= 2, so that a step never has fewer than one neighbour.
        errors: (n,) largest relative error of a row's distances.

    Returns:
        The answer, and which rows ever shared the lead with others.
    """
    num_rows = len(distances)
    doubtful = np.zeros(num_rows, np.bool_)
    paths = [ShrinkingScores(distances, num_rows - num_byzantine - 2)]
    for step in reversed(range(num_rows - 2 * num_byzantine)):
        left: dict[bytes, ShrinkingScores] = {}
        for path in paths:
            winners = _possible_winners(path, distances, errors)
            if len(winners) > 1:
                doubtful[winners] = True
            for row in winners:
                mask = path.left.copy()
                mask[row] = False
                if mask.tobytes() not in left:
                    left[mask.tobytes()] = twin = path.copy()
                    if step:
                        twin.remove(row)
                    twin.left[row] = False
        if len(left) > MOST_PATHS:
            return None, doubtful
        paths = list(left.values())
    if len(paths) > 1:
        return None, doubtful
    return [int(row) for row in np.flatnonzero(~paths[0].left)], doubtful


def _possible_winners(path: ShrinkingScores, distances: Matrix, errors: NDArray[np.float64]) -> list[int]:
    """Rows that score lowest for some distances within the errors; of those always tied, only the first."""
    least = (path.scores * (1.0 + errors))[path.left].min()
    possible = np.flatnonzero(path.left & (path.scores * (1.0 - errors) <= least))
    if len(possible) == 1:
        return [int(possible[0])]
    among = distances[np.ix_(possible, possible)]
    ties = among == 0.0
    if path.num_neighbours == 1:
        others = np.where(path.left, distances[possible], np.inf)
        others[np.arange(len(possible)), possible] = np.inf
        nearest, second = np.partition(others, 1, axis=1)[:, :2].T
        error = errors[path.left].max()
        surely = nearest * (1.0 + error) < second * (1.0 - error)
        ties |= (among == nearest) & (among == nearest[:, np.newaxis]) & np.logical_and.outer(surely, surely)
    return [int(row) for row in possible[~np.tril(ties, -1).any(axis=1)]]


class Bulyan(ColumnRule):
    """Repeated Krum, then a mean around the median in each coordinate."""

    name = "bulyan"
    needs_distances = True
    may_settle = True

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        picked, scores = bulyan_selection(distances, setting.num_byzantine)
        return Selection(tuple(sorted(picked)), scores=scores)

    def settle(self, distances: Matrix, error: float, setting: Setting, exact: ExactRows) -> Selection | None:
        """See `Rule.settle`."""
        if setting.num_byzantine < 2:
            return None
        errors = np.full(setting.num_rows, error)
        picked, doubtful = settled_selection(distances, setting.num_byzantine, errors)
        rows = np.flatnonzero(doubtful)
        if picked is None and 4 * len(rows) <= setting.num_rows:
            distances, errors[rows] = with_exact_rows(distances, rows, exact(rows)), EXACT
            picked, _ = settled_selection(distances, setting.num_byzantine, errors)
        if picked is None:
            return None
        scores = krum_scores(distances, setting.num_rows - setting.num_byzantine - 2)
        return Selection(tuple(picked), scores=scores)

    def window(self, num_rows: int, num_byzantine: int) -> Window:
        """The beta values of the picked rows closest to their median."""
        return Window(0, num_rows - 2 * num_byzantine, around_median=True)
