"""From rows to one vector: `aggregate` in this process, `aggregate_blocks` for whoever drives the blocks.

`aggregate_blocks` decides which rows enter (`Decision`), by approximate distances where these suffice and
else by exact ones. Then it combines each block, and reports how far each row is from the result if asked.

Guarantees:
    Both give bitwise the same vector, for any grouping of blocks into tasks.
    A row that is not finite is masked and counted against f; more of them than f is an error.
    Inputs are never written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.config import stream
from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.robust.arrays.blocks import MapBlocks, Matrix, Rows, Vector, inline_blocks, joined
from scarcity_ray.robust.arrays.mixed_rows import mixture_of
from scarcity_ray.robust.arrays.threads import one_blas_thread
from scarcity_ray.robust.measures.approximate_distances import (
    MOST_ERROR,
    ApproximateDistances,
    exact_rows,
    head_norms,
    measure_approximately,
)
from scarcity_ray.robust.measures.distances import exact_pairs, measure, ordered_sum
from scarcity_ray.robust.measures.rows import (
    as_integer,
    as_rows,
    as_weights,
    finite_rows,
    row_norms,
    squares_block,
    squares_from_block,
)
from scarcity_ray.robust.outliers import (
    OutlierReport,
    combine_and_report,
    distances_report,
    spread,
    whole_report,
)
from scarcity_ray.robust.rules.base import Rule, Selection, Setting, combine_block, copied_block
from scarcity_ray.robust.rules.mean import RowRule
from scarcity_ray.robust.rules.plugin import PluginRule
from scarcity_ray.robust.rules.preaggregation import (
    PreAggregation,
    may_approximate,
    mixed_geometry,
    unmixed,
)
from scarcity_ray.robust.rules.registry import AnyRule, get_pre_aggregation, get_rule
from scarcity_ray.robust.tensors.detection import REMEDY, tensor_rows

if TYPE_CHECKING:
    from scarcity_ray.robust.tensors.kernels import TensorRows


@dataclass(frozen=True, eq=False)
class AggregationResult:
    """The result of a rule.

    Attributes:
        vector: (d,) float32. Of tensors it is one on their device, float16 or bfloat16 if they are.
        selected: Indices of the rows that entered, ascending.
        weights: (n,) float64, each row's share, for rules that weigh whole rows; else None.
        scores: (n,) float64 to a relative 1e-3, the lower the better, for rules that score; ``nan`` for a
            masked row; else None.
        rejected: Indices of the rows that were masked because they are not finite, ascending.
        report: How far each row is from the result, if that was asked for.
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


class Decision(NamedTuple):
    """The rows that enter the result, and with what coefficients.

    Attributes:
        selection: Of the rows, or of the mixed rows.
        coefficients: (m, n) float64, of the mixed rows on the rows; None where rows enter as they are.
        squared: (p, p) float64 squared distances of the rows, and of the origin if it was asked for; None
            where they were not measured.
    """

    selection: Selection
    coefficients: Matrix | None
    squared: Matrix | None


def aggregate(
    updates: ArrayLike | Sequence[ArrayLike],
    *,
    method: AnyRule,
    num_byzantine: int,
    weights: ArrayLike | None = None,
    num_selected: int | None = None,
    pre: Sequence[str | PreAggregation] = (),
    report: bool = False,
    rng: np.random.Generator | None = None,
) -> AggregationResult:
    """Aggregate rows, at most `num_byzantine` of which may be anything at all.

    Rows with an infinite or NaN entry are masked first and count against f: the rule runs with
    f' = f - masked on the rest.

    Args:
        updates: (n, d) array or a sequence of n rows of length d, of any real type; taken as float32. Tensors
            of torch, and arrays on a device that speak DLPack, are aggregated where they lie (docs/gpu.md).
        weights: (n,) public weights, for ``weighted`` only.
        num_selected: m, for ``multi_krum`` only; n - f - 2 if not given.
        pre: Pre-aggregation in order, e.g. ``["nnm"]``.
        report: Whether the result says how far each row is from it.
        rng: For a rule from outside that draws; None: always the same.

    Raises:
        UsageError: For a wrong type, shape or range, more than f rows that are not finite, or tensors where
            NumPy's arrays are needed.
        TooFewUpdates: If fewer finite rows are left than the rule needs.
        RuleFailed: If a rule from outside gives no result.

    >>> rows = [[1.0, 0.0], [1.1, 0.1], [0.9, 0.0], [1.0, 0.1], [-1e8, 1e8]]
    >>> aggregate(rows, method="median", num_byzantine=1).vector
    array([1. , 0.1], dtype=float32)
    """
    rule = get_rule(method)
    num_byzantine = as_integer(num_byzantine, "num_byzantine", 0)
    steps = [get_pre_aggregation(step) for step in pre]
    tensors = tensor_rows(updates)
    if tensors is not None and tensors.are_numpys:
        result = aggregate(
            tensors.as_numpys(),
            method=method,
            num_byzantine=num_byzantine,
            weights=weights,
            num_selected=num_selected,
            pre=pre,
            report=report,
            rng=rng,
        )
        return replace(result, vector=tensors.like_rows(result.vector))
    if tensors is None:
        rows = as_rows(updates)
        num_rows, measured = len(rows), partial(_measured, rows)
    else:
        num_rows, measured = len(tensors), partial(_measured_tensors, tensors)
    if num_rows == 0:
        raise TooFewUpdates(rule.name, 0, rule.least_rows(num_byzantine))
    map_blocks, kept, norms, approximate = measured(rule, steps, report)
    rejected = sorted(set(range(num_rows)) - set(kept))
    if len(rejected) > num_byzantine:
        raise UsageError(
            f"{len(rejected)} of {num_rows} rows are not finite, more than num_byzantine = {num_byzantine}"
        )
    if map_blocks is None:
        raise TooFewUpdates(rule.name, 0, rule.least_rows(num_byzantine - len(rejected)))
    checked = None if weights is None else as_weights(weights, num_rows)[kept]
    result = aggregate_blocks(
        map_blocks,
        len(kept),
        method=rule.among(kept),
        num_byzantine=num_byzantine - len(rejected),
        weights=checked,
        num_selected=num_selected,
        norms=norms,
        approximate=approximate,
        pre=pre,
        report=report,
        rng=rng,
    )
    if not rejected:
        return result
    return AggregationResult(
        vector=result.vector,
        selected=tuple(kept[index] for index in result.selected),
        weights=None if result.weights is None else spread(result.weights, kept, num_rows, 0.0),
        scores=None if result.scores is None else spread(result.scores, kept, num_rows, np.nan),
        rejected=tuple(rejected),
        report=None if result.report is None else result.report.spread(kept, num_rows),
    )


class Measured(NamedTuple):
    """The finite rows, and what was measured to find them.

    Attributes:
        map_blocks: Driver over the finite rows; None if there is none.
        kept: Their indices.
        norms: (len(kept),) float64, if the rule or a step asks for them; else None.
        approximate: Their distances, where those were good: all rows are finite then.
    """

    map_blocks: MapBlocks | None
    kept: list[int]
    norms: NDArray[np.float64] | None
    approximate: ApproximateDistances | None


def _measured(rows: Rows, rule: Rule, steps: Sequence[PreAggregation], report: bool) -> Measured:
    if not report and may_approximate(rule, steps):
        approximate = measure_approximately(inline_blocks(rows), head_norms(rows))
        if approximate is not None:
            return Measured(inline_blocks(rows), list(range(len(rows))), None, approximate)
    norms = row_norms(rows) if rule.needs_distances or rule.needs_norms or steps else None
    finite, kept = finite_rows(rows, norms)
    blocks = inline_blocks(finite) if kept else None
    return Measured(blocks, kept, None if norms is None else norms[kept], None)


def _measured_tensors(
    rows: TensorRows, rule: Rule, steps: Sequence[PreAggregation], report: bool
) -> Measured:
    if isinstance(rule, PluginRule):
        raise UsageError(f"{rule.name} is not computed on tensors: {REMEDY}")
    if not report and may_approximate(rule, steps):
        approximate = measure_approximately(rows.map_blocks, rows.head_norms())
        if approximate is not None:
            return Measured(rows.map_blocks, list(range(len(rows))), None, approximate)
    finite, kept = rows.finite()
    return Measured(finite.map_blocks if kept else None, kept, None, None)


def aggregate_blocks(
    map_blocks: MapBlocks,
    num_rows: int,
    *,
    method: AnyRule,
    num_byzantine: int,
    weights: NDArray[np.float64] | None = None,
    num_selected: int | None = None,
    norms: NDArray[np.float64] | None = None,
    approximate: ApproximateDistances | None = None,
    pre: Sequence[str | PreAggregation] = (),
    report: bool = False,
    rng: np.random.Generator | None = None,
) -> AggregationResult:
    """Aggregate finite rows that only `map_blocks` can reach; other arguments are those of `aggregate`.

    Args:
        map_blocks: Driver over the rows' column blocks (see the package's docstring).
        norms: (n,) float64, the rows' norms where they are known: saves a pass.
        approximate: What `measure_approximately` gives, where that is known: saves another.

    Raises:
        UsageError: For a wrong type or range.
        TooFewUpdates: If n is below the rule's least n.
        RuleFailed: If a rule from outside gives no result.
    """
    rule, steps = get_rule(method), [get_pre_aggregation(step) for step in pre]
    num_byzantine = as_integer(num_byzantine, "num_byzantine", 0)
    setting = Setting(num_rows, num_byzantine, num_selected, weights)
    _check(rule, steps, setting)
    if rule.needs_norms and not steps and norms is None:
        norms = np.sqrt(ordered_sum(map_blocks(squares_block)))
    decision = None
    if may_approximate(rule, steps):
        approximate = approximate or measure_approximately(map_blocks, norms)
        decision = _decide_approximately(rule, steps, map_blocks, setting, approximate)
    if decision is None:
        decision = _decide_exactly(rule, steps, map_blocks, setting, norms)
    if isinstance(rule, PluginRule):
        vector, outliers = _combine_whole(rule, map_blocks, num_byzantine, decision, report, rng)
    else:
        vector, outliers = _combine(rule, map_blocks, setting, decision, norms, report)
    rows, shares, scores = decision.selection.rows, decision.selection.weights, decision.selection.scores
    entered = rows
    if decision.coefficients is not None:
        entered = tuple(np.flatnonzero(decision.coefficients[list(rows)].any(axis=0)).tolist())
    return AggregationResult(
        vector=vector,
        selected=entered,
        weights=None if shares is None else spread(shares, rows, num_rows, 0.0),
        scores=None if steps else scores,
        report=outliers,
    )


def _check(rule: Rule, steps: Sequence[PreAggregation], setting: Setting) -> None:
    if not steps:
        rule.check(setting)
    elif setting.weights is not None:
        raise UsageError("weights are not for mixed rows")
    elif setting.num_rows < 2 * setting.num_byzantine + 1:
        raise TooFewUpdates(steps[0].name, setting.num_rows, 2 * setting.num_byzantine + 1)


def _decide_approximately(
    rule: Rule,
    steps: Sequence[PreAggregation],
    map_blocks: MapBlocks,
    setting: Setting,
    approximate: ApproximateDistances | None,
) -> Decision | None:
    """The decision, if approximate distances and a few exact ones settle it."""
    if approximate is None or approximate.error > MOST_ERROR:
        return None
    squared, error, _ = approximate
    if not steps:
        selection = rule.settle(squared, error, setting, partial(exact_rows, map_blocks, approximate))
        return None if selection is None else Decision(selection, None, squared)
    coefficients = steps[0].settle(squared, error, setting.num_byzantine, partial(exact_pairs, map_blocks))
    if coefficients is None:
        return None
    mixed = Setting(len(coefficients), setting.num_byzantine, setting.num_selected)
    return _of_mixed_rows(rule, rule.select(None, mixed), coefficients, squared)


def _decide_exactly(
    rule: Rule,
    steps: Sequence[PreAggregation],
    map_blocks: MapBlocks,
    setting: Setting,
    norms: NDArray[np.float64] | None,
) -> Decision:
    """The decision from all that the rule and the steps before it look at."""
    f, num_selected, weights = setting.num_byzantine, setting.num_selected, setting.weights
    if not (steps or rule.needs_distances):
        from_pivot = None
        if rule.pivot_row is not None:
            from_pivot = ordered_sum(map_blocks(squares_from_block, rule.pivot_row))
        with one_blas_thread():
            known = Setting(setting.num_rows, f, num_selected, weights, norms=norms, from_pivot=from_pivot)
            selection = rule.select(None, known)
        return Decision(selection, None, None)
    origin = rule.needs_origin or any(step.needs_origin for step in steps)
    rows = measure(map_blocks, norms, origin=origin)
    with one_blas_thread():
        geometry, coefficients = mixed_geometry(rows, steps, f)
        mixed = Setting(geometry.num_rows, f, num_selected, weights, geometry)
        selection = rule.select(geometry.distances, mixed)
    if coefficients is None:
        return Decision(selection, None, rows.squared)
    return _of_mixed_rows(rule, selection, coefficients[:, : setting.num_rows], rows.squared)


def _of_mixed_rows(rule: Rule, selection: Selection, coefficients: Matrix, squared: Matrix) -> Decision:
    """The decision for mixed rows; a weighted sum of them is one of the rows themselves."""
    if isinstance(rule, RowRule):
        return Decision(unmixed(selection, coefficients), None, squared)
    return Decision(selection, coefficients, squared)


def _combine(
    rule: Rule,
    map_blocks: MapBlocks,
    setting: Setting,
    decision: Decision,
    norms: NDArray[np.float64] | None,
    report: bool,
) -> tuple[Vector, OutlierReport | None]:
    """The result, and the report on it if one is wanted: from distances at hand, or in the same pass."""
    selection, coefficients, squared = decision
    mixture = None if coefficients is None else mixture_of(coefficients)
    combination = rule, selection, setting.num_byzantine, mixture
    found = None
    if report and isinstance(rule, RowRule):
        found = distances_report(selection, squared, setting.num_rows)
    if report and found is None:
        return combine_and_report(map_blocks, norms, *combination)
    return joined(list(map_blocks(combine_block, *combination))), found


def _combine_whole(
    rule: PluginRule,
    map_blocks: MapBlocks,
    num_byzantine: int,
    decision: Decision,
    report: bool,
    rng: np.random.Generator | None,
) -> tuple[Vector, OutlierReport | None]:
    """The result of a rule that sees whole rows, or mixed rows, as one new array; and its report."""
    mixture = None if decision.coefficients is None else mixture_of(decision.coefficients)
    rows = np.concatenate(list(map_blocks(copied_block, mixture)), axis=1)
    vector = rule.whole(rows, num_byzantine, stream(0, "rule") if rng is None else rng)
    if not report:
        return vector, None
    return vector, whole_report(map_blocks, vector)
