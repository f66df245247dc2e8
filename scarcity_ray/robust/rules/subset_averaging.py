"""Rules that average n - f rows: those of least diameter (MDA), or those nearest to a trusted one (MoNNA).

Guarantees:
    No set of n - f rows has a smaller diameter than the one that is averaged.
    Of several such sets, the lexicographically first is taken.
    The rows nearest to the pivot are averaged, a tie going to the lowest index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import Matrix
from scarcity_ray.robust.measures.rows import as_integer
from scarcity_ray.robust.rules.base import Selection, Setting
from scarcity_ray.robust.rules.mean import RowRule


class MinimumDiameterAveraging(RowRule):
    """The mean of the n - f rows of least diameter (El Mhamdi et al. 2021, MDA), found exactly.

    Rows further apart than r conflict. A set of n - f rows has a diameter of at most r if the others cover
    all conflicts, and whether f rows can is decided by branching: exponential in f at worst, far less on most
    rows.
    """

    name = "mda"
    needs_distances = True

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        return Selection(tuple(least_diameter(distances, setting.num_byzantine).tolist()))


def least_diameter(distances: Matrix, num_dropped: int) -> NDArray[np.intp]:
    """The lexicographically first set of n - `num_dropped` rows of least diameter, ascending indices."""
    num_rows = len(distances)
    radii = np.unique(distances)
    low, high = 0, len(radii) - 1
    while low < high:
        middle = (low + high) // 2
        if can_cover(distances > radii[middle], num_dropped):
            high = middle
        else:
            low = middle + 1
    conflicts = distances > radii[low]
    kept: list[int] = []
    open_rows = np.ones(num_rows, np.bool_)
    budget = num_dropped
    for row in range(num_rows):
        if not open_rows[row]:
            continue
        rivals = open_rows & conflicts[row]
        rest = open_rows & ~rivals
        rest[row] = False
        left = budget - int(rivals.sum())
        if (
            len(kept) < num_rows - num_dropped
            and left >= 0
            and can_cover(conflicts[np.ix_(rest, rest)], left)
        ):
            kept.append(row)
            open_rows, budget = rest, left
        else:
            open_rows[row] = False
            budget -= 1
    return np.array(kept)


def can_cover(conflicts: NDArray[np.bool_], budget: int) -> bool:
    """Whether at most `budget` rows take part in every conflict of a symmetric matrix of them."""
    while True:
        degrees = conflicts.sum(axis=1)
        if not degrees.any():
            return True
        busiest = int(np.argmax(degrees))
        most = int(degrees[busiest])
        if budget == 0 or int(degrees.sum()) > 2 * budget * most:
            return False
        without = np.arange(len(conflicts)) != busiest
        if most <= budget and can_cover(
            conflicts[np.ix_(without & ~conflicts[busiest], without & ~conflicts[busiest])], budget - most
        ):
            return True
        conflicts = conflicts[np.ix_(without, without)]
        budget -= 1


@dataclass(frozen=True)
class NearestToPivot(RowRule):
    """The mean of the n - f rows nearest to a trusted one, itself included (Farhadkhani et al. 2023, MoNNA).

    With S the honest rows and a pivot p in S, |result - m|^2 <= 4 f / (n - f)^2 * sum over S of |x_i - p|^2.
    With a Byzantine pivot it promises nothing.

    Attributes:
        pivot: Index of the trusted row.
    """

    pivot: int = 0
    name = "monna"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pivot_row", as_integer(self.pivot, "pivot", 0))

    def among(self, rows: Sequence[int]) -> NearestToPivot:
        """See `Rule.among`; the pivot is trusted by its number, which must not become another row's."""
        if self.pivot not in rows:
            raise UsageError(f"the pivot, row {self.pivot}, is not finite")
        return NearestToPivot(list(rows).index(self.pivot))

    def check(self, setting: Setting) -> None:
        """Check as `Rule.check` does, and that the pivot is one of the rows."""
        if self.pivot >= setting.num_rows:
            raise UsageError(f"pivot must be one of the {setting.num_rows} rows, got {self.pivot}")
        super().check(setting)

    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        if setting.geometry is not None:
            from_pivot = setting.geometry.distances[self.pivot].copy()
        elif setting.from_pivot is not None:
            from_pivot = setting.from_pivot.copy()
        else:
            raise UsageError("monna needs the squared distances from its pivot")
        from_pivot[self.pivot] = -1.0
        nearest = np.argsort(from_pivot, kind="stable")[: setting.num_rows - setting.num_byzantine]
        return Selection(tuple(np.sort(nearest).tolist()))
