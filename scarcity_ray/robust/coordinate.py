"""Rules that treat every coordinate on its own: median, trimmed mean, mean around the median.

*Guarantees*
    - Median: the middle value of each column, or the mean of the two middle ones.
    - Trimmed mean: the mean of what is left of each column without its f smallest and f largest values.
    - Mean around the median: the mean of the n - f values of each column closest to its median.
"""

from __future__ import annotations

import numpy as np

from scarcity_ray.robust.blocks import Matrix, Rows, Vector
from scarcity_ray.robust.columns import mean_around_median, mean_of, median, order_statistics
from scarcity_ray.robust.rule import Rule, Selection, Setting, chosen


class ColumnRule(Rule):
    """A rule that takes all rows and decides in each column."""

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        return Selection(tuple(range(setting.num_rows)))


class Median(ColumnRule):
    """Coordinate-wise median (Yin et al. 2018, definition 1)."""

    name = "median"

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The median of each column; see `Rule.combine`."""
        return median(chosen(block, selection)).astype(np.float32)


class TrimmedMean(ColumnRule):
    """Coordinate-wise trimmed mean (Yin et al. 2018, definition 2): f values go at either end."""

    name = "trimmed_mean"

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The trimmed mean of each column; see `Rule.combine`."""
        rows = chosen(block, selection)
        return mean_of(order_statistics(rows, num_byzantine, len(rows) - num_byzantine))


class MeanAroundMedian(ColumnRule):
    """MeaMed (Xie, Koyejo, Gupta 2018): per coordinate, the mean of the n - f values next to the median."""

    name = "meamed"

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The mean around the median of each column; see `Rule.combine`."""
        rows = chosen(block, selection)
        return mean_around_median(order_statistics(rows, 0, len(rows)), len(rows) - num_byzantine)
