"""Settings with which the promises are weaker than a newcomer may take them for."""

from __future__ import annotations

import math

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.forecast.remedies import HUGE_EPSILON
from scarcity_ray.forecast.warned import Warned


def weak_settings(config: HierarchicalFederationConfig, num_clients: int | None = None) -> tuple[Warned, ...]:
    """What a config gives up, in plain words.

    Args:
        config: The federation.
        num_clients: Registered clients, which delta is measured against; None: not known yet.

    >>> [warning.code for warning in weak_settings(HierarchicalFederationConfig(), 20_000)]
    ['basket_models_exposed', 'delta_not_small']
    """
    found = []
    if math.isinf(config.total_epsilon):
        found.append(
            _weak(
                "no_privacy_claim",
                "total_epsilon is infinite: nothing is promised to anybody, and whoever sees the models may "
                "learn all that a client sent; set a finite total_epsilon for data that matter",
            )
        )
    elif config.total_epsilon > HUGE_EPSILON:
        found.append(
            _weak(
                "huge_epsilon",
                f"total_epsilon is {config.total_epsilon:g}: one client's values may change the odds of what "
                f"is seen by a factor of e^{config.total_epsilon:g}, which promises next to nothing; set at "
                "most 10",
            )
        )
    if config.layer2.enabled and not config.layer2.use_secure_aggregation:
        found.append(
            _weak(
                "secure_aggregation_off",
                "layer2.use_secure_aggregation is false: the global aggregator sees each basket's aggregate "
                "without noise; set it to true unless its operator may see them",
            )
        )
    if config.expose_basket_models:
        found.append(
            _weak(
                "basket_models_exposed",
                "basket models, outliers and the share of clipped updates are shown to every driver, and lie "
                "outside the privacy claim: set expose_basket_models: false for data that matter",
            )
        )
    if num_clients is not None and config.total_delta >= 1.0 / num_clients:
        found.append(
            _weak(
                "delta_not_small",
                f"total_delta is {config.total_delta:g}, and 1/n with {num_clients} clients is "
                f"{1 / num_clients:.3g}: such a delta allows that some client's update is shown to all; set "
                "it well below 1/n",
            )
        )
    return tuple(found)


def _weak(code: str, message: str) -> Warned:
    return Warned(code, message, loud=False, about="privacy")


__all__ = ["weak_settings"]
