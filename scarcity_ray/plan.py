"""From a config to every number that follows from it, or a `ConfigError`.

`make_plan` derives what a federation fixes once: noise scales, budget caps, least rows. What depends on
who is there (basket weights, sensitivity, ring) follows per release from `FederationPlan.release`. Nothing
else in the package re-derives any of these numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.privacy.accounting import mu_of_gaussian

DRIFT_SHARE = 0.1
"""Share of a gossip release's mu squared that the materiality test takes; the vector has the rest."""

FLOAT32_SLACK = 2.0**-21
"""Bound, relative to the clip norm, on how far float32 rounding can add to a sensitivity.

An aggregate is summed in float64, rounded once to float32 and clipped in float32: each step moves the result
by at most 2^-23 of its norm, for either neighbour.
"""

RING_BITS = (32, 64)
MANTISSA_BITS = 22
"""The fixed-point grid has 2^22 steps to a clip norm, what a float32 mantissa resolves."""
NOISE_TAIL = 12.0
"""Standard deviations of noise that the ring must hold: exceeded with probability below 2^-100."""


@dataclass(frozen=True)
class GossipPlan:
    """What one client's gossip costs and how noisy it is.

    Attributes:
        mu_drift: Gaussian-DP parameter of the materiality test.
        mu_vector: Gaussian-DP parameter of one noised vector.
        sigma_drift: Standard deviation added to the drift (its sensitivity is 2 clip_norm, its range).
        sigma_vector: Standard deviation added to each coordinate (replace-one sensitivity 2 clip_norm).
        clip_norm: Norm to which a state is clipped before noise.
        dimension: Length of a state.
    """

    mu_drift: float
    mu_vector: float
    sigma_drift: float
    sigma_vector: float
    clip_norm: float
    dimension: int

    @property
    def receive_norm(self) -> float:
        """Norm to which a received vector is clipped: an honest one exceeds it with probability below 0.2 %."""
        return self.clip_norm + self.sigma_vector * (math.sqrt(self.dimension) + 3.0)

    def mixing_weight(self, num_received: int) -> float:
        """Weight towards the mean of `num_received` noised states that minimises the expected squared error.

        A state's own coordinate and each received one are taken as the common mean plus a deviation of variance
        s^2 = clip_norm^2 / d, the received ones with sigma^2 of noise on top; then w = s^2 / (s^2 + (s^2 +
        sigma^2) / K).

        >>> GossipPlan(0, 0, 0.0, 0.0, 1.0, 4).mixing_weight(3)
        0.75
        """
        if num_received < 1:
            return 0.0
        spread = self.clip_norm**2 / self.dimension
        return spread / (spread + (spread + self.sigma_vector**2) / num_received)


@dataclass(frozen=True)
class BasketFacts:
    """What is public about one basket's part in a release.

    Attributes:
        basket_id: The basket.
        num_members: Registered members when the session froze.
        num_rows: Rows behind its aggregate; 0 for a basket that joins with the zero vector.
        num_byzantine: The f that its rule ran with.
        trust: The operator's factor.
        max_row_share: Largest share of one row in a weighted mean; 0 elsewhere.
    """

    basket_id: str
    num_members: int
    num_rows: int
    num_byzantine: int
    trust: float = 1.0
    max_row_share: float = 0.0


@dataclass(frozen=True)
class ReleasePlan:
    """Numbers of one Layer 2 release, all from public facts.

    Attributes:
        weights: Basket id to weight; they sum to 1 over the baskets with rows.
        ring_bits: 32 or 64.
        scale: Grid steps to a unit.
        vector_length: Coordinates that travel: the update's, then one for each meta-parameter.
    """

    weights: dict[str, float]
    ring_bits: int
    scale: float
    vector_length: int


class FederationPlan:
    """All numbers that follow from a config. Make it with `make_plan`."""

    def __init__(self, config: HierarchicalFederationConfig) -> None:
        self.config = config
        layer2, gossip = config.layer2, config.gossip
        self.mu_release = mu_of_gaussian(layer2.central_dp_epsilon, layer2.central_dp_delta)
        self.mu_total = mu_of_gaussian(config.total_epsilon, config.total_delta)
        mu_gossip = mu_of_gaussian(gossip.local_dp_epsilon, gossip.local_dp_delta)
        mu_drift = mu_gossip * math.sqrt(DRIFT_SHARE)
        mu_vector = mu_gossip * math.sqrt(1.0 - DRIFT_SHARE)
        sensitivity = 2.0 * gossip.clip_norm * (1.0 + FLOAT32_SLACK)
        self.gossip = GossipPlan(
            mu_drift=mu_drift,
            mu_vector=mu_vector,
            sigma_drift=sensitivity / mu_drift,
            sigma_vector=sensitivity / mu_vector,
            clip_norm=gossip.clip_norm,
            dimension=config.vector_dim,
        )
        self.gossip_mu_cap = self.mu_total * math.sqrt(config.gossip_budget_share)
        self.central_mu_cap = self.mu_total * math.sqrt(1.0 - config.gossip_budget_share)
        self.num_meta = len(config.meta_parameters)
        self.vector_length = config.vector_dim + self.num_meta
