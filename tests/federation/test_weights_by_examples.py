"""The rule `weighted` weighs a client by the examples that it says, and a lie buys no more than the cap."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    ConfigError,
    HierarchicalFederation,
    HierarchicalFederationConfig,
    UsageError,
    make_plan,
)
from scarcity_ray.config import load

DIMENSION = 8
NAMES = [f"{domain}{i}" for domain in "ab" for i in range(5)]
CAP = 20


def settings(**sections: Any) -> dict[str, Any]:
    return {
        "vector_dim": DIMENSION,
        "auto_aggregate": False,
        "gossip_budget_share": 0.0,
        "layer1": {"aggregation_method": "weighted", "byzantine_fraction": 0.0, "max_examples": CAP},
        "basket": {"min_clients": 2, "max_clients": 5},
        **sections,
    }


def basket_a(fed: HierarchicalFederation) -> Any:
    model = fed.get_basket_meta_model("a")
    assert model is not None
    return model


def joined(fed: HierarchicalFederation, told: list[int | None]) -> HierarchicalFederation:
    for name, number in zip(NAMES, told * 2, strict=False):
        fed.register_client(name, name[0], num_examples=number)
    return fed


ROWS = np.eye(5, DIMENSION) * 0.5


def test_a_client_weighs_the_examples_that_it_says(open_federation: Any) -> None:
    fed = joined(open_federation(settings()), [1, 2, None, 4, 10])
    fed.submit_updates(NAMES[:5], ROWS)
    fed.force_aggregate()
    weights = np.array([1, 2, 1, 4, 10]) / 18
    np.testing.assert_allclose(basket_a(fed).aggregate[:5], 0.5 * weights, rtol=1e-6)
    assert basket_a(fed).max_row_share == pytest.approx(10 / 18)
    fed.advance_round()
    said = [None, 5, 5, None, None]
    fed.submit_updates(NAMES[:5], ROWS, num_examples=said)
    fed.force_aggregate()
    weights = np.array([1, 5, 5, 4, 10]) / 25
    np.testing.assert_allclose(basket_a(fed).aggregate[:5], 0.5 * weights, rtol=1e-6)


def test_one_client_has_one_weight_however_often_it_sends(open_federation: Any) -> None:
    fed = joined(open_federation(settings()), [None] * 5)
    fed.submit_updates(NAMES[:5], ROWS)
    for part in (2.0, 4.0):
        assert fed.offer_update("a0", ROWS[0] / part)
    fed.force_aggregate()
    assert basket_a(fed).max_row_share == pytest.approx(1 / 5)


def test_a_client_that_claims_everything_owns_what_the_cap_leaves_it(open_federation: Any) -> None:
    fed = joined(open_federation(settings()), [10] * 5)
    fed.submit_updates(NAMES[:5], ROWS, num_examples=[10**9, None, None, None, None])
    fed.force_aggregate()
    assert basket_a(fed).max_row_share == pytest.approx(CAP / (CAP + 4 * 10))
    assert basket_a(fed).max_row_share < fed.plan.worst_row_share(5)


def test_examples_go_with_a_client_and_outlive_the_actors(open_federation: Any) -> None:
    fed = joined(open_federation(settings()), [1, 2, 3, 4, 10])
    fed._runtime.kill("basket:0")
    fed._driver.operations.routing_table()
    fed.submit_updates(NAMES[:5], ROWS)
    fed._runtime.kill("directory")
    fed.split_basket("a_basket_0")
    fed.advance_round()
    fed.submit_updates(NAMES[:5], ROWS / 2, num_examples=[None, 7, None, None, None])
    members = fed._runtime.peers.roles["basket:0"].step_down().admissions  # type: ignore[attr-defined]
    told = {m.client_id: m.num_examples for admission in members for m in admission.members}
    assert [told[name] for name in NAMES[:5]] == [1, 2, 3, 4, 10]
    fed.register_client("a1", "a", num_examples=9)
    members = fed._runtime.peers.roles["basket:0"].step_down().admissions  # type: ignore[attr-defined]
    assert {m.client_id: m.num_examples for a in members for m in a.members}["a1"] == 9


@pytest.mark.parametrize("told", [0, -1, 1.5, "many", True, math.inf])
def test_what_is_no_number_of_examples_is_refused(told: Any, open_federation: Any) -> None:
    fed = joined(open_federation(settings()), [None] * 5)
    with pytest.raises(UsageError, match=r"num_examples: .* a positive integer"):
        fed.register_client("new", "a", num_examples=told)
    assert fed.get_client("new") is None
    assert fed.offer_update("a0", ROWS[0], num_examples=told).reason == "not_numeric"
    assert fed.offer_update("a0", ROWS[0], num_examples=10**15)


def test_a_cap_is_for_the_rule_that_weighs_alone() -> None:
    config = {"layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "max_examples": 5}}
    with pytest.raises(ConfigError, match=r"layer1.max_examples: 5 .*null for mean"):
        make_plan(load(HierarchicalFederationConfig, config))
    plan = make_plan(load(HierarchicalFederationConfig, settings(layer1={"aggregation_method": "mean"})))
    assert plan.worst_row_share(5) is None
    weighted = {"aggregation_method": "weighted", "byzantine_fraction": 0.0}
    plan = make_plan(load(HierarchicalFederationConfig, settings(layer1=weighted)))
    assert plan.row_weight(10**9) == plan.row_weight(1000) == 1000.0
    assert plan.row_weight(None) == plan.row_weight(1) == 1.0


def test_no_claims_give_a_row_more_than_the_worst_share() -> None:
    """Every combination of claims, by brute force; and one of them reaches it."""
    plan = make_plan(load(HierarchicalFederationConfig, settings()))
    for n in (1, 2, 3, 4):
        worst = 0.0
        for claims in itertools.product((None, 1, 2, 7, CAP - 1, CAP, CAP + 1, 10**9), repeat=n):
            weights = [plan.row_weight(claim) for claim in claims]
            worst = max(worst, max(weights) / sum(weights))
        assert worst == pytest.approx(plan.worst_row_share(n), rel=1e-12)


def test_layer_2_scales_its_noise_by_the_greatest_share(open_federation: Any) -> None:
    """The same federation with even claims and with a liar: the noise grows as the liar's share does."""
    sigmas = {}
    for claims in ([10] * 5, [10**9, 1, 1, 1, 1]):
        fed = joined(open_federation(settings()), list(claims))
        fed.submit_updates(NAMES, np.tile(ROWS, (2, 1)))
        assert fed.force_aggregate() is not None
        share = basket_a(fed).max_row_share
        facts = [fed.get_basket_meta_model(d).facts(d, 5) for d in "ab"]  # type: ignore[union-attr]
        assert [fact.max_row_share for fact in facts] == [share, share]
        assert fed.plan.sensitivity(facts[0]) == pytest.approx(2.0 * share, rel=1e-5)
        release = fed.get_global_meta_model()
        assert release is not None
        sigmas[share] = release.noise_sigma
    (even, low), (uneven, high) = sigmas.items()
    assert (even, uneven) == (pytest.approx(1 / 5), pytest.approx(CAP / (CAP + 4)))
    assert high / low == pytest.approx(uneven / even, rel=1e-4)


def test_no_values_of_the_heaviest_client_move_its_basket_further_than_the_plan_says(
    open_federation: Any,
) -> None:
    """Neighbours: the same claims, other values of one client; a search for the worst pair."""
    rng = np.random.default_rng(3)
    furthest = 0.0
    for claims in ([10**9, 3, 3, 3, 3], [1, 2, 3, 4, 5], [CAP, CAP, 1, 1, 1]):
        fed = joined(open_federation(settings()), list(claims))
        heavy = int(np.argmax(np.minimum(claims, CAP)))
        for trial in range(12):
            aggregates, bounds = [], set()
            rows = rng.standard_normal((5, DIMENSION)) * rng.choice([1e-3, 1.0, 50.0], (5, 1))
            towards = rng.standard_normal(DIMENSION) if trial % 2 else rows.sum(axis=0)
            for sign in (1.0, -1.0):
                rows[heavy] = sign * 1e4 * towards
                fed.submit_updates(NAMES[:5], rows if trial < 6 else rows * 1e-3)
                fed._driver.run_layer1(None, force=True)
                aggregates.append(basket_a(fed).aggregate.astype(float))
                bounds.add(fed.plan.sensitivity(basket_a(fed).facts("a", 5)))
                fed.advance_round()
            (bound,) = bounds
            moved = float(np.linalg.norm(aggregates[0] - aggregates[1]))
            assert moved <= bound
            furthest = max(furthest, moved / bound)
    assert furthest > 0.99, "the bound is reached"
