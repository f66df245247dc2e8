"""Gaussian differential privacy in numbers: mu, epsilon and delta, and how to go from one to another.

A Gaussian release of L2 sensitivity Delta and noise scale sigma is mu-GDP with mu = Delta / sigma; releases
compose to sqrt(sum mu_i^2), exactly (Dong, Roth, Su 2022, corollary 3.3). A mu-GDP mechanism is
(epsilon, delta)-DP for exactly the pairs (Balle, Wang 2018, theorem 8; Dong et al., corollary 2.13)

    delta(epsilon) = Phi(-a) - e^epsilon Phi(-b),    a = epsilon / mu - mu / 2,    b = epsilon / mu + mu / 2.

With the Mills ratio M(x) = Phi(-x) / phi(x) this is phi(a) (M(a) - M(b)), since e^epsilon phi(b) = phi(a);
and M(a) - M(b) is the integral of 1 - x M(x) > 0 from a to b. So log delta is found without cancellation and
without underflow, from the standard library alone.

Everything here takes and gives plain floats. Rounding always goes to the safe side by a known bound:

Guarantees:
    calibrated_mu_is_never_above_the_truth: `mu_of_gaussian` lies below the true root by a relative 1e-12 to
        3e-12, so a sum of mu^2 that passes its square by a relative 1e-12 still keeps (epsilon, delta).
    reported_epsilon_is_never_below_the_truth: `epsilon_of_mu` lies above the true root, by at most
        1e-11 max(epsilon, mu) for delta <= 1/2.
    reported_delta_is_never_below_the_truth: `delta_of_mu` lies above, by at most a relative 2e-12 for
        mu <= 30 and delta >= 1e-300; what underflows is 0.
    pure_mu_is_never_below_the_truth: `mu_of_pure` lies above, by at most a relative 1e-13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from scarcity_ray_client.arguments import number_of
from scarcity_ray_client.errors import UsageError

_LOG_ROOT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_MARGIN = 2e-12
"""Relative distance that calibrated values keep from the root that was found."""

_GREATEST_EPSILON = 1e300
"""A finite claim beyond it is taken for this one, on the safe side: floats have no room for its root."""
_LEAST_MU = 1e-290
"""Where a root would lie below it, a lower bound of the root serves, for the same reason."""

# Nodes and weights on [-1, 1] of the 10-point Gauss-Legendre rule (Abramowitz, Stegun 1964, table 25.4).
_GAUSS_LEGENDRE = (
    (0.1488743389816312, 0.2955242247147529),
    (0.4333953941292472, 0.2692667193099963),
    (0.6794095682990244, 0.2190863625159820),
    (0.8650633666889845, 0.1494513491505806),
    (0.9739065285171717, 0.0666713443086881),
)


def delta_of_mu(mu: float, epsilon: float) -> float:
    """The delta at `epsilon` of a mu-GDP mechanism.

    Args:
        mu: Total mu, >= 0; ``inf`` is a release without noise.
        epsilon: At least 0, may be ``inf``.

    Returns:
        delta in [0, 1], never below the truth.

    >>> round(delta_of_mu(1.0, 1.0), 6)
    0.126937
    """
    check_mu(mu)
    check_epsilon(epsilon)
    if mu == 0.0 or epsilon == math.inf:
        return 0.0
    if mu == math.inf:
        return 1.0
    return min(1.0, math.exp(min(0.0, _log_delta_above(mu, epsilon))))


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The epsilon at `delta` of a mu-GDP mechanism.

    Args:
        mu: Total mu, >= 0; ``inf`` is a release without noise.
        delta: In [0, 1].

    Returns:
        The least epsilon >= 0 with delta(epsilon) <= delta, never below the truth; ``inf`` if there is none.

    >>> round(epsilon_of_mu(1.0, 1e-5), 4)
    4.3772
    """
    check_mu(mu)
    check_delta(delta)
    if mu == 0.0 or delta == 1.0:
        return 0.0
    if mu == math.inf or delta == 0.0:
        return math.inf
    return _least_epsilon(float(mu), float(delta))


@lru_cache(maxsize=256)
def _least_epsilon(mu: float, delta: float) -> float:
    """`epsilon_of_mu` of finite values, cached, as statuses of a budget ask for the same few."""
    goal = math.log(delta)
    if _log_delta_above(mu, 0.0) <= goal:
        return 0.0
    tail = math.sqrt(-2.0 * goal)
    high = mu * (0.5 * mu + tail)
    if high == math.inf:
        return math.inf

    def step(epsilon: float) -> tuple[float, float]:
        _, b = _ends(mu, epsilon)
        value = _log_delta_above(mu, epsilon)
        return value - goal, -_slope(mu, epsilon, value) * _mills(b)[0]

    root = monotone_root(step, high, 0.0)
    return min(high, root + _MARGIN * max(root, mu))


def mu_of_gaussian(epsilon: float, delta: float) -> float:
    """The largest mu whose Gaussian mechanism is (epsilon, delta)-DP: the analytic Gaussian mechanism.

    The noise scale for a sensitivity Delta is then sigma = Delta / mu (Balle, Wang 2018, theorem 9).

    Args:
        epsilon: At least 0; ``inf`` claims nothing and gives ``inf``.
        delta: In (0, 1).

    Returns:
        mu, never above the truth.

    >>> round(mu_of_gaussian(1.0, 1e-5), 4)
    0.2681
    >>> mu_of_gaussian(float("inf"), 1e-5)
    inf
    """
    check_epsilon(epsilon)
    check_delta(delta)
    if not 0.0 < delta < 1.0:
        raise UsageError(f"delta: {delta!r} is not accepted; a Gaussian mechanism needs 0 < delta < 1")
    if epsilon == math.inf:
        return math.inf
    return _calibrated(min(float(epsilon), _GREATEST_EPSILON), float(delta))


@lru_cache(maxsize=256)
def _calibrated(epsilon: float, delta: float) -> float:
    """`mu_of_gaussian` of finite values, cached, as plans of a federation ask for the same few."""
    goal = math.log(delta)
    tail = math.sqrt(-2.0 * goal)
    # delta(epsilon) <= exp(-a^2 / 2) for a >= 0, and delta(epsilon) <= delta(0) < 0.4 mu: both lie below.
    low = max(2.0 * epsilon / (math.sqrt(tail * tail + 2.0 * epsilon) + tail), 2.0 * delta)
    if low < _LEAST_MU:
        return low
    high = 2.0 * low
    while _log_delta_above(high, epsilon) <= goal:
        low, high = high, 2.0 * high

    def step(mu: float) -> tuple[float, float]:
        value = _log_delta_above(mu, epsilon)
        return value - goal, _slope(mu, epsilon, value)

    return monotone_root(step, low, high) * (1.0 - _MARGIN)


def mu_of_pure(epsilon: float) -> float:
    """The least mu such that every epsilon-DP mechanism is mu-GDP: 2 Phi^-1(e^epsilon / (1 + e^epsilon)).

    The trade-off curve of randomised response has one kink, at (p, p) with p = 1 / (1 + e^epsilon); a convex
    curve through (0, 1) that meets the kink lies below both of its chords, and the Gaussian curve through the
    kink has this mu (Dong, Roth, Su 2022, section 2.2).

    Returns:
        mu, never below the truth.

    >>> round(mu_of_pure(1.0), 6)
    1.232035
    """
    check_epsilon(epsilon)
    if epsilon in (0.0, math.inf):
        return epsilon
    if epsilon < 1.0:
        goal = math.tanh(0.5 * epsilon)
        x = math.sqrt(0.5 * math.pi) * goal
        for _ in range(8):
            x -= (math.erf(x * math.sqrt(0.5)) - goal) * math.sqrt(0.5 * math.pi) * math.exp(0.5 * x * x)
    else:
        goal = -epsilon - math.log1p(math.exp(-epsilon))
        x = math.sqrt(2.0 * epsilon)
        for _ in range(16):
            ratio, _ = _mills(x)
            x += (_log_phi(x) + math.log(ratio) - goal) * ratio
    return 2.0 * x * (1.0 + 5e-14)


def _ends(mu: float, epsilon: float) -> tuple[float, float]:
    ratio = epsilon / mu
    return ratio - 0.5 * mu, ratio + 0.5 * mu


def _slope(mu: float, epsilon: float, log_delta: float) -> float:
    """The derivative of log delta by mu."""
    a, _ = _ends(mu, epsilon)
    return math.exp(_log_phi(a) - log_delta) if a < -3.0 else 1.0 / _mills_drop(mu, epsilon)


def _log_delta_above(mu: float, epsilon: float) -> float:
    """Log delta, raised by the most that rounding can have taken from it."""
    a, b = _ends(mu, epsilon)
    if a < -3.0:
        # 1 - delta = phi(a) (M(-a) + M(b)) is small and has no cancellation.
        value = math.log1p(-math.exp(_log_phi(a)) * (_mills(-a)[0] + _mills(b)[0]))
    elif a > 1e6:
        return -math.inf
    else:
        value = _log_phi(a) + math.log(_mills_drop(mu, epsilon))
    # a is off by at most 2^-52 b, which log delta multiplies by at most 2 + max(a, 0); a^2 adds its own.
    return value + 2.0**-51 * (256.0 + a * a + (2.0 + max(a, 0.0)) * b)


def _mills_drop(mu: float, epsilon: float) -> float:
    """M(a) - M(b) for a >= -3, without cancellation however close a and b lie."""
    a, b = _ends(mu, epsilon)
    (at_a, _), (at_b, _) = _mills(a), _mills(b)
    if at_b < 0.5 * at_a:
        return at_a - at_b
    half, middle = 0.5 * mu, epsilon / mu
    return half * sum(
        weight * (_mills(middle - half * node)[1] + _mills(middle + half * node)[1])
        for node, weight in _GAUSS_LEGENDRE
    )


def _mills(x: float) -> tuple[float, float]:
    """The Mills ratio M(x) = Phi(-x) / phi(x) and its negative derivative 1 - x M(x), for x >= -38.

    From 3 on by Laplace's continued fraction 1/(x + 1/(x + 2/(x + ...))), of which `tail` is the rest.
    """
    if x < 3.0:
        ratio = math.sqrt(0.5 * math.pi) * math.erfc(x * math.sqrt(0.5)) * math.exp(0.5 * x * x)
        return ratio, 1.0 - x * ratio
    tail = 0.0
    for k in range(int(24 + 700 / (x * x)), 0, -1):
        tail = k / (x + tail)
    return 1.0 / (x + tail), tail / (x + tail)


def _log_phi(x: float) -> float:
    return -0.5 * x * x - _LOG_ROOT_TWO_PI


def monotone_root(step: Callable[[float], tuple[float, float]], below: float, above: float) -> float:
    """The root of a monotone function: Newton's method, kept inside a bracket by bisection.

    Args:
        step: Gives value and derivative.
        below: The end of the bracket where the value is at most 0; at `above` it is at least 0.

    Returns:
        A point within a relative 1e-13 of the root of `step`.
    """
    x = 0.5 * (below + above)
    for _ in range(200):
        value, slope = step(x)
        if value > 0.0:
            above = x
        else:
            below = x
        moved = x - value / slope if slope != 0.0 and math.isfinite(slope) else math.inf
        if not min(below, above) <= moved <= max(below, above):
            moved = 0.5 * (below + above)
        if min(abs(moved - x), abs(above - below)) <= 2.0**-46 * abs(moved):
            return moved
        x = moved
    return x


def check_mu(mu: float) -> None:
    """Refuse a negative number or NaN."""
    if not number_of("mu", mu) >= 0.0:
        raise UsageError(f"mu: {mu!r} is not accepted; at least 0")


def check_epsilon(epsilon: float) -> None:
    """Refuse a negative number or NaN."""
    if not number_of("epsilon", epsilon) >= 0.0:
        raise UsageError(f"epsilon: {epsilon!r} is not accepted; at least 0")


def check_delta(delta: float) -> None:
    """Refuse what is not in [0, 1]."""
    if not 0.0 <= number_of("delta", delta) <= 1.0:
        raise UsageError(f"delta: {delta!r} is not accepted; between 0 and 1")
