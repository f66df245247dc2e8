"""From the rounds that are wanted to the noise that the budget can pay for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.errors import ConfigError
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.accounting.modes import Accounting


def solve_for_rounds(config: HierarchicalFederationConfig, rounds: int) -> HierarchicalFederationConfig:
    """The config with the epsilons of a release and of a gossip round at which the budget buys `rounds`.

    Both are rounded down to six digits. Where the total epsilon is infinite, nothing changes; without Layer 2
    there are no releases to solve for.

    Guarantees:
        the_solved_epsilon_buys_the_rounds: Counted by the accountant, and a ten-thousandth more does not.

    Raises:
        ConfigError: If no epsilon above 0 is so small at the delta of a release or of a gossip round.
    """
    if math.isinf(config.total_epsilon):
        return config
    plan = FederationPlan(config)
    solved = config
    mu = plan.central_mu_cap / math.sqrt(rounds)
    central_delta = config.layer2.central_dp_delta
    for epsilon in _candidates(plan.accounting, mu, central_delta, rounds) if config.layer2.enabled else ():
        solved = replace(config, layer2=replace(config.layer2, central_dp_epsilon=epsilon))
        if FederationPlan(solved).num_releases >= rounds:
            break
    if config.gossip_budget_share == 0:
        return solved
    central = solved
    mu = plan.gossip_mu_cap / math.sqrt(rounds)
    for epsilon in _candidates(Accounting.GAUSSIAN_DP, mu, config.gossip.local_dp_delta, rounds):
        solved = replace(central, gossip=replace(central.gossip, local_dp_epsilon=epsilon))
        if FederationPlan(solved).num_gossip_rounds >= rounds:
            break
    return solved


def _candidates(accounting: Accounting, mu: float, delta: float, rounds: int) -> Sequence[float]:
    """Epsilons of six digits, falling from the one that makes a release cost mu."""
    epsilon = accounting.epsilon_of(mu, delta)
    if epsilon < 1e-9:
        raise ConfigError(
            "rounds", rounds, f"fewer rounds: no epsilon above 0 costs so little at delta = {delta:g}"
        )
    place = math.floor(math.log10(epsilon)) - 5
    digits = math.floor(epsilon / 10.0**place)
    return [float(f"{digits - less}e{place}") for less in range(8)]


__all__ = ["solve_for_rounds"]
