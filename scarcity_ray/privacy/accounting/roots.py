"""The root of a monotone function, and the ranges of what the accounting is given."""

from __future__ import annotations

import math
from collections.abc import Callable

from scarcity_ray.config.arguments import number_of
from scarcity_ray.errors import UsageError


def monotone_root(step: Callable[[float], tuple[float, float]], below: float, above: float) -> float:
    """The root of a monotone function: Newton's method, kept inside a bracket by bisection.

    Args:
        step: Gives value and derivative.
        below: The end of the bracket where the value is at most 0.
        above: The end where it is at least 0.

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
    """Refuse what is no mu."""
    if not number_of("mu", mu) >= 0.0:
        raise UsageError(f"mu: {mu!r} is not accepted; at least 0")


def check_epsilon(epsilon: float) -> None:
    """Refuse what is no epsilon."""
    if not number_of("epsilon", epsilon) >= 0.0:
        raise UsageError(f"epsilon: {epsilon!r} is not accepted; at least 0")


def check_delta(delta: float) -> None:
    """Refuse what is no delta."""
    if not 0.0 <= number_of("delta", delta) <= 1.0:
        raise UsageError(f"delta: {delta!r} is not accepted; between 0 and 1")


__all__ = ["check_delta", "check_epsilon", "check_mu", "monotone_root"]
