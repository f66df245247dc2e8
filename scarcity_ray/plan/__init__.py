"""From a config to every number that follows from it, or a `ConfigError`.

`make_plan` derives what is fixed for a federation: noise scales, budget caps, least rows. What depends on who
takes part in a release (basket weights, sensitivity, ring) is derived by `FederationPlan.release`. No other
module computes any of these numbers.
"""

from scarcity_ray.plan.checks import check_renewal, make_plan
from scarcity_ray.plan.claims import (
    AGAINST,
    AGAINST_OPERATOR,
    PersonClaim,
    person_claim,
    persons_of_a_client,
)
from scarcity_ray.plan.federation import DRIFT_SHARE, FLOAT32_SLACK, GRID_STEPS, NOISE_TAIL, FederationPlan
from scarcity_ray.plan.gossip import GossipPlan
from scarcity_ray.plan.release import BasketFacts, ReleasePlan, persons_of
from scarcity_ray.plan.session import (
    SessionShape,
    corrupt_of,
    fewest_parties,
    hides_from,
    honest_shares,
    masking_warning,
    session_shape,
)

__all__ = [
    "AGAINST",
    "AGAINST_OPERATOR",
    "DRIFT_SHARE",
    "FLOAT32_SLACK",
    "GRID_STEPS",
    "NOISE_TAIL",
    "BasketFacts",
    "FederationPlan",
    "GossipPlan",
    "PersonClaim",
    "ReleasePlan",
    "SessionShape",
    "check_renewal",
    "corrupt_of",
    "fewest_parties",
    "hides_from",
    "honest_shares",
    "make_plan",
    "masking_warning",
    "person_claim",
    "persons_of",
    "persons_of_a_client",
    "session_shape",
]
