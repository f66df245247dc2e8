"""The tables of rules and of pre-aggregations, by name."""

from __future__ import annotations

from scarcity_ray.config import AggregationMethod
from scarcity_ray.errors import UsageError
from scarcity_ray.robust.measures.rows import as_integer
from scarcity_ray.robust.rules.base import Rule
from scarcity_ray.robust.rules.bulyan import Bulyan
from scarcity_ray.robust.rules.coordinatewise import MeanAroundMedian, Median, TrimmedMean
from scarcity_ray.robust.rules.iterative import CenteredClipping, CovarianceFilter, GeometricMedian
from scarcity_ray.robust.rules.krum import Krum, MultiKrum
from scarcity_ray.robust.rules.mean import Mean, WeightedMean
from scarcity_ray.robust.rules.preaggregation import AdaptiveClipping, NearestNeighborMixing, PreAggregation
from scarcity_ray.robust.rules.subset_averaging import MinimumDiameterAveraging, NearestToPivot

RULES: dict[str, Rule] = {
    "mean": Mean(),
    "fedavg": Mean(),
    "weighted": WeightedMean(),
    "median": Median(),
    "trimmed_mean": TrimmedMean(),
    "krum": Krum(),
    "multi_krum": MultiKrum(),
    "bulyan": Bulyan(),
    "geometric_median": GeometricMedian(),
    "centered_clipping": CenteredClipping(),
    "meamed": MeanAroundMedian(),
    "mda": MinimumDiameterAveraging(),
    "caf": CovarianceFilter(),
    "monna": NearestToPivot(),
}

PRE_AGGREGATIONS: dict[str, PreAggregation] = {
    "nnm": NearestNeighborMixing(),
    "arc": AdaptiveClipping(),
}
"""Those that need no numbers; `Bucketing(size, seed)` and `StaticClipping(radius)` are given as objects."""


def get_rule(method: str | AggregationMethod | Rule) -> Rule:
    """The rule of that name; a rule stands for itself, e.g. ``CenteredClipping(radius=0.5, steps=3)``.

    Raises:
        UsageError: If there is none.

    >>> get_rule("fedavg").name
    'mean'
    """
    if isinstance(method, Rule):
        return method
    name = method.value if isinstance(method, AggregationMethod) else method
    rule = RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise UsageError(f"unknown aggregation method {name!r}; known are {', '.join(sorted(RULES))}")
    return rule


def get_pre_aggregation(step: str | PreAggregation) -> PreAggregation:
    """The pre-aggregation of that name; an object stands for itself.

    Raises:
        UsageError: If there is none.
    """
    if isinstance(step, PreAggregation):
        return step
    found = PRE_AGGREGATIONS.get(step) if isinstance(step, str) else None
    if found is None:
        known = ", ".join(sorted(PRE_AGGREGATIONS))
        raise UsageError(
            f"unknown pre-aggregation {step!r}; known are {known}, and objects such as Bucketing"
        )
    return found


def least_rows(method: str | AggregationMethod | Rule, num_byzantine: int) -> int:
    """Rows without which the method refuses to tolerate `num_byzantine` Byzantine ones.

    >>> least_rows("bulyan", 2)
    11
    """
    return get_rule(method).least_rows(as_integer(num_byzantine, "num_byzantine", 0))
