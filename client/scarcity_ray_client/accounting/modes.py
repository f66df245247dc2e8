"""The two accountings: Gaussian DP where all noise is Gaussian, zero-concentrated DP where some is not.

Every charge is one number ``mu``, and what is added up is mu^2. For Gaussian noise mu is Delta / sigma in
both modes; for other noise, allowed in `ZCDP` only, it is sqrt(2 rho), so that 2 rho is what is added up:

* `GAUSSIAN_DP`: mu is that of Gaussian DP, and the sum composes exactly.
* `ZCDP`: mu^2 is 2 rho of rho-zCDP, exact for the Gaussian, continuous or discrete, and an upper bound for
  any other noise whose rho is one.

So sums, caps, filters and shares are the same numbers in either mode. "Allowed iff the sum stays under a cap
fixed before" is a valid filter when each charge is chosen in the light of all earlier releases: Smith and
Thakurta (2022, theorem 3) for Gaussian DP, Feldman and Zrnic (2021, theorem 4.3) and Whitehouse et al. (2023)
for zCDP. What differs is what a claim (epsilon, delta) buys and what a sum amounts to: the methods here.

Guarantees:
    both_modes_plan_below_and_report_above: The sides of `gaussian_dp` and of `zcdp`.
    concentrated_claims_buy_less_than_gaussian_ones: At every (epsilon, delta).
    no_test_of_membership_is_better_than_claimed: Against exact curves, of continuous and discrete Gaussians.
"""

from __future__ import annotations

import math
from enum import StrEnum
from statistics import NormalDist

from scarcity_ray_client.accounting.gaussian_dp import delta_of_mu, epsilon_of_mu, mu_of_gaussian, mu_of_pure
from scarcity_ray_client.accounting.zcdp import delta_of_rho, epsilon_of_rho, rho_of_claim, rho_of_pure

ROUNDING = 1.0 + 1e-12
"""A sum of mu^2 may pass its cap by this factor, which the margin in `Accounting.mu_of_claim` covers."""
_NORMAL = NormalDist()
_ROUNDED_UP = 1.0 + 1e-9
"""By more than the normal distribution and its inverse are off in the standard library."""
_GRID = 64


class Accounting(StrEnum):
    """The meaning of a ledger's sum of mu^2, fixed when the ledger is made."""

    GAUSSIAN_DP = "gaussian_dp"
    ZCDP = "zcdp"

    def mu_of_claim(self, epsilon: float, delta: float) -> float:
        """The largest mu that keeps (epsilon, delta): of a release, or of a whole budget.

        An epsilon of ``inf`` claims nothing and gives ``inf``.

        >>> round(Accounting.ZCDP.mu_of_claim(1.0, 1e-5), 4)
        0.2472
        """
        if self is Accounting.GAUSSIAN_DP:
            return mu_of_gaussian(epsilon, delta)
        return math.sqrt(2.0 * rho_of_claim(epsilon, delta))

    def epsilon_of(self, mu: float, delta: float) -> float:
        """The epsilon at `delta` of what adds up to mu^2; never below the truth."""
        if self is Accounting.GAUSSIAN_DP:
            return epsilon_of_mu(mu, delta)
        return epsilon_of_rho(rho_of_mu(mu), delta)

    def delta_of(self, mu: float, epsilon: float) -> float:
        """The delta at `epsilon` of what adds up to mu^2; never below the truth."""
        if self is Accounting.GAUSSIAN_DP:
            return delta_of_mu(mu, epsilon)
        return delta_of_rho(rho_of_mu(mu), epsilon)

    def advantage_of(self, mu: float) -> float:
        """The most by which a test's true positives exceed its false ones, after what adds up to mu^2.

        It is the total variation distance. Under Gaussian DP that is 2 Phi(mu / 2) - 1 (Dong, Roth, Su 2022,
        corollary 2.13 at epsilon 0). Under rho-zCDP the Kullback-Leibler divergence is at most rho, so it is
        at most sqrt(rho / 2) (Pinsker) and sqrt(1 - exp(-rho)) (Bretagnolle, Huber 1979).

        >>> round(Accounting.GAUSSIAN_DP.advantage_of(0.648), 3)
        0.254
        """
        if self is Accounting.GAUSSIAN_DP:
            exact = math.erf(mu * math.sqrt(0.125))
        else:
            rho = rho_of_mu(mu)
            exact = min(math.sqrt(0.5 * rho), math.sqrt(-math.expm1(-rho)))
        return min(1.0, exact * _ROUNDED_UP)

    def true_positives_of(self, mu: float, false_positives: float) -> float:
        """The greatest true positive rate of a test with this false positive rate, likewise.

        Under Gaussian DP that is Phi(mu + Phi^-1(a)) for the rate a (Dong, Roth, Su 2022, definition 2.6).
        Under zCDP it is at most a plus the total variation distance, and exp(epsilon) a + delta(epsilon) for
        every epsilon; the least over a grid of them is taken.

        Args:
            false_positives: In (0, 1).

        >>> round(Accounting.GAUSSIAN_DP.true_positives_of(0.648, 0.01), 4)
        0.0466
        """
        if self is Accounting.GAUSSIAN_DP:
            return min(1.0, _NORMAL.cdf(mu + _NORMAL.inv_cdf(false_positives)) * _ROUNDED_UP)
        most = -math.log(false_positives)
        tried = (most * step / _GRID for step in range(_GRID))
        by_claims = min(math.exp(e) * false_positives + self.delta_of(mu, e) for e in tried)
        return min(1.0, false_positives + self.advantage_of(mu), by_claims * _ROUNDED_UP)

    def in_words(self, mu: float) -> str:
        """A charge as mu or as rho, for messages.

        >>> Accounting.GAUSSIAN_DP.in_words(0.3), Accounting.ZCDP.in_words(0.3)
        ('mu 0.3', 'rho 0.045')
        """
        if self is Accounting.GAUSSIAN_DP:
            return f"mu {mu:.6g}"
        return f"rho {rho_of_mu(mu):.6g}"

    def mu_of_pure(self, epsilon: float) -> float:
        """The mu of a release of which only epsilon-DP is known."""
        if self is Accounting.GAUSSIAN_DP:
            return mu_of_pure(epsilon)
        return mu_of_rho(rho_of_pure(epsilon))


def rho_of_mu(mu: float) -> float:
    """The rho-zCDP of a charge of `mu`: mu^2 / 2, for Gaussian noise in either mode."""
    return 0.5 * mu * mu


def mu_of_rho(rho: float) -> float:
    """The mu that a rho-zCDP release is charged: sqrt(2 rho), rounded up.

    >>> mu_of_rho(0.5) >= 1.0
    True
    """
    return math.sqrt(2.0 * rho) * (1.0 + 2.0**-51)
