"""What a federation would cost and whether it would learn, before any budget is spent.

`FederationPlan` has the numbers that a run uses; a `Forecast` compares them for baskets of given sizes whose
members all take part (`feasibility`). `cost_model` predicts the seconds of a round, `scale` those of a round
on a cluster, `remedies` searches for changes that bring noise below the signal, `shortage` for those that let
a small basket or release go on, and `warnings` says what is amiss.
"""

from scarcity_ray.forecast.cost_model import MEASURED, Rates, RoundSeconds, probe, round_seconds, scaled
from scarcity_ray.forecast.feasibility import Forecast, solve_for_rounds
from scarcity_ray.forecast.memory import beyond_memory, memory_of_roles
from scarcity_ray.forecast.remedies import HUGE_EPSILON, remedies
from scarcity_ray.forecast.scale import CallRates, Scale, scale_of
from scarcity_ray.forecast.warnings import (
    Told,
    Warned,
    moot_warnings,
    warning_of_clipping,
    warning_of_failures,
    warning_of_few_persons,
    warning_of_weights,
    warnings_at_release,
    warnings_at_start,
    warnings_of,
    weak_settings,
)

__all__ = [
    "HUGE_EPSILON",
    "MEASURED",
    "CallRates",
    "Forecast",
    "Rates",
    "RoundSeconds",
    "Scale",
    "Told",
    "Warned",
    "beyond_memory",
    "memory_of_roles",
    "moot_warnings",
    "probe",
    "remedies",
    "round_seconds",
    "scale_of",
    "scaled",
    "solve_for_rounds",
    "warning_of_clipping",
    "warning_of_failures",
    "warning_of_few_persons",
    "warning_of_weights",
    "warnings_at_release",
    "warnings_at_start",
    "warnings_of",
    "weak_settings",
]
