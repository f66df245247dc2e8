"""The table of rules, by name."""

from __future__ import annotations

from scarcity_ray.config import AggregationMethod
from scarcity_ray.errors import UsageError
from scarcity_ray.robust.bulyan import Bulyan
from scarcity_ray.robust.coordinate import Median, TrimmedMean
from scarcity_ray.robust.krum import Krum, MultiKrum
from scarcity_ray.robust.linear import Mean, WeightedMean
from scarcity_ray.robust.rows import as_integer
from scarcity_ray.robust.rule import Rule

RULES: dict[str, Rule] = {
    "mean": Mean(),
    "fedavg": Mean(),
    "weighted": WeightedMean(),
    "median": Median(),
    "trimmed_mean": TrimmedMean(),
    "krum": Krum(),
    "multi_krum": MultiKrum(),
    "bulyan": Bulyan(),
}


def get_rule(method: str | AggregationMethod) -> Rule:
    """The rule of that name.

    Raises:
        UsageError: If there is none.

    >>> get_rule("fedavg").name
    'mean'
    """
    name = method.value if isinstance(method, AggregationMethod) else method
    rule = RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise UsageError(f"unknown aggregation method {name!r}; known are {', '.join(sorted(RULES))}")
    return rule


def least_rows(method: str | AggregationMethod, num_byzantine: int) -> int:
    """Rows without which the method refuses to tolerate `num_byzantine` Byzantine ones.

    >>> least_rows("bulyan", 2)
    11
    """
    return get_rule(method).least_rows(as_integer(num_byzantine, "num_byzantine", 0))
