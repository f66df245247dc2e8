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

from scarcity_ray.robust.arrays.blocks import Matrix
from scarcity_ray.robust.measures.order_statistics import Window
from scarcity_ray.robust.rules.base import ExactRows, Selection, Setting
from scarcity_ray.robust.rules.coordinatewise import ColumnRule
from scarcity_ray.robust.rules.krum import TIE, krum_scores
from scarcity_ray.robust.rules.shrinking import ShrinkingScores

EXACT = 2.0**-38
"""Relative error to allow for in exact distances."""

MOST_PATHS = 64
"""Open paths at which `settled_selection` gives up."""

MOST_STEPS = 8
"""Steps a row, of all paths together, after which it gives up too: colluders whose scores nearly tie would
otherwise make it take far longer than distances in float64."""

MOST_QUESTIONS = 3
"""Times that `Bulyan.settle` asks for exact rows: each is a pass over all rows, a fifth of the exact one."""


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
    picked = [_lowest(running.scores)]
    while len(picked) < theta and running.num_neighbours > 1:
        running.remove(picked[-1])
        picked.append(_lowest(running.scores))
    while len(picked) < theta:
        left = np.delete(np.arange(num_rows), picked)
        scores = krum_scores(distances[np.ix_(left, left)], min(1, len(left) - 1))
        picked.append(int(left[_lowest(scores)]))
    return picked, first


def _lowest(scores: NDArray[np.float64]) -> int:
    """The lowest index whose score ties with the least (see `krum.lowest`); infinite ones are not asked."""
    least = scores.min()
    return int(np.argmax(scores <= least + TIE * least))


def settled_selection(
    distances: Matrix, num_byzantine: int, errors: NDArray[np.float64]
) -> tuple[list[int] | None, NDArray[np.intp]]:
    """The rows that repeated Krum picks, ascending, if they are the same for all distances within the errors.

    Every row that may score lowest is followed. Two that are close are usually picked one after the other, in
    either order, so that the paths soon meet again; if more than `MOST_PATHS` are open, all of them together
    take more than `MOST_STEPS` steps a row, or several are left at the end, the answer is None.

    Args:
        distances: (n, n) float64 squared distances.
        num_byzantine: f >= 2, so that a step never has fewer than one neighbour.
        errors: (n,) largest relative error of a row's distances.

    Returns:
        The answer, and the rows whose distances should be known better if it is None: those that shared the
        lead since the paths were last one.
    """
    num_rows = len(distances)
    doubtful = np.zeros(num_rows, np.bool_)
    paths = [ShrinkingScores(distances, num_rows - num_byzantine - 2)]
    steps_left = MOST_STEPS * num_rows
    for step in reversed(range(num_rows - 2 * num_byzantine)):
        met: dict[bytes, ShrinkingScores] = {}
        for path in paths:
            winners = _possible_winners(path, distances, errors)
            doubtful[winners] |= len(winners) > 1
            for row in winners:
                left = path.left.copy()
                left[row] = False
                if left.tobytes() in met:
                    continue
                met[left.tobytes()] = twin = path if row == winners[-1] else path.copy()
                if step:
                    twin.remove(row)
                twin.left[row] = False
            if len(met) > min(MOST_PATHS, steps_left):
                return None, np.flatnonzero(doubtful & (errors > EXACT))
        paths = list(met.values())
        steps_left -= len(paths)
        if len(paths) == 1:
            doubtful[:] = False
    if len(paths) == 1:
        return np.flatnonzero(~paths[0].left).tolist(), np.array([], np.intp)
    return None, np.flatnonzero(doubtful & (errors > EXACT))


def _possible_winners(path: ShrinkingScores, distances: Matrix, errors: NDArray[np.float64]) -> list[int]:
    """Rows that score lowest for some distances within the errors; of those always tied, only the first."""
    possible = np.flatnonzero(path.scores * (1.0 - errors) <= (path.scores * (1.0 + errors)).min())
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
        picked, rows = settled_selection(distances, setting.num_byzantine, errors)
        for _ in range(MOST_QUESTIONS):
            known = np.count_nonzero(errors <= EXACT)
            if len(rows) == 0 or 4 * (known + len(rows)) > setting.num_rows:
                break
            distances, errors[rows] = with_exact_rows(distances, rows, exact(rows)), EXACT
            picked, rows = settled_selection(distances, setting.num_byzantine, errors)
        if picked is None:
            return None
        scores = krum_scores(distances, setting.num_rows - setting.num_byzantine - 2)
        return Selection(tuple(picked), scores=scores)

    def window(self, num_rows: int, num_byzantine: int) -> Window:
        """The beta values of the picked rows closest to their median."""
        return Window(0, num_rows - 2 * num_byzantine, around_median=True)
