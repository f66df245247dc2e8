"""From rows to one vector: `aggregate` in this process, `aggregate_blocks` for whoever drives the blocks.

*Guarantees*
    - Both give bitwise the same vector, for any grouping of blocks into tasks.
    - A row that is not finite is masked and counted against f; more of them than f is an error.
    - Inputs are never written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.config import AggregationMethod
from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.robust.arrays.blocks import (
    MapBlocks,
    Matrix,
    Vector,
    inline_blocks,
)
from scarcity_ray.robust.arrays.mixed_rows import mixture_of
from scarcity_ray.robust.arrays.threads import one_blas_thread
from scarcity_ray.robust.combination import combine_block
from scarcity_ray.robust.measures.approximate_distances import (
    MOST_ERROR,
    RoughDistances,
    exact_rows,
    head_norms,
    rough_distances,
)
from scarcity_ray.robust.measures.distances import measure, ordered_sum
from scarcity_ray.robust.measures.geometry import Geometry
from scarcity_ray.robust.measures.rows import (
    as_integer,
    as_rows,
    finite_rows,
    row_norms,
    squares_block,
    squares_from_block,
)
from scarcity_ray.robust.outliers import OutlierReport
from scarcity_ray.robust.reporting import report_from_within, reported_in_the_same_pass
from scarcity_ray.robust.rules.base import Rule, Selection, Setting
from scarcity_ray.robust.rules.mean import RowRule
from scarcity_ray.robust.rules.preaggregation import PreAggregation, mixed_geometry, settled_mixing, unmixed
from scarcity_ray.robust.rules.registry import get_pre_aggregation, get_rule


@dataclass(frozen=True, eq=False)
class AggregationResult:
    """What a rule made of n rows.

    Attributes:
        vector: (d,) float32.
        selected: Indices of the rows that entered, ascending.
        weights: (n,) float64, each row's share, for rules that weigh whole rows; else None.
        scores: (n,) float64 to a relative 1e-3, the lower the better, for rules that score; ``nan`` for a
            masked row; else None.
        rejected: Indices of the rows that were masked because they are not finite, ascending.
        report: How far each row stood from the result, if that was asked for.
    """

    vector: Vector
    selected: tuple[int, ...]
    weights: NDArray[np.float64] | None = None
    scores: NDArray[np.float64] | None = None
    rejected: tuple[int, ...] = ()
    report: OutlierReport | None = None

    @property
    def num_rejected(self) -> int:
        """How many rows were masked."""
        return len(self.rejected)


def aggregate(
    updates: ArrayLike | Sequence[ArrayLike],
    *,
    method: str | AggregationMethod | Rule,
    num_byzantine: int,
    weights: ArrayLike | None = None,
    num_selected: int | None = None,
    pre: Sequence[str | PreAggregation] = (),
    report: bool = False,
) -> AggregationResult:
    """Aggregate rows, at most `num_byzantine` of which may be anything at all.

    Rows with an infinite or NaN entry are masked first and count against f: the rule runs with
    f' = f - masked on the rest.

    Args:
        updates: (n, d) array or a sequence of n rows of length d, of any real type; taken as float32.
        method: The rule, e.g. ``"krum"``.
        num_byzantine: f >= 0.
        weights: (n,) public weights, for ``weighted`` only.
        num_selected: m, for ``multi_krum`` only; n - f - 2 if not given.
        pre: Pre-aggregation in order, e.g. ``["nnm"]``.
        report: Whether the result says how far each row stood.

    Raises:
        UsageError: For a wrong type, shape or range, or more than f rows that are not finite.
        TooFewUpdates: If fewer finite rows are left than the rule needs.

    >>> rows = [[1.0, 0.0], [1.1, 0.1], [0.9, 0.0], [1.0, 0.1], [-1e8, 1e8]]
    >>> aggregate(rows, method="median", num_byzantine=1).vector
    array([1. , 0.1], dtype=float32)
    """
    rule = get_rule(method)
    num_byzantine = as_integer(num_byzantine, "num_byzantine", 0)
    rows = as_rows(updates)
    if len(rows) == 0:
        raise TooFewUpdates(rule.name, 0, rule.least_rows(num_byzantine))
    if not report and _settles(rule, [get_pre_aggregation(step) for step in pre]):
        rough = rough_distances(inline_blocks(rows), head_norms(rows))
        if rough is not None:
            return aggregate_blocks(
                inline_blocks(rows),
                len(rows),
                method=method,
                num_byzantine=num_byzantine,
                weights=None
                if weights is None
                else _kept_weights(weights, len(rows), list(range(len(rows)))),
                num_selected=num_selected,
                rough=rough,
                pre=pre,
            )
    norms = row_norms(rows) if rule.needs_distances or rule.needs_norms or pre else None
    finite, kept = finite_rows(rows, norms)
    rejected = sorted(set(range(len(rows))) - set(kept))
    if len(rejected) > num_byzantine:
        raise UsageError(
            f"{len(rejected)} of {len(rows)} rows are not finite, more than num_byzantine = {num_byzantine}"
        )
    if not kept:
        raise TooFewUpdates(rule.name, 0, rule.least_rows(num_byzantine - len(rejected)))
    checked = None if weights is None else _kept_weights(weights, len(rows), kept)
    result = aggregate_blocks(
        inline_blocks(finite),
        len(kept),
        method=rule.among(kept),
        num_byzantine=num_byzantine - len(rejected),
        weights=checked,
        num_selected=num_selected,
        norms=None if norms is None else norms[kept],
        pre=pre,
        report=report,
    )
    if not rejected:
        return result
    return AggregationResult(
        vector=result.vector,
        selected=tuple(kept[index] for index in result.selected),
        weights=_spread(result.weights, kept, len(rows), 0.0),
        scores=_spread(result.scores, kept, len(rows), np.nan),
        rejected=tuple(rejected),
        report=None if result.report is None else result.report.spread(kept, len(rows)),
    )


def aggregate_blocks(
    map_blocks: MapBlocks,
    num_rows: int,
    *,
    method: str | AggregationMethod | Rule,
    num_byzantine: int,
    weights: NDArray[np.float64] | None = None,
    num_selected: int | None = None,
    norms: NDArray[np.float64] | None = None,
    rough: RoughDistances | None = None,
    pre: Sequence[str | PreAggregation] = (),
    report: bool = False,
) -> AggregationResult:
    """Aggregate finite rows that only `map_blocks` can reach.

    Args:
        map_blocks: Driver over the rows' column blocks (see the package's docstring).
        num_rows: n.
        method: The rule.
        num_byzantine: f >= 0.
        weights: (n,) public weights, for ``weighted`` only.
        num_selected: m, for ``multi_krum`` only.
        norms: (n,) float64, the rows' norms where they are known: saves a pass.
        rough: What `rough_distances` gives, where that is known: saves another.
        pre: Pre-aggregation in order.
        report: Whether the result says how far each row stood.

    Raises:
        UsageError: For a wrong type or range.
        TooFewUpdates: If n is below the rule's least n.
    """
    rule = get_rule(method)
    steps = [get_pre_aggregation(step) for step in pre]
    num_byzantine = as_integer(num_byzantine, "num_byzantine", 0)
    if not steps:
        rule.check(num_rows, num_byzantine, num_selected=num_selected, weights=weights)
    elif weights is not None:
        raise UsageError("weights are not for mixed rows")
    elif num_rows < 2 * num_byzantine + 1:
        raise TooFewUpdates(steps[0].name, num_rows, 2 * num_byzantine + 1)
    mixing: Matrix | None = None
    selection: Selection | None = None
    squared: Matrix | None = None
    from_pivot: NDArray[np.float64] | None = None
    if _settles(rule, steps):
        rough = rough or rough_distances(map_blocks, norms)
    if rule.may_settle and not steps:
        selection, squared = _roughly(rule, map_blocks, rough, Setting(num_rows, num_byzantine, num_selected))
    elif rule.pivot_row is not None and not steps:
        from_pivot = ordered_sum(map_blocks(squares_from_block, rule.pivot_row))
    elif rule.needs_norms and not steps and norms is None:
        norms = np.sqrt(ordered_sum(map_blocks(squares_block)))
    elif _settles(rule, steps):
        mixing, squared = settled_mixing(steps[0], map_blocks, rough, num_byzantine)
        if mixing is not None:
            selection = rule.select(
                None, num_rows=len(mixing), num_byzantine=num_byzantine, num_selected=num_selected
            )
    if selection is None:
        geometry: Geometry | None = None
        if steps or rule.needs_distances:
            origin = rule.needs_origin or any(step.needs_origin for step in steps)
            geometry = measure(map_blocks, norms, origin=origin)
            squared = geometry.squared
        with one_blas_thread():
            if geometry is not None:
                geometry, mixing = mixed_geometry(geometry, steps, num_byzantine)
            selection = rule.select(
                None if geometry is None else geometry.distances,
                num_rows=num_rows if geometry is None else geometry.num_rows,
                num_byzantine=num_byzantine,
                num_selected=num_selected,
                weights=weights,
                geometry=geometry,
                norms=norms,
                from_pivot=from_pivot,
            )
    if mixing is not None and isinstance(rule, RowRule):
        selection, mixing = unmixed(selection, mixing[:, :num_rows]), None
    mixture = None if mixing is None else mixture_of(mixing[:, :num_rows])
    seen = report_from_within(selection, squared, num_rows) if report and isinstance(rule, RowRule) else None
    if report and seen is None:
        vector, seen = reported_in_the_same_pass(map_blocks, norms, rule, selection, num_byzantine, mixture)
    else:
        vector = np.concatenate(list(map_blocks(combine_block, rule, selection, num_byzantine, mixture)))
    entered = selection.rows
    if mixing is not None:
        entered = tuple(np.flatnonzero(mixing[list(selection.rows), :num_rows].any(axis=0)).tolist())
    return AggregationResult(
        vector=vector,
        selected=entered,
        weights=_spread(selection.weights, selection.rows, num_rows, 0.0),
        scores=None if steps else selection.scores,
        report=seen,
    )


def _settles(rule: Rule, steps: Sequence[PreAggregation]) -> bool:
    """Whether rough distances may do."""
    if not steps:
        return rule.may_settle
    return len(steps) == 1 and steps[0].may_settle and not rule.measures


def _roughly(
    rule: Rule, map_blocks: MapBlocks, rough: RoughDistances | None, setting: Setting
) -> tuple[Selection | None, Matrix | None]:
    """The selection that rough distances settle on, if there is one, and the distances."""
    if rough is None or rough.error > MOST_ERROR:
        return None, None
    exact = partial(exact_rows, map_blocks, rough)
    return rule.settle(rough.squared, rough.error, setting, exact), rough.squared


def _kept_weights(weights: ArrayLike, num_rows: int, kept: list[int]) -> NDArray[np.float64]:
    try:
        checked = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise UsageError("weights must be real numbers") from None
    if checked.shape != (num_rows,):
        raise UsageError(f"weights must have shape ({num_rows},), one for each row, got {checked.shape}")
    kept_weights: NDArray[np.float64] = checked[kept]
    return kept_weights


def _spread(
    values: NDArray[np.float64] | None, indices: Sequence[int], length: int, rest: float
) -> NDArray[np.float64] | None:
    if values is None:
        return None
    spread = np.full(length, rest)
    spread[list(indices)] = values
    return spread
