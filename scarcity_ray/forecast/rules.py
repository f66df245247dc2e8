"""What each Layer 1 rule would cost in noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, Layer1Config
from scarcity_ray.plan import BasketFacts, FederationPlan, ReleasePlan


@dataclass(frozen=True)
class RuleCost:
    """What one Layer 1 rule would cost in noise.

    Attributes:
        rule: The rule; weighted means with equal weights.
        least_rows: Rows that it needs in the smallest basket.
        fits: Whether every basket has the rows that it needs.
        sensitivity: How far one client's row moves a basket's vector, the most over the baskets; None where
            the rule does not fit.
        noise_norm: Norm of a release's noise; None where the rule does not fit.
        signal_to_noise: The greatest norm of a release without noise over that; None where it does not fit.
    """

    rule: AggregationMethod
    least_rows: int
    fits: bool
    sensitivity: float | None
    noise_norm: float | None
    signal_to_noise: float | None


def signal_bound(config: HierarchicalFederationConfig) -> float:
    """The greatest norm that a release can have without its noise."""
    layer1 = config.layer1
    return min(layer1.clip_norm, layer1.clipping_radius or math.inf, config.layer2.clip_norm)


def full_release(
    plan: FederationPlan, sizes: Sequence[int], rows: Sequence[int] | None = None
) -> ReleasePlan:
    """The release of baskets of these sizes, of whose members `rows` (all, by default) sent an update.

    Under the rule ``weighted`` all of them claim equally many examples.
    """
    weighted = plan.config.layer1.aggregation_method is AggregationMethod.WEIGHTED
    return plan.release(
        [
            BasketFacts(
                basket_id=str(place),
                domain_id="",
                num_members=size,
                num_rows=count,
                num_byzantine=plan.num_byzantine(size),
                max_row_share=1.0 / count if weighted else None,
            )
            for place, (size, count) in enumerate(zip(sizes, rows or sizes, strict=True))
        ]
    )


def noise_norm(plan: FederationPlan, sizes: Sequence[int], rows: Sequence[int] | None = None) -> float:
    """Norm (root mean square) of that release's noise over the model's coordinates."""
    return noise_norm_of(plan, full_release(plan, sizes, rows))


def noise_norm_of(plan: FederationPlan, release: ReleasePlan) -> float:
    """Norm (root mean square) of a release's noise over the model's coordinates."""
    return release.grid_sigma(list(release.weights)) / release.scale * math.sqrt(plan.config.vector_dim)


def with_rule(config: HierarchicalFederationConfig, rule: AggregationMethod) -> HierarchicalFederationConfig:
    """The config with another rule, by itself; the same config for the rule that it has."""
    layer1 = config.layer1
    if rule is layer1.aggregation_method:
        return config
    alone = Layer1Config(
        aggregation_method=rule,
        min_updates=layer1.min_updates,
        clip_norm=layer1.clip_norm,
        byzantine_fraction=layer1.byzantine_fraction,
        num_byzantine=layer1.num_byzantine,
    )
    return replace(config, layer1=alone)


def rule_cost(
    config: HierarchicalFederationConfig, rule: AggregationMethod, sizes: Sequence[int]
) -> RuleCost:
    """The cost of a rule by itself, without pre-aggregation; of the configured one as it is configured."""
    config = with_rule(config, rule)
    plan = FederationPlan(config)
    least = plan.least_rows(min(sizes))
    if any(size < plan.least_rows(size) for size in sizes):
        return RuleCost(rule, least, False, None, None, None)
    sensitivity = max(full_release(plan, sizes).sensitivities.values())
    noise = noise_norm(plan, sizes)
    ratio = signal_bound(config) / noise if noise else math.inf
    return RuleCost(rule, least, True, sensitivity, noise, ratio)


__all__ = [
    "RuleCost",
    "full_release",
    "noise_norm",
    "noise_norm_of",
    "rule_cost",
    "signal_bound",
    "with_rule",
]
