"""Bulyan (El Mhamdi, Guerraoui, Rouault 2018, section 4) around Krum.

First phase: theta = n - 2f times, Krum picks a row of those that are left; scores are computed anew each
time, over the rows left, with r - f - 2 neighbours of r rows left, clamped at 1 in the last steps. Second
phase: per coordinate, the mean of the beta = theta - 2f values of the picked rows closest to their median.

Guarantees:
    Selection is that of repeated Krum on the shrinking set.
    After any removals, scores are those computed anew over the rows left.
    Each coordinate is the mean of the beta values closest to the median.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Matrix
from scarcity_ray.robust.measures.order_statistics import Window
from scarcity_ray.robust.rules.base import ExactRows, Selection, Setting
from scarcity_ray.robust.rules.coordinatewise import CoordinatewiseRule
from scarcity_ray.robust.rules.krum import krum_scores, lowest

EXACT = 2.0**-38
"""Relative error to allow for in exact distances."""

MOST_PATHS = 64
"""Open paths at which `settled_selection` gives up."""

MOST_STEPS = 8
"""Steps a row, of all paths together, after which it gives up too: colluders whose scores nearly tie would
otherwise make it take far longer than distances in float64."""

MOST_QUESTIONS = 3
"""Times that `Bulyan.settle` asks for exact rows: each is a pass over all rows, a fifth of the exact one."""

STEPS_BETWEEN_SUMS = 256
"""Steps after which running sums are formed anew: until then they lose less than `krum.TIE`."""


class ShrinkingScores:
    """Krum scores over a set of rows that shrinks, one row at a time.

    Row i's neighbours are the nearest rows that are left. When a row is removed and every row has to make do
    with one neighbour fewer, i's neighbours lose exactly one: the removed row if it was among them, else the
    furthest. So each row's distances are sorted once, and a step costs O(n) instead of O(n^2): about fifteen
    operations on vectors of n entries. Rows that were removed keep their own neighbours, so that no step has
    to pick rows out.

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


def with_exact_rows(distances: Matrix, rows: NDArray[np.intp], exact: Matrix) -> Matrix:
    """The distances with those of `rows` to all, (c, n), in place of what they were; symmetric."""
    better = distances.copy()
    better[rows] = exact
    better[:, rows] = exact.T
    among = np.triu(exact[:, rows], 1)
    better[np.ix_(rows, rows)] = among + among.T
    return better


def bulyan_selection(distances: Matrix, num_byzantine: int) -> tuple[list[int], NDArray[np.float64]]:
    """The rows that repeated Krum picks, in that order, and each row's score in the first step."""
    num_rows = len(distances)
    theta = num_rows - 2 * num_byzantine
    running = ShrinkingScores(distances, num_rows - num_byzantine - 2)
    first = running.scores.copy()
    picked = [lowest(running.scores)]
    while len(picked) < theta and running.num_neighbours > 1:
        running.remove(picked[-1])
        picked.append(lowest(running.scores))
    while len(picked) < theta:
        left = np.delete(np.arange(num_rows), picked)
        scores = krum_scores(distances[np.ix_(left, left)], min(1, len(left) - 1))
        picked.append(int(left[lowest(scores)]))
    return picked, first


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


class Bulyan(CoordinatewiseRule):
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
