"""One Layer 2 release: who weighs how much, what one client can change, the ring and the noise on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scarcity_ray.config import CentralNoise


@dataclass(frozen=True)
class BasketFacts:
    """What is public about one basket's part in a release.

    Attributes:
        basket_id: The basket.
        domain_id: Its domain, which the operator's trust is given for.
        num_members: Registered members when the session froze.
        num_rows: Clients behind its fresh aggregate; 0 for a basket that joins with the zero vector.
        num_byzantine: The f that its rule ran with.
        max_row_share: Largest share of one row in a weighted mean; None for every other rule.
        clip_norm: Clip norm of its rows; None: Layer 1's in this release.
    """

    basket_id: str
    domain_id: str
    num_members: int
    num_rows: int = 0
    num_byzantine: int = 0
    max_row_share: float | None = None
    clip_norm: float | None = None

    @property
    def fresh(self) -> bool:
        """Whether the basket has an aggregate that no release has used."""
        return self.num_rows > 0


@dataclass(frozen=True)
class ReleasePlan:
    """Numbers of one Layer 2 release, all from public facts; every party of a session is given the same.

    Attributes:
        weights: Basket id to weight: 0 without a fresh aggregate, the others sum to 1.
        sensitivities: Basket id to the L2 bound on its vector's change when one client's values change.
        ring_bits: 32 or 64.
        scale: Grid steps to a unit.
        length: Coordinates that travel: the update's, one for each meta-parameter, and with adaptive clipping
            one for the share of norms below the clip norm.
        mu: What the release is charged, all coordinates together: grid_sensitivity over grid_sigma; in zCDP
            sqrt(2 rho).
        clip_norm: Layer 1's clip norm in this release.
        bit_radius: What the share's coordinate moves by when all norms pass the clip norm; 0 without it.
        noise: Its kind.
    """

    weights: dict[str, float]
    sensitivities: dict[str, float]
    ring_bits: int
    scale: float
    length: int
    mu: float
    clip_norm: float
    bit_radius: float = 0.0
    noise: CentralNoise = CentralNoise.GAUSSIAN

    def grid_sensitivity(self, survivors: Sequence[str]) -> float:
        """L2 bound, in grid steps, on the change of the survivors' integer sum.

        A basket's vector changes by at most w Delta; rounding to the grid moves the difference of two values
        by less than one step a coordinate, so by less than sqrt(length) in L2.
        """
        bound = max(self.weights[b] * self.sensitivities[b] for b in survivors)
        return self.scale * bound + math.sqrt(self.length)

    def grid_sigma(self, survivors: Sequence[str]) -> float:
        """Scale of the noise on the integer sum, in grid steps; rounded up, so never below what mu claims."""
        sigma = self.grid_sensitivity(survivors) / self.mu
        return math.nextafter(sigma, math.inf) if sigma > 0.0 else 0.0

    def surviving_weight(self, survivors: Sequence[str]) -> float:
        """What the sum is divided by."""
        return math.fsum(self.weights[b] for b in survivors)
