"""Rules that decide in every coordinate on its own which values they average.

Guarantees:
    Median: the middle value of each column, or the mean of the two middle ones.
    Trimmed mean: the mean of what is left of each column without its f smallest and f largest values.
    Mean around the median: the mean of the n - f values of each column closest to its median.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Matrix, Rows, Vector
from scarcity_ray.robust.arrays.mixed_rows import MixedRows
from scarcity_ray.robust.measures.order_statistics import Window, WindowSummary, window_mean, window_summary
from scarcity_ray.robust.rules.base import Rule, Selection, Setting, chosen


class CoordinatewiseRule(Rule):
    """A rule that averages a window of each sorted column."""

    @abstractmethod
    def window(self, num_rows: int, num_byzantine: int) -> Window:
        """Which values of each column are averaged, of the `num_rows` rows that the selection named."""

    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The mean of the window of each column; see `Rule.combine`."""
        rows = _entering(block, selection)
        return window_mean(rows, self.window(len(rows), num_byzantine))

    def summary(self, block: Rows, selection: Selection, num_byzantine: int) -> WindowSummary:
        """What `combine` gives, with the least and the largest value averaged in each column."""
        rows = _entering(block, selection)
        return window_summary(rows, self.window(len(rows), num_byzantine))

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        return Selection(tuple(range(setting.num_rows)))


def _entering(block: Rows, selection: Selection) -> Sequence[NDArray[Any]]:
    if isinstance(block, MixedRows):
        return block.only(selection.rows)
    return chosen(block, selection)


class Median(CoordinatewiseRule):
    """Coordinate-wise median (Yin et al. 2018, definition 1)."""

    name = "median"

    def window(self, num_rows: int, num_byzantine: int) -> Window:
        """The middle value, or the two middle ones."""
        return Window((num_rows - 1) // 2, num_rows // 2 + 1)


class TrimmedMean(CoordinatewiseRule):
    """Coordinate-wise trimmed mean (Yin et al. 2018, definition 2): f values go at either end."""

    name = "trimmed_mean"

    def window(self, num_rows: int, num_byzantine: int) -> Window:
        """All but the f smallest and the f largest values."""
        return Window(num_byzantine, num_rows - num_byzantine)


class MeanAroundMedian(CoordinatewiseRule):
    """MeaMed (Xie, Koyejo, Gupta 2018): per coordinate, the mean of the n - f values next to the median."""

    name = "meamed"

    def window(self, num_rows: int, num_byzantine: int) -> Window:
        """The n - f values closest to the median."""
        return Window(0, num_rows - num_byzantine, around_median=True)
