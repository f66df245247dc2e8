"""What a federation would cost and whether it would learn, said before a byte or an epsilon is spent.

`FederationPlan` has the numbers that a run uses; a `Forecast` sets them against each other for baskets of
given sizes whose members all take part: noise against the most that a release can say, every Layer 1 rule
against the configured one, the integer sum against the ring, and bytes. `warnings_of` says what of it is
amiss, `solve_for_rounds` what epsilon a release may have. No seconds: they depend on the machines, and
nothing in a config measures those.
"""

from scarcity_ray.forecast.prospects import Forecast, Traffic
from scarcity_ray.forecast.rules import RuleCost
from scarcity_ray.forecast.solving import solve_for_rounds
from scarcity_ray.forecast.warned import Warned, runs_of, warnings_of

__all__ = ["Forecast", "RuleCost", "Traffic", "Warned", "runs_of", "solve_for_rounds", "warnings_of"]
