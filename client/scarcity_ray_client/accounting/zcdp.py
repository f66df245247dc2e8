"""Zero-concentrated differential privacy in numbers: rho, epsilon and delta, and how to go between them.

A mechanism is rho-zCDP if its Renyi divergence of every order alpha > 1, between neighbours, is at most
rho alpha (Bun, Steinke 2016, definition 1.1); rho adds up under composition (their lemma 1.7). The Gaussian
mechanism has rho = Delta^2 / (2 sigma^2) (proposition 1.6), the discrete Gaussian the same (Canonne, Kamath,
Steinke 2020, theorem 14), and so half of what Gaussian DP calls mu^2. It covers every noise whose Renyi
divergence is known, where Gaussian DP covers Gaussian noise alone, and pays for it: at the same
(epsilon, delta) the noise is some per cent larger.

A rho-zCDP mechanism is (epsilon, delta)-DP with (Canonne et al. 2020, corollary 13), u = alpha - 1 > 0,

    log delta = u ((1 + u) rho - epsilon) - u log(1 + 1/u) - log(1 + u),

for every u, so for the one that gives the least delta; solved for epsilon and for rho likewise:

    epsilon = (1 + u) rho - log(1 + 1/u) + (log(1/delta) - log(1 + u)) / u,
    rho     = (epsilon + log(1 + 1/u) - (log(1/delta) - log(1 + u)) / u) / (1 + u).

Since every u is valid, the error of the u that was found cannot make a claim too good; only the rounding of
the formula could, and is added. "The bound" below is this one at its best u; what a mechanism truly gives is
never worse.

*Noise in shares*, or distributed noise: what a sum of several discrete Gaussians claims, and how large each
must be. Parties who trust nobody to add the noise add a share each, h of them honest, each share the discrete
Gaussian N_Z(0, sigma^2) in every coordinate. Their sum is no discrete Gaussian, but close to one (Kairouz,
Liu, Steinke 2021, "The Distributed Discrete Gaussian Mechanism", proposition 14; its last bound of three is
used here). With a = Delta / (sqrt(h) sigma) for an L2 sensitivity Delta of integer vectors of length d, and
sigma >= 1/2, the sum is rho-zCDP with

    rho = (a + tau sqrt(d))^2 / 2,    tau = 10 sum_{k=1}^{h-1} exp(-2 pi^2 sigma^2 k / (k + 1)).

What more than h shares add is post-processing; shares that are known (of parties who collude with the
reader) must not be counted in h. For one share tau = 0 and this is the discrete Gaussian's own rho; from
sigma = 9 on tau is below 1e-340. ``docs/distributed_noise.md`` has the proof, and which h is certain when the
reader chooses who takes part.

Guarantees:
    planned_rho_is_never_above_the_bound: `rho_of_claim` lies below it by a relative 4e-12 to 6e-12 (for delta
        and epsilon of at least 1e-100), so a sum of rho that passes it by 1e-12 still keeps (epsilon, delta).
    concentrated_epsilon_is_never_below_the_bound: `epsilon_of_rho` lies above, by at most
        1e-12 (epsilon + 1 + rho + sqrt(rho log(1/delta))).
    concentrated_delta_is_never_below_the_bound: `delta_of_rho` lies above, by at most a relative 1e-10 for
        rho <= 500 and delta >= 1e-300; what underflows is 0.
    the_exact_divergence_is_below_the_claim: Of sums of discrete Gaussians, convolved to 60 digits, where tau
        matters and where it does not.
    noise_in_shares_is_never_below_central_noise: And equals it for one share.
    claim_falls_with_sigma_and_rises_with_sensitivity_and_length
    the_scale_keeps_the_claim: `share_sigma` is such that `rho_of_shares` is at most the rho asked for, and
        within a relative 1e-9 of the least that is.
"""

from __future__ import annotations

import math

from scarcity_ray_client.accounting.gaussian_dp import check_delta, check_epsilon, monotone_root
from scarcity_ray_client.errors import UsageError

_MARGIN = 5e-12
"""Relative distance that a planned rho keeps from the bound."""
_ROUNDING = 2.0**-50
"""Rounding of a sum of terms, relative to the sum of their magnitudes."""
_WIDEST = 500.0
"""Greatest log u that is looked at, far from where floats end."""
LEAST_SIGMA = 0.5
"""Scale of a share from which the bound on several shares holds."""
_SUM_ROUNDING = 1e-12
"""Relative: what rounding can come to in the formulas of noise in shares, several times over."""


def delta_of_rho(rho: float, epsilon: float) -> float:
    """The delta at `epsilon` of a rho-zCDP mechanism.

    Args:
        rho: Total rho, >= 0; ``inf`` is a release without noise.
        epsilon: At least 0, may be ``inf``.

    Returns:
        delta in [0, 1], never below the bound; 0 where that is below all floats.

    >>> round(delta_of_rho(0.5, 1.0), 6)
    0.246846
    """
    check_rho(rho)
    check_epsilon(epsilon)
    if rho == 0.0 or epsilon == math.inf:
        return 0.0
    if rho == math.inf:
        return 1.0

    def step(t: float) -> tuple[float, float]:
        u = math.exp(t)
        return (2.0 * u + 1.0) * rho - epsilon - math.log1p(1.0 / u), 2.0 * u * rho + 1.0 / (1.0 + u)

    low = max(-_WIDEST, min(0.0, epsilon - 3.0 * rho) - 1.0)
    high = min(_WIDEST, max(0.0, math.log(0.5 * (epsilon + 1.0)) - math.log(rho)))
    u = math.exp(monotone_root(step, low, high))
    stretched, entropy = (1.0 + u) * rho, u * math.log1p(1.0 / u) + math.log1p(u)
    value = u * (stretched - epsilon) - entropy
    rounded = math.exp(min(0.0, value + _ROUNDING * (u * (stretched + epsilon) + entropy)))
    return math.nextafter(rounded, 1.0) if rounded else 0.0


def epsilon_of_rho(rho: float, delta: float) -> float:
    """The epsilon at `delta` of a rho-zCDP mechanism.

    Args:
        rho: Total rho, >= 0; ``inf`` is a release without noise.
        delta: In [0, 1].

    Returns:
        The least epsilon >= 0 that the bound gives, never below it; ``inf`` if there is none.

    >>> round(epsilon_of_rho(0.5, 1e-5), 4)
    4.7284
    """
    check_rho(rho)
    check_delta(delta)
    if rho == 0.0 or delta == 1.0:
        return 0.0
    if rho == math.inf or delta == 0.0:
        return math.inf
    goal = -math.log(delta)

    def step(t: float) -> tuple[float, float]:
        u = math.exp(t)
        return rho * u * u + math.log1p(u) - goal, 2.0 * rho * u * u + u / (1.0 + u)

    high = min(_WIDEST, goal, 0.5 * (math.log(goal) - math.log(rho)))
    low = min(math.log(0.5 * goal), 0.5 * (math.log(0.5 * goal) - math.log(rho)), high)
    u = math.exp(monotone_root(step, low, high))
    stretched, lost = (1.0 + u) * rho, math.log1p(1.0 / u)
    value = stretched - lost + (goal - math.log1p(u)) / u
    return max(0.0, value + _ROUNDING * (stretched + lost + (goal + math.log1p(u)) / u))


def rho_of_claim(epsilon: float, delta: float) -> float:
    """The largest rho for which the bound gives (epsilon, delta)-DP.

    Args:
        epsilon: At least 0; ``inf`` claims nothing and gives ``inf``.
        delta: In (0, 1).

    Returns:
        rho, never above the bound.

    >>> round(rho_of_claim(1.0, 1e-5), 6)
    0.030557
    """
    check_epsilon(epsilon)
    check_delta(delta)
    if not 0.0 < delta < 1.0:
        raise UsageError(f"delta: {delta!r} is not accepted; concentrated DP needs 0 < delta < 1")
    if epsilon == math.inf:
        return math.inf
    goal = -math.log(delta)

    def step(t: float) -> tuple[float, float]:
        u = math.exp(t)
        room = (goal - math.log1p(u)) / u
        value = (1.0 / u + 2.0) * room - math.log1p(1.0 / u) - epsilon
        return value, -2.0 * (1.0 / u + 1.0) * room - 1.0 / u

    high = min(_WIDEST, goal + math.log(-math.expm1(-goal)))
    low = min(math.log(0.25 * goal), high)
    if epsilon > 0.0:
        low = min(low, 0.5 * (math.log(0.25 * goal) - math.log(epsilon)))
    u = math.exp(monotone_root(step, high, low))
    best = (epsilon + math.log1p(1.0 / u) - (goal - math.log1p(u)) / u) / (1.0 + u)
    # The weaker epsilon = rho + 2 sqrt(rho log(1/delta)) (Bun, Steinke 2016, proposition 1.3), which holds
    # where floats have no room for u.
    plain = (epsilon / (math.sqrt(goal + epsilon) + math.sqrt(goal))) ** 2
    return max(plain, best) * (1.0 - _MARGIN)


def rho_of_pure(epsilon: float) -> float:
    """A rho that every epsilon-DP mechanism has: epsilon^2 / 2 (Bun, Steinke 2016, proposition 1.4)."""
    check_epsilon(epsilon)
    return 0.5 * epsilon * epsilon


def check_rho(rho: float) -> None:
    """Refuse a negative number or NaN."""
    if not rho >= 0.0:
        raise UsageError(f"rho: {rho!r} is not accepted; at least 0")


def departure(sigma: float, num_shares: int) -> float:
    """How far a sum of shares of scale `sigma` is from a discrete Gaussian: tau, see above."""
    _check_shares(num_shares)
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

    Returns:
        rho, never below the claim's formula.

    >>> round(rho_of_shares(10.0, 4, 2.0, 1000), 9)
    0.005
    """
    if not (sigma > 0.0 and sensitivity >= 0.0 and dimension >= 1):
        raise UsageError("sigma must be above 0, sensitivity at least 0 and dimension at least 1")
    root = sensitivity / (math.sqrt(num_shares) * sigma) if num_shares > 0 else math.inf
    root += departure(sigma, num_shares) * math.sqrt(dimension)
    return 0.5 * root * root * (1.0 + _SUM_ROUNDING)


def share_sigma(rho: float, num_shares: int, sensitivity: float, dimension: int) -> float:
    """The scale that each party's share must have, so that `num_shares` honest ones keep `rho`.

    Args:
        rho: The zCDP parameter wanted, above 0; ``inf`` wants none, and the scale is 0.
        num_shares: Honest shares that are certain to be in the sum, at least 1.
        sensitivity: L2 bound on what one client changes in the sum, in integer steps, above 0.

    Returns:
        sigma in integer steps, on the safe side of the root.

    >>> sigma = share_sigma(0.005, 4, 2.0, 1000)
    >>> round(sigma, 6), rho_of_shares(sigma, 4, 2.0, 1000) <= 0.005
    (10.0, True)
    """
    _check_shares(num_shares)
    if not (rho > 0.0 and sensitivity > 0.0 and dimension >= 1):
        raise UsageError("rho and sensitivity must be above 0 and dimension at least 1")
    if rho == math.inf:
        return 0.0

    def keeps(sigma: float) -> bool:
        return rho_of_shares(sigma, num_shares, sensitivity, dimension) <= rho

    low = sensitivity / math.sqrt(num_shares * 2.0 * rho)
    if num_shares > 1:
        low = max(low, LEAST_SIGMA)
    high = low * (1.0 + 2.0 * _SUM_ROUNDING)
    while not keeps(high):
        low, high = high, 2.0 * high
    while high - low > 1e-10 * high and not keeps(low):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def _check_shares(num_shares: int) -> None:
    if num_shares < 1:
        raise UsageError(f"num_shares: {num_shares!r} is not accepted; at least 1")
