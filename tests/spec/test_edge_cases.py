"""The *Edge Cases* of both documents, and what a round and secure aggregation cost, on both runtimes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, Rejection

DIMENSION = 4
QUIET: dict[str, Any] = {
    "vector_dim": DIMENSION,
    "auto_aggregate": False,
    "total_epsilon": math.inf,
    "gossip": {"local_dp_epsilon": math.inf, "peers_per_round": 9},
    "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
    # Two of three fresh baskets release where none is assumed to collude with the aggregator.
    "layer2": {"central_dp_epsilon": math.inf, "assumed_corrupt_fraction": 0.0},
    "runtime": {"baskets_per_actor": 9},
}
"""No noise and plain means, so that what arrives is what was sent."""


def enrol(fed: HierarchicalFederation, domain: str, size: int) -> None:
    fed.register_clients([(f"{domain}{i}", domain) for i in range(size)])


def send(fed: HierarchicalFederation, *clients: str, value: float = 0.1) -> None:
    for client_id in clients:
        assert fed.submit_update(client_id, np.full(DIMENSION, value))


def members(fed: HierarchicalFederation, domain: str, size: int, value: float = 0.1) -> None:
    enrol(fed, domain, size)
    send(fed, *(f"{domain}{i}" for i in range(size)), value=value)


@pytest.fixture(scope="module")
def quiet(open_federation: Any) -> HierarchicalFederation:
    """One federation a runtime for all tests of the module that ask for `fed`."""
    fed: HierarchicalFederation = open_federation(QUIET)
    return fed


@pytest.fixture
def fed(quiet: HierarchicalFederation) -> Iterator[HierarchicalFederation]:
    """A federation without baskets: a test's clients leave with it. Each test has domains of its own."""
    yield quiet
    for domain, said in quiet.get_stats()["basket_stats"].items():
        for basket_id in said["baskets"]:
            for client_id in quiet.get_basket(basket_id).clients:
                quiet.unregister_client(client_id)
            quiet.disband_basket(basket_id)
        assert quiet.get_basket(domain) is None


def test_a_domain_without_clients_has_no_basket(fed: HierarchicalFederation) -> None:
    assert fed.run_gossip_round() == {}
    assert fed.get_basket("retail") is None
    stats = fed.get_stats()
    assert (stats["n_baskets"], stats["basket_stats"]) == (0, {})
    assert fed.force_aggregate() is None
    assert fed.register_client("shop", "retail") == "retail_basket_0"


def test_a_single_clients_gossip_is_a_no_op_and_its_layer_1_waits(fed: HierarchicalFederation) -> None:
    members(fed, "only", 1)
    members(fed, "many", 3)
    assert fed.run_gossip_round() == {"only": 0, "many": 6}
    fed.force_aggregate()
    assert fed.get_basket_model("only") is None
    assert fed.get_stats()["basket_stats"]["only"]["updates"] == 1


def test_a_single_clients_basket_still_takes_part_in_layer_2(fed: HierarchicalFederation) -> None:
    members(fed, "single", 1, value=0.4)
    members(fed, "a", 3, value=0.1)
    members(fed, "b", 3, value=0.3)
    first = fed.force_aggregate()
    np.testing.assert_allclose(first, np.full(DIMENSION, 0.2), atol=1e-6)
    # With others its basket aggregates what had waited, and is in the next release.
    enrol(fed, "single", 3)
    send(fed, "single1", "single2", value=0.4)
    send(fed, "a0", "a1", "a2", value=0.2)
    second = fed.force_aggregate()
    np.testing.assert_allclose(second, np.full(DIMENSION, 0.3), atol=1e-6)
    assert fed.get_global_meta_model().n_baskets == 2


def test_who_joins_takes_part_in_the_next_gossip_round(fed: HierarchicalFederation) -> None:
    members(fed, "growing", 2)
    assert fed.run_gossip_round() == {"growing": 2}
    fed.register_client("late", "growing")
    send(fed, "late", value=0.3)
    fed.advance_round()
    send(fed, "growing0", "growing1", value=0.8)  # far enough from what they sent before to be sent again
    assert fed.run_gossip_round() == {"growing": 6}


def test_who_leaves_is_missed_by_nobody(fed: HierarchicalFederation) -> None:
    members(fed, "left", 4)
    fed.unregister_client("left0")
    assert fed.run_gossip_round() == {"left": 6}
    assert fed.force_aggregate() is None
    assert fed.get_basket_meta_model("left").n_contributors == 3
    assert fed.get_basket("left").clients == {"left1", "left2", "left3"}


def test_disbanding_the_only_basket_of_a_domain_opens_another(fed: HierarchicalFederation) -> None:
    members(fed, "moved", 3)
    fed.disband_basket("moved")
    assert fed.get_basket("moved_basket_0").status.value == "disbanded"
    assert fed.get_basket("moved_basket_1").clients == {"moved0", "moved1", "moved2"}
    assert fed.get_stats()["basket_stats"]["moved"]["updates"] == 3


def test_gossip_and_aggregation_mark_a_basket_active(fed: HierarchicalFederation, clock: Any) -> None:
    members(fed, "active", 3)
    for act in (fed.run_gossip_round, fed.force_aggregate):
        clock.advance(601.0)
        assert fed.get_stale_baskets() == ["active_basket_0"]
        act()
        assert fed.get_basket("active").last_activity == clock.now
        assert fed.get_stale_baskets() == []


def test_a_new_round_clears_what_belongs_to_a_round(open_federation: Any) -> None:
    fed = open_federation({**QUIET, "buffer": {"participation_cap": 1}})
    enrol(fed, "a", 3)
    same = np.full(DIMENSION, 0.1)
    for round_id in range(3):
        assert fed.offer_update("a0", same, round_id=round_id)
        assert fed.offer_update("a0", same, round_id=round_id).reason is Rejection.REPLAYED
        assert fed.offer_update("a0", 2 * same).reason is Rejection.PARTICIPATION_CAP
        assert fed.offer_update("a0", same, round_id=round_id + 1).reason is Rejection.FUTURE_ROUND
        assert fed.advance_round() == round_id + 1


@pytest.mark.parametrize("secure", [True, False])
def test_secure_aggregation_itself_costs_no_privacy(open_federation: Any, secure: bool) -> None:
    fed = open_federation(
        {
            "vector_dim": DIMENSION,
            "auto_aggregate": False,
            "layer1": QUIET["layer1"],
            "runtime": QUIET["runtime"],
            "layer2": {"use_secure_aggregation": secure},
        }
    )
    for domain in "ab":
        members(fed, domain, 3)
    assert fed.force_aggregate() is not None
    spent = fed.get_stats()["privacy_consumed_epsilon"]
    # One release at the default epsilon of 1, delta 1e-5, stated at the budget's delta of 1e-4.
    assert spent == fed.plan.accounting.epsilon_of(fed.plan.mu_release, 1e-4)
    assert 0.8 < spent < 1.0
