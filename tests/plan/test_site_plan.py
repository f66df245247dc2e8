"""Noise at the source in a federation's plan: its numbers, and what is refused by name."""

from __future__ import annotations

import math

import pytest

from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.errors import ConfigError
from scarcity_ray.plan import BasketFacts, make_plan
from scarcity_ray.privacy.accounting.modes import Accounting

SECTIONS = {
    "basket": {"min_clients": 7},
    "layer1": {"aggregation_method": "krum", "num_byzantine": 1, "clip_norm": 4.0},
    "layer2": {"clip_norm": 4.0, "noise": "discrete_gaussian"},
    "gossip": {"clip_norm": 4.0},
    "privacy": {
        "unit": "person",
        "noise": "site",
        "person_clip_norm": 1.0,
        "min_persons": 400,
        "row_epsilon": 0.4,
        "row_delta": 1e-6,
    },
}


def config(**changes):
    """Changes of a section are merged into it."""
    given = {"vector_dim": 31, "total_epsilon": 3.0, "total_delta": 1e-6, **SECTIONS}
    for name, value in changes.items():
        given[name] = {**SECTIONS[name], **value} if name in SECTIONS else value
    return load(HierarchicalFederationConfig, given)


def test_rows_alone_spend_the_budget_and_each_client_has_all_of_it():
    plan = make_plan(config())
    assert plan.accounting is Accounting.ZCDP
    assert plan.mu_row == plan.site_noise.mu == Accounting.ZCDP.mu_of_claim(0.4, 1e-6)
    assert (plan.gossip_mu_cap, plan.central_mu_cap, plan.own_share) == (plan.mu_total, 0.0, 1.0)
    assert plan.num_releases == math.floor((plan.mu_total / plan.mu_row) ** 2)
    assert (plan.mu_release, plan.reserved.mu_release) == (0.0, 0.0)


def test_gaussian_rows_are_added_up_in_gaussian_dp():
    plan = make_plan(config(layer2={"noise": "gaussian"}))
    assert plan.accounting is Accounting.GAUSSIAN_DP
    assert not plan.site_noise.is_discrete
    assert plan.mu_row > make_plan(config()).mu_row, "at the same epsilon the exact accounting buys more"


@pytest.mark.parametrize("method", ["krum", "mean", "bulyan", "median"])
def test_a_release_of_noised_rows_costs_nothing_and_has_no_noise_whatever_the_rule(method):
    plan = make_plan(config(layer1={"aggregation_method": method}))
    release = plan.release([BasketFacts(f"b{i}", "", 7, 7, 1, num_persons=400) for i in range(3)])
    assert release.mu == 0.0
    assert set(release.sensitivities.values()) == {0.0}
    assert release.grid_sigma(["b0", "b1", "b2"]) == 0.0


def test_gossip_of_noised_rows_costs_nothing_and_adds_no_noise():
    plan = make_plan(config())
    assert plan.gossip_share > 0.0
    assert (plan.gossip.mu_drift, plan.gossip.mu_vector) == (0.0, 0.0)
    assert (plan.gossip.sigma_drift, plan.gossip.sigma_vector) == (0.0, 0.0)
    assert plan.num_gossip_rounds == math.inf
    assert make_plan(config(gossip_budget_share=0.0)).gossip_share == 0.0


@pytest.mark.parametrize("name", ["layer1", "gossip"])
def test_a_clip_norm_that_would_clip_noised_rows_is_refused(name):
    least = make_plan(config()).site_noise.least_clip_norm
    make_plan(config(**{name: {"clip_norm": least}}))
    with pytest.raises(ConfigError, match="noise alone") as refusal:
        make_plan(config(**{name: {"clip_norm": least * 0.999}}))
    assert refusal.value.path == f"{name}.clip_norm"


def test_without_gossip_its_clip_norm_does_not_matter_and_layer_2_clips_no_rows():
    make_plan(config(gossip={"clip_norm": 0.1}, gossip_budget_share=0.0))
    make_plan(config(layer2={"clip_norm": 0.02}))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"privacy": {"unit": "client", "person_clip_norm": None, "min_persons": None}}, "privacy.noise"),
        ({"privacy": {"row_epsilon": None}}, "privacy.row_epsilon"),
        ({"privacy": {"row_epsilon": 4.0}}, "privacy.row_epsilon"),
        ({"privacy": {"row_epsilon": math.inf}}, "privacy.row_epsilon"),
        ({"privacy": {"person_clip_norm": None}}, "privacy.person_clip_norm"),
        ({"privacy": {"noise": "central"}}, "privacy.row_epsilon"),
        ({"privacy": {"noise": "central", "row_epsilon": None}}, "privacy.row_delta"),
        ({"layer2": {"noise": "distributed_discrete_gaussian"}}, "layer2.noise"),
        ({"layer2": {"adaptive_clipping": True}}, "layer2.adaptive_clipping"),
        ({"layer2": {"enabled": False}}, "layer2.enabled"),
        ({"meta_parameters": {"loss": (0.0, 1.0)}}, "meta_parameters"),
    ],
)
def test_what_does_not_compose_with_noised_rows_is_refused_by_name(changes, path):
    with pytest.raises(ConfigError) as refusal:
        make_plan(config(**changes))
    assert refusal.value.path == path


def test_momentum_needs_noised_rows():
    assert make_plan(config(layer1={"momentum": 0.9})).config.layer1.momentum == 0.9
    with pytest.raises(ConfigError, match="noised rows") as refusal:
        make_plan(load(HierarchicalFederationConfig, {"layer1": {"momentum": 0.9}}))
    assert refusal.value.path == "layer1.momentum"
