"""Cost and noise of one client's gossip, and the weight of received states."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from scarcity_ray.config import Layer1Config


@dataclass(frozen=True)
class GossipPlan:
    """Cost and noise of one client's gossip, in a round.

    Attributes:
        mu_drift: Gaussian-DP parameter of the materiality test; rho = mu^2 / 2 in zCDP.
        mu_vector: Likewise of one noised vector.
        sigma_drift: Standard deviation added to the drift (its sensitivity is 2 clip_norm, its range).
        sigma_vector: Standard deviation added to each coordinate (replace-one sensitivity 2 clip_norm).
        clip_norm: Norm to which a state is clipped before noise.
        layer1: What becomes of the states afterwards, and how many of them may lie.
        own_states: Whether clients train on from their own states, so that each of these is to come close to
            the mean (there is no Layer 2), not Layer 1's result alone.
    """

    mu_drift: float
    mu_vector: float
    sigma_drift: float
    sigma_vector: float
    clip_norm: float
    dimension: int
    layer1: Layer1Config = field(default_factory=lambda: Layer1Config(byzantine_fraction=0.0))
    own_states: bool = False

    @property
    def receive_norm(self) -> float:
        """Norm to which a received vector is clipped.

        An honest one exceeds it with probability below 0.2 %: a standard Gaussian vector's norm is
        1-Lipschitz with mean at most sqrt(d), so its tail past sqrt(d) + 3 is below that of a Gaussian.
        """
        return self.clip_norm + self.sigma_vector * (math.sqrt(self.dimension) + 3.0)

    @property
    def noise_energy(self) -> float:
        """Expected squared norm of a released vector's noise, sigma^2 d."""
        return self.sigma_vector**2 * self.dimension

    def mixing_weight(
        self,
        num_received: float,
        *,
        spread: float | None = None,
        excess: float = 1.0,
        num_rows: float = math.inf,
        bias: float = 0.0,
    ) -> float:
        """Weight towards the mean of K noised states that leaves Layer 1's result the least expected error.

        States x_i = m + deviations of squared norm S, exchanged evenly (everybody gets and gives K), become
        (1 - w) x_i + w (mean of K received), each with noise of squared norm N = sigma^2 d. Their spread is
        then S ((1-w)^2 + w^2/K) + w^2 N (1/K - 1/n), and their mean is off by w^2 (N/n + B), B for what liars
        among the received can add. A rule whose result lies kappa times the spread from the mean (squared) is
        best off with

            w = S / (S (1 + 1/K) + N (1/K + (1/kappa - 1)/n) + B/kappa),

        and any w up to twice that is no worse than w = 0. Colluders may point their shift along the error
        that is there anyway, though: sqrt(kappa S ((1-w)^2 + w^2/K)) + w sqrt(B) is no more than without
        gossip for w up to 2 (1 - beta) / (1 + 1/K - beta^2), beta^2 = B / (kappa S); half of that is the
        most that w is, and from beta = 1 on it is 0. With kappa = 1 (a rule that picks one row) and
        B = 0 it is the inverse-variance weight of Graybill and Deal (1959), S / (S + (S + N)/K); a plain
        mean, kappa = 0, has nothing to gain from noise or liars, and w = 0.

        Args:
            num_received: K.
            spread: S; None: clip_norm^2, the most that clipped states can have.
            excess: kappa; see `gossip.mixing.excess_error`.
            num_rows: n.
            bias: B; see `gossip.mixing`.

        >>> GossipPlan(0, 0, 0.0, 0.0, 1.0, 4).mixing_weight(3)
        0.75
        """
        if num_received < 1:
            return 0.0
        share, noise = 1.0 / num_received, self.noise_energy
        if noise == 0.0 and bias == 0.0:
            return 1.0 / (1.0 + share)
        spread = self.clip_norm**2 if spread is None else spread
        if spread <= 0.0 or excess <= 0.0 or bias >= excess * spread:
            return 0.0
        beta = math.sqrt(bias / (excess * spread))
        most = (1.0 - beta) / (1.0 + share - beta**2)
        harm = noise * (share + (1.0 / excess - 1.0) / num_rows) + bias / excess
        return min(most, spread / (spread * (1.0 + share) + harm))

    def num_byzantine(self, num_members: int) -> int:
        """The f for a basket of `num_members` registered clients."""
        return self.layer1.byzantine_among(num_members)
