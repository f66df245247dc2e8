"""Noise in shares: what the sum of several discrete Gaussians claims, and how large each must be.

Parties who trust nobody to add the noise add a share each, h of them honest, each share the discrete
Gaussian N_Z(0, sigma^2) in every coordinate. Their sum is no discrete Gaussian, but close to one (Kairouz,
Liu, Steinke 2021, "The Distributed Discrete Gaussian Mechanism", proposition 14; its last bound of three is
used here). With a = Delta / (sqrt(h) sigma) for an L2 sensitivity Delta of integer vectors of length d, and
sigma >= 1/2, the sum is rho-zCDP with

    rho = (a + tau sqrt(d))^2 / 2,    tau = 10 sum_{k=1}^{h-1} exp(-2 pi^2 sigma^2 k / (k + 1)).

*Proof.* (1) Completing the square, P[X + Y = z] for X ~ N_Z(0, s^2), Y ~ N_Z(0, t^2) is N_Z(0, s^2 + t^2) at
z times a factor proportional to sum_x exp(-(x - c)^2 / (2 r^2)), 1/r^2 = 1/s^2 + 1/t^2, c depending on z. By
Poisson's summation that is proportional to 1 + 2 sum_{j>=1} q^(j^2) cos(2 pi j c), q = exp(-2 pi^2 r^2); so
the factor, whose mean is 1, has a logarithm within 2 artanh(2 q + 2 q^4 + ...) <= 5 q if r^2 >= 1/8.
(2) Adding the shares one by one, the sum of h is within exp(+-tau/2) of N_Z(0, h sigma^2) at every point,
since adding independent noise keeps such bounds. (3) Two laws within exp(+-e) of each other at every point
are e^2/2-zCDP apart (Bun, Steinke 2016, proposition 3.3), d independent coordinates of them d e^2/2; and
N_Z(0, h sigma^2) and its shift by Delta are a^2/2 apart (Canonne, Kamath, Steinke 2020, theorem 14). (4) The
root of 2 rho adds up along a chain of laws (Bun, Steinke 2016, lemma 5.2 with k = 1 + a/b): from the sum to
the discrete Gaussian, to its shift, to the shifted sum, it is tau sqrt(d)/2 + a + tau sqrt(d)/2.

The bound that has tau d under the root (their first) is the smaller only where a > sqrt(d), and is not used.
For one share tau = 0 and this is the discrete Gaussian's own rho. From sigma = 9 on tau is below 1e-340: on a
grid as fine as a ring's, noise in shares costs no more than that of the parties who are not among the h.

*Why not Skellam* (Agarwal, Kairouz, Liu 2021), which is closed under sums: its Renyi divergence is not linear
in the order, so it fits a ledger in zCDP only with slack, and at these scales there is nothing to gain.

What more than h shares add is post-processing. Shares that are known (of parties who collude with the reader)
must not be counted in h.

*Which h, when the reader chooses who takes part.* Let R parties be registered, c of them in league with the
coordinator, who invites n, of whom z have weight 0, makes deviating moves, and knows the c's shares. Each
honest party of weight holds its share back until it has signed one set S of survivors with |S| >= t(n) and at
least L = max(c + 2, min_baskets, t - z) of weight in it, and gives its unmask shares to S alone.

*Lemma.* If 2t > n + c, everything that the coordinator learns of the honest inputs in an attempt is a
function of the sum over the honest parties of one S, and S holds h = L - c honest parties of weight or more.
*Proof.* A secret is rebuilt from t shares. Of a set's t signers t - c at least are honest, and two sets would
need 2 (t - c) <= n - c of these, so 2t <= n + c: at most one S is unmasked. An honest party in S gives one
share of a party's two secrets, so of neither a member nor a dropped party are both rebuilt (2t > n + c
again), and each honest member's input stays under its pair masks with all other honest members, which cancel
in their sum alone. Of S's L of weight c at most are corrupt, whoever was invited: c counts all that are
registered, and R and the keys come from the roster, not from the coordinator. []

The honest inputs of S carry h shares or more, independent of each other and of all that was seen before
(shares are drawn anew in each attempt, and no second attempt is unmasked), so the theorem above applies to h,
and what the corrupt add or take away is post-processing. On the sparse graph the lemma's role is played by
the bound of `secagg.sparse`, in which the c + z are the marked parties: h is the lesser of the two. R, not n,
is what c is taken of: with c = ceil(fraction n) a coordinator that invites its c friends and one victim would
leave h - 1 shares too few.

Shares of parties of weight 0 are honest noise too, where the party is honest; they are left uncounted, for
weight is what a party's own signed facts say, and who is not in the sum with an input protects nobody's.

Guarantees:
    the_exact_divergence_is_below_the_claim: Of sums of discrete Gaussians, convolved to 60 digits, where tau
        matters and where it does not.
    noise_in_shares_is_never_below_central_noise: And equals it for one share.
    claim_falls_with_sigma_and_rises_with_sensitivity_and_length
    the_scale_keeps_the_claim: `share_sigma` is such that `rho_of_shares` is at most the rho asked for, and
        within a relative 1e-9 of the least that is.
"""

from __future__ import annotations

import math

from scarcity_ray.errors import UsageError

LEAST_SIGMA = 0.5
"""Scale of a share from which the bound on several shares holds."""
_MARGIN = 1e-12
"""Relative: what rounding in these formulas can come to, several times over."""


def departure(sigma: float, num_shares: int) -> float:
    """How far a sum of shares is from a discrete Gaussian: tau, the sum of both log-ratios' bounds.

    Args:
        sigma: Scale of one share, at least 1/2 for more than one.
        num_shares: Of them.
    """
    _check(num_shares)
    if num_shares == 1:
        return 0.0
    if not sigma >= LEAST_SIGMA:
        raise UsageError(f"sigma: {sigma!r} is not accepted; at least {LEAST_SIGMA} for several shares")
    # From the smallest term, k = num_shares - 1, on.
    exponent = -2.0 * math.pi**2 * sigma * sigma
    return 10.0 * math.fsum(math.exp(exponent * k / (k + 1)) for k in range(num_shares - 1, 0, -1))


def rho_of_shares(sigma: float, num_shares: int, sensitivity: float, dimension: int) -> float:
    """The zCDP parameter of a sum of integers with `num_shares` honest shares of noise in each coordinate.

    Args:
        sigma: Scale of one share, in integer steps; above 0, and at least 1/2 for more than one share.
        num_shares: Honest shares in the sum, at least 1.
        sensitivity: L2 bound on what one client changes in the sum, in integer steps.
        dimension: Coordinates.

    Returns:
        rho, never below the claim's formula.

    >>> round(rho_of_shares(10.0, 4, 2.0, 1000), 9)
    0.005
    """
    if not (sigma > 0.0 and sensitivity >= 0.0 and dimension >= 1):
        raise UsageError("sigma must be above 0, sensitivity at least 0 and dimension at least 1")
    root = sensitivity / (math.sqrt(num_shares) * sigma) if num_shares > 0 else math.inf
    root += departure(sigma, num_shares) * math.sqrt(dimension)
    return 0.5 * root * root * (1.0 + _MARGIN)


def share_sigma(rho: float, num_shares: int, sensitivity: float, dimension: int) -> float:
    """The scale that each party's share must have, so that `num_shares` honest ones keep `rho`.

    Args:
        rho: The zCDP parameter wanted, above 0; ``inf`` wants none, and the scale is 0.
        num_shares: Honest shares that are certain to be in the sum, at least 1.
        sensitivity: L2 bound on what one client changes in the sum, in integer steps, above 0.
        dimension: Coordinates.

    Returns:
        sigma in integer steps, on the safe side of the root.

    >>> sigma = share_sigma(0.005, 4, 2.0, 1000)
    >>> round(sigma, 6), rho_of_shares(sigma, 4, 2.0, 1000) <= 0.005
    (10.0, True)
    """
    _check(num_shares)
    if not (rho > 0.0 and sensitivity > 0.0 and dimension >= 1):
        raise UsageError("rho and sensitivity must be above 0 and dimension at least 1")
    if rho == math.inf:
        return 0.0

    def keeps(sigma: float) -> bool:
        return rho_of_shares(sigma, num_shares, sensitivity, dimension) <= rho

    low = sensitivity / math.sqrt(num_shares * 2.0 * rho)
    if num_shares > 1:
        low = max(low, LEAST_SIGMA)
    high = low * (1.0 + 2.0 * _MARGIN)
    while not keeps(high):
        low, high = high, 2.0 * high
    while high - low > 1e-10 * high and not keeps(low):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def _check(num_shares: int) -> None:
    if num_shares < 1:
        raise UsageError(f"num_shares: {num_shares!r} is not accepted; at least 1")


__all__ = ["LEAST_SIGMA", "departure", "rho_of_shares", "share_sigma"]
