"""What a federation would cost and whether it would learn, said before a byte or an epsilon is spent.

`FederationPlan` has the numbers that a run uses; a `Forecast` sets them against each other for baskets of
given sizes whose members all take part: noise against the most that a release can say, every Layer 1 rule
against the configured one, the integer sum against the ring, and bytes. `round_seconds` says how long a round
takes on one core, by rates that were measured on one machine (`rates.MEASURED`) or are probed on this one.
`warnings_of` says what of it is amiss and `remedies` what would mend it, `weak_settings` what a config gives
up, `Told` tells a driver each of these once, and `solve_for_rounds` says what epsilon a release may have.
"""

from scarcity_ray.forecast.prospects import Forecast, Traffic
from scarcity_ray.forecast.rates import MEASURED, Rates, probe, scaled
from scarcity_ray.forecast.remedies import HUGE_EPSILON, Remedy, remedies
from scarcity_ray.forecast.rules import RuleCost
from scarcity_ray.forecast.seconds import RoundSeconds, round_seconds
from scarcity_ray.forecast.solving import solve_for_rounds
from scarcity_ray.forecast.telling import (
    Told,
    moot_warnings,
    warning_of_clipping,
    warning_of_weights,
    warnings_at_release,
    warnings_at_start,
)
from scarcity_ray.forecast.warned import Warned, runs_of, warnings_of
from scarcity_ray.forecast.weak import weak_settings

__all__ = [
    "HUGE_EPSILON",
    "MEASURED",
    "Forecast",
    "Rates",
    "Remedy",
    "RoundSeconds",
    "RuleCost",
    "Told",
    "Traffic",
    "Warned",
    "moot_warnings",
    "probe",
    "remedies",
    "round_seconds",
    "runs_of",
    "scaled",
    "solve_for_rounds",
    "warning_of_clipping",
    "warning_of_weights",
    "warnings_at_release",
    "warnings_at_start",
    "warnings_of",
    "weak_settings",
]
