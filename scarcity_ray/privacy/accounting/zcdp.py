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

Guarantees:
    planned_rho_is_never_above_the_bound: `rho_of_claim` lies below it by a relative 4e-12 to 6e-12 (for delta
        and epsilon of at least 1e-100), so a sum of rho that passes it by 1e-12 still keeps (epsilon, delta).
    concentrated_epsilon_is_never_below_the_bound: `epsilon_of_rho` lies above, by at most
        1e-12 (epsilon + 1 + rho + sqrt(rho log(1/delta))).
    concentrated_delta_is_never_below_the_bound: `delta_of_rho` lies above, by at most a relative 1e-10 for
        rho <= 500 and delta >= 1e-300; what underflows is 0.
"""

from __future__ import annotations

import math

from scarcity_ray.errors import UsageError
from scarcity_ray.privacy.accounting.roots import check_delta, check_epsilon, monotone_root

_MARGIN = 5e-12
"""Relative distance that a planned rho keeps from the bound."""
_ROUNDING = 2.0**-50
"""Rounding of a sum of terms, relative to the sum of their magnitudes."""
_WIDEST = 500.0
"""Greatest log u that is looked at, far from where floats end."""


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
    """A rho that every epsilon-DP mechanism has: epsilon^2 / 2 (Bun, Steinke 2016, proposition 1.4).

    Args:
        epsilon: At least 0, may be ``inf``.
    """
    check_epsilon(epsilon)
    return 0.5 * epsilon * epsilon


def check_rho(rho: float) -> None:
    """Refuse what is no rho."""
    if not rho >= 0.0:
        raise UsageError(f"rho: {rho!r} is not accepted; at least 0")


__all__ = ["delta_of_rho", "epsilon_of_rho", "rho_of_claim", "rho_of_pure"]
