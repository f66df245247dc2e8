"""Rules that decide in every coordinate on its own which values they average.

*Guarantees*
    - Median: the middle value of each column, or the mean of the two middle ones.
    - Trimmed mean: the mean of what is left of each column without its f smallest and f largest values.
    - Mean around the median: the mean of the n - f values of each column closest to its median.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.blocks import Matrix, Rows, Vector
from scarcity_ray.robust.columns import closest_to_median, mean_of, mean_of_ranks, order_statistics
from scarcity_ray.robust.rule import Rule, Selection, Setting, chosen


class ColumnRule(Rule):
    """A rule that averages some values of each column."""

    @abstractmethod
    def kept(self, block: Rows, selection: Selection, num_byzantine: int) -> list[NDArray[np.float32]]:
        """The values that are averaged: rows of length b, each column a part of the block's.

        They lie in scratch memory of this thread that is valid until the next call.
        """

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The mean of the kept values of each column; see `Rule.combine`."""
        return mean_of(self.kept(block, selection, num_byzantine))

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        return Selection(tuple(range(setting.num_rows)))


class Median(ColumnRule):
    """Coordinate-wise median (Yin et al. 2018, definition 1)."""

    name = "median"

    def kept(self, block: Rows, selection: Selection, num_byzantine: int) -> list[NDArray[np.float32]]:
        """The middle value of each column, or the two middle ones."""
        rows = chosen(block, selection)
        return order_statistics(rows, (len(rows) - 1) // 2, len(rows) // 2 + 1)


class TrimmedMean(ColumnRule):
    """Coordinate-wise trimmed mean (Yin et al. 2018, definition 2): f values go at either end."""

    name = "trimmed_mean"

    def kept(self, block: Rows, selection: Selection, num_byzantine: int) -> list[NDArray[np.float32]]:
        """All but the f smallest and the f largest values of each column."""
        rows = chosen(block, selection)
        return order_statistics(rows, num_byzantine, len(rows) - num_byzantine)

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The mean of the kept values; where columns are sorted transposed they are not transposed back."""
        rows = chosen(block, selection)
        return mean_of_ranks(rows, num_byzantine, len(rows) - num_byzantine)


class MeanAroundMedian(ColumnRule):
    """MeaMed (Xie, Koyejo, Gupta 2018): per coordinate, the mean of the n - f values next to the median."""

    name = "meamed"

    def kept(self, block: Rows, selection: Selection, num_byzantine: int) -> list[NDArray[np.float32]]:
        """The n - f values of each column closest to its median."""
        rows = chosen(block, selection)
        return closest_to_median(order_statistics(rows, 0, len(rows)), len(rows) - num_byzantine)
