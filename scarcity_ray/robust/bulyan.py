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

from scarcity_ray.robust.blocks import Matrix, Rows, Vector
from scarcity_ray.robust.columns import mean_around_median, order_statistics
from scarcity_ray.robust.krum import krum_scores, lowest
from scarcity_ray.robust.rule import Rule, Selection, Setting, chosen
from scarcity_ray.robust.shrinking import ShrinkingScores


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


class Bulyan(Rule):
    """Repeated Krum, then a mean around the median in each coordinate."""

    name = "bulyan"
    needs_distances = True

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        picked, scores = bulyan_selection(distances, setting.num_byzantine)
        return Selection(tuple(sorted(picked)), scores=scores)

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The mean around the median of the picked rows; see `Rule.combine`."""
        rows = chosen(block, selection)
        ascending = order_statistics(rows, 0, len(rows))
        return mean_around_median(ascending, len(rows) - 2 * num_byzantine)
