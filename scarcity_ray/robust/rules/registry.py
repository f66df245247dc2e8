"""The tables of rules and of pre-aggregations, by name."""

from __future__ import annotations

from typing import TypeAlias

from scarcity_ray.config import AggregationMethod, Layer1Config, RulePath
from scarcity_ray.errors import UsageError
from scarcity_ray.robust.measures.rows import as_integer
from scarcity_ray.robust.rules.base import Rule
from scarcity_ray.robust.rules.bulyan import Bulyan
from scarcity_ray.robust.rules.coordinatewise import MeanAroundMedian, Median, TrimmedMean
from scarcity_ray.robust.rules.iterative import CenteredClipping, CovarianceFilter, GeometricMedian
from scarcity_ray.robust.rules.krum import Krum, MultiKrum
from scarcity_ray.robust.rules.mean import Mean, WeightedMean
from scarcity_ray.robust.rules.plugin import TIMEOUT_SECONDS, AggregationRule, PluginRule, load_rule
from scarcity_ray.robust.rules.preaggregation import AdaptiveClipping, NearestNeighborMixing, PreAggregation
from scarcity_ray.robust.rules.subset_averaging import MinimumDiameterAveraging, NearestToPivot
from scarcity_ray_client.loading import is_import_path

AnyRule: TypeAlias = str | AggregationMethod | Rule | AggregationRule
"""A rule by name, by import path, or as an object."""

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


def get_rule(method: AnyRule) -> Rule:
    """The rule of that name, or of that import path (``my_module:MyRule``); an object stands for itself.

    Raises:
        UsageError: If there is none.

    >>> get_rule("fedavg").name
    'mean'
    """
    if isinstance(method, Rule):
        return method
    if isinstance(method, AggregationRule):
        return PluginRule(type(method).__name__, lambda: method, TIMEOUT_SECONDS, None)
    if isinstance(method, RulePath) or (isinstance(method, str) and is_import_path(method)):
        return load_rule(method)
    name = method.value if isinstance(method, AggregationMethod) else method
    rule = RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise UsageError(f"unknown aggregation method {name!r}; known are {', '.join(sorted(RULES))}")
    return rule


def configured_rule(layer1: Layer1Config) -> Rule:
    """The rule of a config, with its settings.

    Raises:
        UsageError: For one from outside that cannot be loaded.
    """
    if isinstance(layer1.aggregation_method, RulePath):
        return load_rule(layer1.aggregation_method, layer1.rule_args, layer1.rule_timeout_seconds)
    if layer1.aggregation_method is AggregationMethod.CENTERED_CLIPPING:
        return CenteredClipping(radius=layer1.clipping_radius or layer1.clip_norm)
    return get_rule(layer1.aggregation_method)


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


def least_rows(method: AnyRule, num_byzantine: int) -> int:
    """Rows without which the method refuses to tolerate `num_byzantine` Byzantine ones.

    >>> least_rows("bulyan", 2)
    11
    """
    return get_rule(method).least_rows(as_integer(num_byzantine, "num_byzantine", 0))
