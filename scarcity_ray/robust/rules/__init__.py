"""The aggregation rules, a file a family; `registry` has them by name, `tolerance` what each tolerates."""

from scarcity_ray.robust.rules.registry import (
    PRE_AGGREGATIONS,
    RULES,
    get_pre_aggregation,
    get_rule,
    least_rows,
)

__all__ = ["PRE_AGGREGATIONS", "RULES", "get_pre_aggregation", "get_rule", "least_rows"]
