"""A cost model: the seconds that a rule takes on one core, to choose whether it runs inline or as tasks.

A rule reads its rows in passes, each of which costs some nanoseconds for each entry. The costs were measured
for n of 10 to 300 on a Zen 4 core. Another core is faster or slower at all of them by about the same factor,
and so is its copying into an object store, which the estimate is compared with.

Guarantees:
    The estimate grows with rows and columns, and pre-aggregation never makes it less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scarcity_ray.robust.arrays.blocks import BLOCK_COLUMNS
from scarcity_ray.robust.measures.order_statistics import order_statistics_kernel
from scarcity_ray.robust.native.gram_kernel import gram_kernel
from scarcity_ray.robust.native.loader import worth_a_kernel
from scarcity_ray.robust.rules.base import Rule
from scarcity_ray.robust.rules.coordinatewise import CoordinatewiseRule
from scarcity_ray.robust.rules.mean import sum_kernel
from scarcity_ray.robust.rules.preaggregation import PreAggregation, may_approximate

NANOSECOND = 1e-9


def estimated_seconds(
    rule: Rule, num_rows: int, num_columns: int, pre: Sequence[PreAggregation] = ()
) -> float:
    """Seconds that the rule takes on one core, behind its pre-aggregation, from rows that are in memory."""
    cost = 0.0
    large = worth_a_kernel(num_rows, min(num_columns, BLOCK_COLUMNS))
    compiled_products = large and gram_kernel() is not None
    if may_approximate(rule, pre):
        cost += 0.5 + 0.0096 * num_rows if compiled_products else 1.0 + 0.016 * num_rows
    elif rule.needs_distances or pre:
        cost += 1.5 + 0.0185 * num_rows if compiled_products else 2.0 + 0.03 * num_rows
    elif rule.pivot_row is not None:
        cost += 1.1
    if isinstance(rule, CoordinatewiseRule):
        compiled = large and order_statistics_kernel() is not None
        cost += 0.5 + (0.13 if compiled else 0.4) * math.log2(num_rows)
        if pre:
            cost += 0.35 + 0.0125 * num_rows if compiled else 2.4 + 0.043 * num_rows
    elif pre or rule.name != "krum":
        cost += 0.35 if large and sum_kernel() is not None else 0.8
    return cost * NANOSECOND * num_rows * num_columns
