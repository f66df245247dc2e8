"""Every derived number against a derivation that shares no code with it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting.pld.common import DifferentialPrivacyParameters
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import optimize, stats

from scarcity_ray.config import (
    AggregationMethod,
    BasketConfig,
    GossipConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
)
from scarcity_ray.errors import ConfigError
from scarcity_ray.plan import BasketFacts, FederationPlan, GossipPlan, make_plan
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.accounting.modes import Accounting
from scarcity_ray.privacy.accounting.zcdp import epsilon_of_rho

CLAIMS = [(0.5, 1e-5), (1.0, 1e-5), (10.0, 1e-4), (0.05, 1e-8), (4.0, 1e-6)]


def delta_of(mu, epsilon):
    """Balle and Wang (2018), theorem 8, in log space."""
    above = stats.norm.logcdf(mu / 2 - epsilon / mu)
    below = epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)
    return math.exp(above) * -math.expm1(below - above)


def mu_by_root(epsilon, delta):
    return optimize.brentq(lambda mu: delta_of(mu, epsilon) - delta, 1e-6, 50, xtol=1e-15, rtol=1e-14)


def plan_of(**config):
    return make_plan(HierarchicalFederationConfig(**config))


@pytest.mark.parametrize(("epsilon", "delta"), CLAIMS)
def test_mu_is_that_of_the_analytic_gaussian_mechanism(epsilon, delta):
    plan = plan_of(
        layer2={"central_dp_epsilon": epsilon, "central_dp_delta": delta}, total_epsilon=20, total_delta=0.01
    )
    deviation = GaussianPrivacyLoss.from_privacy_guarantee(
        DifferentialPrivacyParameters(epsilon, delta)
    ).standard_deviation
    assert plan.mu_release == pytest.approx(1 / deviation, rel=1e-5)
    assert plan.mu_release == pytest.approx(mu_by_root(epsilon, delta), rel=1e-10)
    assert plan.mu_release <= mu_by_root(epsilon, delta) * (1 + 1e-12)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.75])
@pytest.mark.parametrize(("epsilon", "delta"), [(10.0, 1e-4), (50.0, 1e-6)])
def test_the_caps_are_shares_of_the_budget_in_mu_squared(epsilon, delta, share):
    plan = plan_of(
        total_epsilon=epsilon,
        total_delta=delta,
        gossip_budget_share=share,
        gossip={"local_dp_epsilon": 0.2},
        layer2={"central_dp_epsilon": 0.2},
    )
    assert plan.mu_total == pytest.approx(mu_by_root(epsilon, delta), rel=1e-10)
    assert plan.central_mu_cap**2 + plan.gossip_mu_cap**2 == pytest.approx(plan.mu_total**2, rel=1e-14)
    assert plan.gossip_mu_cap**2 == pytest.approx(share * plan.mu_total**2, rel=1e-14)


def counted_releases(accountant, mu, at_most):
    count = 0
    while count < at_most and accountant.spend_release(mu):
        count += 1
    return count


def counted_gossip(accountant, drift, vector, at_most):
    count = 0
    while (
        count < at_most
        and accountant.spend_gossip(["c"], drift).all()
        and accountant.spend_gossip(["c"], vector).all()
    ):
        count += 1
    return count


@given(
    total=st.floats(1.0, 30.0),
    central=st.floats(0.2, 3.0),
    local=st.floats(0.2, 3.0),
    share=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.75, 0.9]),
)
@example(total=1.0, central=1.0, local=1.0, share=0.0)
def test_the_rounds_that_the_budget_buys_are_those_that_the_accountant_allows(total, central, local, share):
    plan = FederationPlan(
        HierarchicalFederationConfig(
            total_epsilon=total,
            total_delta=1e-5,
            gossip_budget_share=share,
            gossip=GossipConfig(local_dp_epsilon=local),
            layer2=Layer2Config(central_dp_epsilon=central),
        )
    )

    def accountant():
        return PrivacyAccountant(total, 1e-5, gossip_share=share, delta_reserve=0.0)

    most = 3000
    assert counted_releases(accountant(), plan.mu_release, most) == min(plan.num_releases, most)
    gossip = counted_gossip(accountant(), plan.gossip.mu_drift, plan.gossip.mu_vector, most)
    assert gossip == min(plan.num_gossip_rounds, most)


@pytest.mark.parametrize("rounds", [1, 3, 25, 100])
def test_a_budget_a_billionth_short_of_n_releases_buys_one_less(rounds):
    layer2 = Layer2Config(central_dp_epsilon=0.5)
    plan = FederationPlan(HierarchicalFederationConfig(total_epsilon=30.0, layer2=layer2))
    share = 1 - rounds * (1 - 1e-9) * plan.mu_release**2 / plan.mu_total**2
    short = FederationPlan(
        HierarchicalFederationConfig(total_epsilon=30.0, layer2=layer2, gossip_budget_share=share)
    )
    accountant = PrivacyAccountant(30.0, 1e-4, gossip_share=share, delta_reserve=0.0)
    assert short.num_releases == counted_releases(accountant, short.mu_release, 1000) == rounds - 1


@pytest.mark.parametrize("rounds", [1, 3, 7, 25, 100])
def test_a_budget_of_exactly_n_releases_buys_n(rounds):
    # The share of the gossip is chosen such that the central cap is n releases, to the last bit or one less.
    config = HierarchicalFederationConfig(total_epsilon=30.0, layer2=Layer2Config(central_dp_epsilon=0.5))
    plan = FederationPlan(config)
    share = 1 - rounds * plan.mu_release**2 / plan.mu_total**2
    exact = FederationPlan(
        HierarchicalFederationConfig(
            total_epsilon=30.0, layer2=Layer2Config(central_dp_epsilon=0.5), gossip_budget_share=share
        )
    )
    accountant = PrivacyAccountant(30.0, 1e-4, gossip_share=share, delta_reserve=0.0)
    assert exact.num_releases == counted_releases(accountant, exact.mu_release, 1000) == rounds


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_without_a_claim_there_is_no_limit_and_no_noise(share):
    plan = plan_of(
        total_epsilon=math.inf,
        gossip_budget_share=share,
        layer2={"central_dp_epsilon": math.inf},
        gossip={"local_dp_epsilon": math.inf},
    )
    assert plan.num_releases == math.inf
    assert plan.gossip.sigma_vector == plan.gossip.sigma_drift == 0.0
    release = plan.release([BasketFacts("a", "d", 5, 5, 1)])
    assert release.grid_sigma(["a"]) == 0.0
    assert release.ring_bits == 32


@pytest.mark.parametrize(("epsilon", "delta"), CLAIMS)
def test_a_gossip_release_is_charged_what_its_two_parts_spend(epsilon, delta):
    clip = 2.5
    plan = plan_of(
        total_epsilon=500.0,
        gossip={"local_dp_epsilon": epsilon, "local_dp_delta": delta, "clip_norm": clip},
    )
    gossip = plan.gossip
    assert math.hypot(gossip.mu_drift, gossip.mu_vector) == pytest.approx(
        mu_by_root(epsilon, delta), rel=1e-10
    )
    # Replace-one: two states of norm clip lie at most 2 clip apart, and so do their drifts.
    assert gossip.sigma_vector * gossip.mu_vector == pytest.approx(2 * clip, rel=1e-6)
    assert gossip.sigma_drift * gossip.mu_drift == pytest.approx(2 * clip, rel=1e-6)
    assert gossip.sigma_vector * gossip.mu_vector > 2 * clip
    mu = math.hypot(2 * clip / gossip.sigma_vector, 2 * clip / gossip.sigma_drift)
    assert delta_of(mu, epsilon) <= delta


@given(
    clip=st.floats(0.1, 10),
    sigma=st.floats(0, 20),
    dimension=st.integers(1, 500),
    received=st.integers(1, 20),
)
def test_the_mixing_weight_minimises_the_expected_squared_error(clip, sigma, dimension, received):
    plan = GossipPlan(1, 1, sigma, sigma, clip, dimension)
    spread = clip**2 / dimension

    def error(weight):
        return (1 - weight) ** 2 * spread + weight**2 * (spread + sigma**2) / received

    weight = plan.mixing_weight(received)
    assert 0 < weight < 1
    best = optimize.minimize_scalar(error, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    assert error(weight) <= best.fun * (1 + 1e-9)
    assert plan.mixing_weight(0) == 0.0


@pytest.mark.long
@pytest.mark.parametrize("dimension", [1, 4, 64])
def test_an_honest_vector_is_rarely_clipped_on_receipt(dimension):
    # Claimed below 0.2 %; at that rate more than 530 of 200,000 have a probability below 1e-9.
    plan = GossipPlan(1, 1, 1.0, 0.7, 1.5, dimension)
    rng = np.random.Generator(np.random.PCG64DXSM(1))
    state = np.zeros(dimension)
    state[0] = plan.clip_norm
    norms = np.linalg.norm(state + plan.sigma_vector * rng.standard_normal((200_000, dimension)), axis=1)
    assert (norms > plan.receive_norm).sum() <= 530
    short = plan.clip_norm + plan.sigma_vector * (math.sqrt(dimension) - 1.5)
    assert (norms > short).sum() > 530


LEAST = {
    "mean": lambda f: 1,
    "fedavg": lambda f: 1,
    "weighted": lambda f: 1,
    "median": lambda f: 2 * f + 1,
    "trimmed_mean": lambda f: 2 * f + 1,
    "krum": lambda f: 2 * f + 3,
    "multi_krum": lambda f: 2 * f + 3,
    "bulyan": lambda f: 4 * f + 3,
    "geometric_median": lambda f: 2 * f + 1,
    "centered_clipping": lambda f: 10 * f + 1,
    "meamed": lambda f: 2 * f + 1,
    "mda": lambda f: 2 * f + 1,
    "caf": lambda f: 2 * f + 1,
}


@pytest.mark.parametrize("method", list(AggregationMethod))
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.3, 0.45])
def test_least_rows_is_the_rules_own_and_never_below_min_updates(method, fraction):
    for least in (1, 3, 9):
        layer1 = Layer1Config(aggregation_method=method, byzantine_fraction=fraction, min_updates=least)
        plan = FederationPlan(HierarchicalFederationConfig(layer1=layer1))
        for members in range(1, 60):
            f = plan.num_byzantine(members)
            assert plan.least_rows(members) == max(least, LEAST[method.value](f))


def test_pre_aggregation_needs_honest_rows_enough_and_bucketing_enough_buckets():
    def least(method, pre, f, size=2):
        layer1 = Layer1Config(
            aggregation_method=method, pre=pre, num_byzantine=f, min_updates=1, bucket_size=size
        )
        return FederationPlan(HierarchicalFederationConfig(layer1=layer1)).least_rows(100)

    assert least("mean", ("nnm",), 3) == 7
    assert least("krum", ("nnm", "arc"), 2) == 7
    for size in (2, 3):
        rows = least("trimmed_mean", ("bucketing",), 2, size)
        assert -(-rows // size) == 5
        assert -(-(rows - 1) // size) == 4


def test_multi_krum_needs_the_rows_that_it_is_to_select():
    layer1 = Layer1Config(aggregation_method="multi_krum", num_selected=6, num_byzantine=2)
    assert FederationPlan(HierarchicalFederationConfig(layer1=layer1)).least_rows(20) == 6 + 2 + 2


@pytest.mark.parametrize("percent", range(50))
def test_f_is_the_floor_of_the_fraction_as_written(percent):
    layer1 = Layer1Config(byzantine_fraction=percent / 100)
    plan = FederationPlan(HierarchicalFederationConfig(layer1=layer1))
    for members in range(300):
        assert plan.num_byzantine(members) == math.floor(Fraction(percent, 100) * members)


def test_a_fixed_f_wins_over_the_fraction():
    layer1 = Layer1Config(num_byzantine=2, byzantine_fraction=0.4)
    plan = FederationPlan(HierarchicalFederationConfig(layer1=layer1))
    assert [plan.num_byzantine(n) for n in (0, 5, 100)] == [2, 2, 2]


IMPOSSIBLE = [
    ({"layer1": {"byzantine_fraction": 0.4}}, "layer1.byzantine_fraction"),
    ({"layer1": {"num_byzantine": 1}}, "layer1.num_byzantine"),
    (
        {"basket": {"min_clients": 10}, "layer1": {"aggregation_method": "bulyan", "num_byzantine": 2}},
        "layer1.num_byzantine",
    ),
    (
        {"basket": {"min_clients": 4}, "layer1": {"aggregation_method": "trimmed_mean", "num_byzantine": 2}},
        "layer1.num_byzantine",
    ),
    ({"layer1": {"min_updates": 101}}, "layer1.min_updates"),
    ({"basket": {"min_clients": 2, "max_clients": 2}, "layer1": {"min_updates": 1}}, "basket.max_clients"),
    (
        {"layer1": {"aggregation_method": "multi_krum", "num_selected": 99, "num_byzantine": 0}},
        "layer1.num_selected",
    ),
    ({"layer1": {"num_selected": 2}}, "layer1.num_selected"),
    ({"total_epsilon": 0.5, "gossip_budget_share": 0.0}, "layer2.central_dp_epsilon"),
    ({"layer2": {"central_dp_epsilon": math.inf}}, "layer2.central_dp_epsilon"),
    (
        {"layer2": {"central_dp_epsilon": 1e-12, "central_dp_delta": 1e-14}},
        "layer2.central_dp_epsilon",
    ),
    ({"gossip": {"local_dp_epsilon": 9.0}}, "gossip.local_dp_epsilon"),
    ({"gossip": {"local_dp_epsilon": math.inf}}, "gossip.local_dp_epsilon"),
    ({"gossip_budget_share": 1e-6}, "gossip.local_dp_epsilon"),
    ({"gossip_budget_share": 0.999}, "layer2.central_dp_epsilon"),
    ({"meta_parameters": {"rate": (1.0, 1.0)}}, "meta_parameters.rate"),
    ({"meta_parameters": {"rate": (2.0, 1.0)}}, "meta_parameters.rate"),
    ({"meta_parameters": {"rate": (0.0, math.inf)}}, "meta_parameters.rate"),
    ({"meta_parameters": {"rate": (math.nan, 1.0)}}, "meta_parameters.rate"),
    ({"meta_parameters": {"rate": (-1e308, 1e308)}}, "meta_parameters.rate"),
]


@pytest.mark.parametrize(("config", "path"), IMPOSSIBLE)
def test_an_impossible_combination_is_refused_by_path_and_value(config, path):
    made = HierarchicalFederationConfig(**config)
    with pytest.raises(ConfigError) as refusal:
        make_plan(made)
    assert refusal.value.path == path
    value = made
    for name in path.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    assert repr(refusal.value.value) == repr(value)
    assert refusal.value.accepted


def test_the_default_config_is_possible_whoever_comes():
    plan = make_plan(HierarchicalFederationConfig())
    assert plan.num_releases >= 10
    for members in range(3, 101):
        assert plan.least_rows(members) <= members


def test_turning_gossip_off_asks_nothing_of_its_epsilon():
    plan = plan_of(gossip_budget_share=0.0, gossip={"local_dp_epsilon": 100.0})
    assert plan.gossip_mu_cap == 0.0
    assert plan.num_gossip_rounds == 0


def test_a_basket_of_the_least_size_is_enough_where_the_rule_needs_more_than_min_clients():
    assert plan_of(basket=BasketConfig(min_clients=1)).least_rows(1) == 3


def test_noise_that_is_not_gaussian_puts_the_plan_into_zcdp():
    gaussian = make_plan(HierarchicalFederationConfig())
    discrete = make_plan(HierarchicalFederationConfig(layer2=Layer2Config(noise="discrete_gaussian")))
    assert gaussian.accounting is Accounting.GAUSSIAN_DP
    assert discrete.accounting is Accounting.ZCDP
    config = discrete.config
    for mu, epsilon, delta in (
        (discrete.mu_release, config.layer2.central_dp_epsilon, config.layer2.central_dp_delta),
        (discrete.mu_total, config.total_epsilon, config.total_delta),
    ):
        assert epsilon_of_rho(mu**2 / 2, delta) == pytest.approx(epsilon, rel=1e-10)
    assert discrete.mu_release < gaussian.mu_release
    assert discrete.gossip.sigma_vector == gaussian.gossip.sigma_vector


@pytest.mark.parametrize("noise", ["gaussian", "discrete_gaussian"])
@pytest.mark.parametrize("total", [0.01, 0.3, 1.0, 2.0])
def test_a_budget_too_small_for_its_defaults_names_the_largest_epsilons_that_fit(total, noise):
    def made(**changes):
        layer2 = {"noise": noise, "central_dp_epsilon": changes.get("central", 1.0)}
        gossip = {"local_dp_epsilon": changes.get("local", 0.5)}
        return plan_of(total_epsilon=total, layer2=layer2, gossip=gossip)

    changes = {}
    for name, path in (("local", "gossip.local_dp_epsilon"), ("central", "layer2.central_dp_epsilon")):
        try:
            made(**changes)
        except ConfigError as error:
            if error.path == path:
                changes[name] = float(error.accepted.split("at most ")[1].split(",")[0])
    made(**changes)
    for name, epsilon in changes.items():
        with pytest.raises(ConfigError):
            made(**{**changes, name: 1.02 * epsilon})
    assert bool(changes) == (total < 2.0)
