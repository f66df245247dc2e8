"""Solved epsilons against the accountant that will count them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast import solve_for_rounds
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant


def config_of(total, share, central_delta=1e-5, noise="gaussian"):
    return HierarchicalFederationConfig(
        total_epsilon=total,
        total_delta=1e-5,
        gossip_budget_share=share,
        layer2={"central_dp_delta": central_delta, "noise": noise},
    )


def counted(config, most):
    """Releases and gossip rounds that the accountant allows with a config's own noise."""
    plan = FederationPlan(config)
    accountant = PrivacyAccountant(
        config.total_epsilon,
        config.total_delta,
        gossip_share=config.gossip_budget_share,
        delta_reserve=0.0,
        accounting=plan.accounting,
    )
    releases = rounds = 0
    while releases < most and accountant.spend_release(plan.mu_release):
        releases += 1
    parts = (plan.gossip.mu_drift, plan.gossip.mu_vector)
    while rounds < most and all(accountant.spend_gossip(["c"], mu).all() for mu in parts):
        rounds += 1
    return releases, rounds


@given(
    total=st.floats(0.5, 30.0),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    rounds=st.integers(1, 1000),
    delta=st.sampled_from([1e-5, 1e-7]),
    noise=st.sampled_from(["gaussian", "discrete_gaussian"]),
)
@example(total=10.0, share=0.1, rounds=100, delta=1e-5, noise="gaussian")
@example(total=10.0, share=0.1, rounds=60, delta=1e-5, noise="gaussian")
@example(total=10.0, share=0.1, rounds=60, delta=1e-5, noise="discrete_gaussian")
def test_the_solved_epsilon_buys_the_rounds(total, share, rounds, delta, noise):
    solved = solve_for_rounds(config_of(total, share, delta, noise), rounds)
    assert counted(solved, rounds + 1) == (rounds, rounds)
    more = replace(
        solved,
        layer2=replace(solved.layer2, central_dp_epsilon=solved.layer2.central_dp_epsilon * 1.0001),
        gossip=replace(solved.gossip, local_dp_epsilon=solved.gossip.local_dp_epsilon * 1.0001),
    )
    assert counted(more, rounds + 1) == (rounds - 1, rounds - 1)


def test_nothing_else_of_the_config_changes_and_six_digits_are_enough_to_copy_it():
    config = config_of(10.0, 0.1)
    solved = solve_for_rounds(config, 100)
    layer2 = replace(config.layer2, central_dp_epsilon=solved.layer2.central_dp_epsilon)
    gossip = replace(config.gossip, local_dp_epsilon=solved.gossip.local_dp_epsilon)
    assert solved == replace(config, layer2=layer2, gossip=gossip)
    assert float(f"{solved.layer2.central_dp_epsilon:.6g}") == solved.layer2.central_dp_epsilon


def test_without_gossip_only_the_release_is_solved():
    solved = solve_for_rounds(config_of(10.0, 0.0), 100)
    assert solved.gossip == HierarchicalFederationConfig().gossip
    assert counted(solved, 101)[0] == 100


def test_without_a_claim_there_is_nothing_to_solve():
    config = config_of(math.inf, 0.1)
    assert solve_for_rounds(config, 100) is config


def test_more_rounds_than_any_epsilon_buys_are_refused_by_name():
    with pytest.raises(ConfigError, match="rounds: 1000000000000 is not accepted; fewer rounds"):
        solve_for_rounds(config_of(1.0, 0.1), 10**12)
