"""How a budget is spent over its releases: evenly, or with noise that falls from one to the next.

The earlier a release is made, the less its noise counts: gradient descent on a loss of curvature lambda with
step eta shrinks what an earlier step has added by (1 - eta lambda) a step. The noise in the last iterate is
sum_k a_k^2 / mu_k^2 with a_k = (1 - eta lambda)^(T - k), and under a fixed sum of mu_k^2 it is least where
mu_k^2 is proportional to a_k, so to (1 - eta lambda)^-k: mu^2 grows geometrically (Hong, Wang, Zhou 2022,
"Dynamic Privacy Budget Allocation Improves Data Efficiency of Differentially Private Gradient Descent",
FAccT; "growing mu" in Du, Li, Chen, Chen, Hong 2021, "Dynamic Differential-Privacy Preserving SGD").

`NoiseSchedule` has one number for that, ``decay``: the last release's sigma over the first's. With T releases
and mu proportional to 1/sigma, mu_k^2 is proportional to g^k, g = decay^(-2/(T - 1)), and adds up to the cap:

    mu_k^2 = cap (g - 1) g^k / (g^T - 1).

*The claim needs no proof of its own.* mu of a step is a function of the ledger's charges alone, which are
public, and the accountant adds up what was charged: adaptive composition under a fixed cap (`modes`).

*The step k is the number of releases that were charged in the budget period*, and mu_k is made of what is
left of the cap, as the first of the R = T - k steps that remain:

    mu_k^2 = left (g - 1) / (g^R - 1).

Without anything unforeseen this is the formula above. A release that was charged and then lost has used its
step: those after it share what is left, as they would have. After a renewal k is 0 and the cap the new one's.
Where the ledger holds charges of another configuration and what is left buys fewer than R releases of
`mu_release`, R is that number; beyond the T steps each release is charged `mu_release` while it fits.

Guarantees:
    the_steps_add_up_to_the_cap: And each but the first is charged more than the one before.
    no_step_is_charged_less_than_the_first: Whatever the ledger holds, for the same cap.
    what_is_left_buys_the_steps_that_are_counted: `num_left`, by the accountant's own sum; more may fit where
        the ledger holds charges of another configuration.
    the_geometric_schedule_is_optimal_for_a_contraction: Against a numerical search.
    without_decay_every_release_is_charged_the_same
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from scarcity_ray.privacy.accounting.modes import ROUNDING

_SAME_MU = 1e-13
"""Relative difference of two computers' libm in one mu."""


@dataclass(frozen=True)
class Step:
    """Where a budget period stands before a release: what the next mu follows from.

    Attributes:
        number: Releases that were charged in the period.
        cap: What the mu^2 of all its releases may add up to.
        left: What of it is not spent.
    """

    number: int
    cap: float
    left: float

    @property
    def is_formed(self) -> bool:
        """Whether another computer's step is one that a ledger can stand at."""
        numbers = (self.cap, self.left)
        return (
            type(self.number) is int
            and self.number >= 0
            and all(type(number) is float for number in numbers)
            and 0.0 <= self.left <= self.cap < math.inf
        )


@dataclass(frozen=True)
class NoiseSchedule:
    """What each release is charged.

    Attributes:
        mu_release: Root mean square of mu over a period's releases; 0 where nothing is released.
        decay: Sigma of a period's last release over that of its first, above 0 and at most 1.

    >>> schedule = NoiseSchedule(mu_release=0.5, decay=0.5)
    >>> steps = [schedule.step_of(1.0, k) for k in range(4)]
    >>> [round(schedule.mu(step), 3) for step in steps], schedule.num_releases(1.0)
    ([0.331, 0.417, 0.526, 0.663], 4.0)
    """

    mu_release: float
    decay: float = 1.0

    @cached_property
    def is_constant(self) -> bool:
        """Whether every release is charged `mu_release`."""
        return self.decay == 1.0

    def num_releases(self, cap: float) -> float:
        """Releases that a cap on the sum of mu^2 buys; inf without a cap, or where nothing is charged."""
        if math.isinf(cap) or self.mu_release == 0.0:
            return math.inf
        return float(math.floor(cap / self.mu_release**2 * ROUNDING))

    def num_left(self, step: Step) -> float:
        """Releases that may still be charged, at least."""
        buys = self.num_releases(step.left)
        if self.is_constant:
            return buys
        planned = self.num_releases(step.cap) - step.number
        return buys if planned <= 0.0 else min(buys, planned)

    def mu(self, step: Step) -> float:
        """What the next release is charged; more than what is left, if none is."""
        left = self.num_left(step)
        if self.is_constant or left == 0.0 or step.number >= self.num_releases(step.cap):
            return self.mu_release
        return math.sqrt(step.left * _first_share(self._growth(step.cap), left))

    def step_of(self, cap: float, number: int) -> Step:
        """The step after so many releases of a period in which nothing unforeseen happened."""
        if number == 0:
            return Step(0, cap, cap)
        total = self.num_releases(cap)
        if self.is_constant or number >= total:
            return Step(number, cap, max(0.0, cap - number * self.mu_release**2) if self.is_constant else 0.0)
        growth = self._growth(cap)
        return Step(
            number,
            cap,
            cap * _first_share(growth, total) / _first_share(growth, total - number) * growth**number,
        )

    def noise_energy(self, cap: float, rounds: float) -> float:
        """What the noise of the first releases adds up to, in variances of the first: sum (mu_0 / mu_k)^2.

        Args:
            rounds: At most `num_releases`.
        """
        growth = 1.0 if self.is_constant else self._growth(cap)
        return rounds if growth == 1.0 else (1.0 - growth**-rounds) / (1.0 - 1.0 / growth)

    def accepts(self, mu: float, step: Step | None) -> bool:
        """Whether mu is what a release at the step is charged."""
        if self.is_constant:
            return step is None
        return step is not None and step.is_formed and math.isclose(mu, self.mu(step), rel_tol=_SAME_MU)

    def _growth(self, cap: float) -> float:
        """Of mu^2 from one step to the next."""
        total = self.num_releases(cap)
        return self.decay ** (-2.0 / (total - 1.0)) if total > 1.0 else 1.0


def _first_share(growth: float, steps: float) -> float:
    """The first of `steps` shares of 1 that grow geometrically."""
    if growth == 1.0:
        return 1.0 / steps
    rate = math.log(growth)
    return math.expm1(rate) / math.expm1(rate * steps)
