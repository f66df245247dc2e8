"""The interface of a rule: one selection from n x n distances, then a combination of each column block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.robust.arrays.blocks import Matrix, Rows, RowSlices, Vector
from scarcity_ray.robust.arrays.mixed_rows import MixedRows, Mixture
from scarcity_ray.robust.measures.distances import Geometry
from scarcity_ray.robust.rules.tolerance import TOLERANCE

ExactRows: TypeAlias = Callable[[NDArray[np.intp]], Matrix]
"""From (c,) row indices to the (c, n) float64 squared distances of these rows to all."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The decision of a rule from the distances: all that `Rule.combine` needs besides the rows.

    Attributes:
        rows: Indices of the rows that enter the result, ascending.
        weights: (len(rows),) float64 that sum to 1, for rules that weigh; None: equal shares.
        scores: (n,) float64 where the rule has a score for each row (the lower the better), else None.
    """

    rows: tuple[int, ...]
    weights: NDArray[np.float64] | None = None
    scores: NDArray[np.float64] | None = None

    @classmethod
    def weighing(cls, weights: NDArray[np.float64]) -> Selection:
        """The rows whose weight, of (n,), is not zero."""
        rows = np.flatnonzero(weights)
        return cls(tuple(rows.tolist()), weights=weights[rows])

    @property
    def shares(self) -> NDArray[np.float64]:
        """(len(rows),) float64, the weights or equal shares."""
        if self.weights is None:
            return np.full(len(self.rows), 1.0 / len(self.rows))
        return self.weights


@dataclass(frozen=True, eq=False)
class Setting:
    """The input of a rule's selection besides the distances: n and f, and what only some rules use.

    Attributes:
        num_rows: n.
        num_byzantine: f >= 0.
        num_selected: Multi-Krum's m.
        weights: (n,) nonnegative public weights with a positive sum.
        geometry: The geometry that the distances are of.
        norms: (n,) float64, for a rule with `needs_norms` where there is no geometry.
        from_pivot: (n,) float64 squared distances, for a rule with a `pivot_row` where there is no geometry.
    """

    num_rows: int
    num_byzantine: int
    num_selected: int | None = None
    weights: NDArray[np.float64] | None = None
    geometry: Geometry | None = None
    norms: NDArray[np.float64] | None = None
    from_pivot: NDArray[np.float64] | None = None

    @property
    def points(self) -> Geometry:
        """The geometry, for rules that cannot do without.

        Raises:
            UsageError: If there is none.
        """
        if self.geometry is None:
            raise UsageError("this rule needs the geometry of the rows")
        return self.geometry


class Rule(ABC):
    """A stateless robust aggregation rule.

    Attributes:
        name: The name in `AggregationMethod`.
        needs_distances: Whether `select` wants the squared distances and the geometry they are of.
        needs_origin: Whether that geometry must have the origin.
        needs_norms: Whether `select` wants the rows' norms where it has no geometry.
        pivot_row: The row from which `select` wants all others' distances where it has no geometry.
        may_settle: Whether `settle` is worth asking.
        takes_weights: Whether `select` accepts weights.
        takes_num_selected: Whether `select` accepts a number of rows to select.
    """

    name: str
    needs_distances: bool = False
    needs_origin: bool = False
    needs_norms: bool = False
    pivot_row: int | None = None
    may_settle: bool = False
    takes_weights: bool = False
    takes_num_selected: bool = False

    @property
    def measures(self) -> bool:
        """Whether `select` looks at how the rows lie."""
        return self.needs_distances or self.needs_norms or self.pivot_row is not None

    def least_rows(self, num_byzantine: int) -> int:
        """Rows without which the rule does not tolerate `num_byzantine` Byzantine ones."""
        return TOLERANCE[self.name].least_rows(num_byzantine)

    def select(self, distances: Matrix | None, setting: Setting) -> Selection:
        """Decide which rows enter, and how, from (n, n) float64 squared distances if `needs_distances`.

        Raises:
            UsageError: For a setting out of range or not of this rule.
            TooFewUpdates: If n is below `least_rows(f)`.
        """
        self.check(setting)
        shape = (setting.num_rows, setting.num_rows)
        if not self.needs_distances:
            distances = np.empty((0, 0))
        elif distances is None or distances.shape != shape:
            raise UsageError(f"{self.name} needs the {shape} squared distances")
        return self._select(distances, setting)

    def check(self, setting: Setting) -> None:
        """Check a setting before any work on rows; raises what `select` does."""
        least = self.least_rows(setting.num_byzantine)
        if setting.num_rows < least:
            raise TooFewUpdates(self.name, setting.num_rows, least)
        if setting.num_selected is not None and not self.takes_num_selected:
            raise UsageError(f"{self.name} takes no num_selected")
        if setting.weights is not None and not self.takes_weights:
            raise UsageError(f"{self.name} takes no weights: it gives every row the same vote")

    def among(self, rows: Sequence[int]) -> Rule:
        """The same rule where only `rows` of those that it was made for are left.

        Raises:
            UsageError: If one that it cannot do without is not.
        """
        return self

    @abstractmethod
    def _select(self, distances: Matrix, setting: Setting) -> Selection:
        """`select` with a checked setting."""

    def settle(self, distances: Matrix, error: float, setting: Setting, exact: ExactRows) -> Selection | None:
        """The selection, if it is the same for all distances that are relatively within `error` of these.

        Equal distances of equal rows count as equal, and distances of zero as exact. Rules that cannot tell
        give None, and are then asked to select from exact distances.

        Args:
            distances: (n, n) float64 squared distances.
            error: Less than 1.
            setting: Checked.
            exact: Gives exact distances of few rows, for a pass over all rows.
        """
        return None

    @abstractmethod
    def combine(self, block: Rows, selection: Selection, num_byzantine: int) -> Vector:
        """The result within one column block: every sum is formed in float64 and rounded once.

        The block's rows are never written to; the result is (b,) float32.
        """


def chosen(block: Rows, selection: Selection) -> Sequence[NDArray[np.float32]]:
    """The rows of the block that the selection names."""
    if isinstance(block, RowSlices):
        return block.chosen(selection.rows)
    return [block[index] for index in selection.rows]


def combine_block(
    block: Rows, rule: Rule, selection: Selection, num_byzantine: int, mixture: Mixture | None = None
) -> Vector:
    """Kernel: the rule's result within the block, or that of the mixed rows; see `Rule.combine`."""
    rows = block if mixture is None else MixedRows(block, mixture)
    return rule.combine(rows, selection, num_byzantine)


def copied_block(block: Rows, mixture: Mixture | None) -> NDArray[np.float32]:
    """Kernel: the block's rows, or its mixed rows, as a new (n, b) float32 array."""
    return np.array(list(block if mixture is None else MixedRows(block, mixture)), np.float32)
