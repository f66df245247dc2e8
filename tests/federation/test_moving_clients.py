"""Splits, disbands, leaving and coming back: what goes with a client, and what is discarded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scarcity_ray import HierarchicalFederation, Rejection

DIMENSION = 6


def settings(**sections: Any) -> dict[str, Any]:
    return {
        "vector_dim": DIMENSION,
        "auto_aggregate": False,
        "total_epsilon": math.inf,
        "basket": {"min_clients": 2, "max_clients": 8},
        "buffer": {"participation_cap": 2},
        "gossip": {"local_dp_epsilon": math.inf, "push_drift_threshold": 0.0},
        "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 2},
        "layer2": {"central_dp_epsilon": math.inf, "assumed_corrupt_fraction": 0.0},
        **sections,
    }


def send(fed: HierarchicalFederation, client: str, value: float) -> bool:
    return fed.submit_update(client, np.full(DIMENSION, value))


def buffered(fed: HierarchicalFederation, domain: str) -> dict[str, int]:
    baskets = fed.get_stats()["basket_stats"][domain]["baskets"]
    return {basket: entry["updates"] for basket, entry in baskets.items()}


def test_a_split_moves_buffered_updates_replays_caps_and_gossip_state(
    runtime: str, open_federation: Any
) -> None:
    fed = open_federation(settings(), runtime=runtime)
    for i in range(4):
        fed.register_client(f"c{i}", "a", features=np.array([float(i)]))
        assert send(fed, f"c{i}", 0.1 + 0.01 * i)
        assert send(fed, f"c{i}", 0.2 + 0.01 * i)
    assert fed.run_gossip_round() == {"a": 12}
    first, second = fed.split_basket("a_basket_0")
    info = fed.get_basket(first), fed.get_basket(second)
    assert [basket.clients for basket in info if basket] == [{"c0", "c1"}, {"c2", "c3"}]
    assert buffered(fed, "a") == {first: 4, second: 4}
    receipt = fed.offer_update("c3", np.full(DIMENSION, 0.23))
    assert (receipt.reason, receipt.basket_id) == (Rejection.REPLAYED, second)
    assert fed.offer_update("c3", np.full(DIMENSION, 0.9)).reason is Rejection.PARTICIPATION_CAP
    # A release of this round is not made again: the halves hand on what was released before the split,
    # and whoever had a vector does not get it twice.
    gossip = [entry["gossip"] for entry in fed.get_stats()["basket_stats"]["a"]["baskets"].values()]
    assert [counts["releases"] for counts in gossip] == [0, 0]
    assert fed.run_gossip_round() == {"a": 0}
    # The states that gossip mixed have moved, too: all four hold the mean of all, so both halves have it.
    fed.force_aggregate()
    rows = [(0.1 + 0.2 + 0.02 * i) / 2.0 for i in range(4)]
    for basket in (first, second):
        np.testing.assert_allclose(fed.get_basket_model(basket), np.full(DIMENSION, np.mean(rows)), rtol=1e-5)
    assert fed.get_stats()["n_gossip_messages"] == 12


def test_a_disband_moves_buffered_updates_to_baskets_of_the_domain(open_federation: Any) -> None:
    fed = open_federation(settings(basket={"min_clients": 2, "max_clients": 3}))
    fed.register_clients([(f"c{i}", "a") for i in range(5)])
    for i in range(5):
        send(fed, f"c{i}", 0.1 * (i + 1))
    fed.unregister_client("c0")
    fed.disband_basket("a_basket_1")
    assert buffered(fed, "a") == {"a_basket_0": 3, "a_basket_2": 1}
    stats = fed.get_stats()
    assert (stats["n_updates_buffered"], stats["n_updates_withdrawn"]) == (4, 1)
    assert send(fed, "c4", 0.7)
    home = fed.get_client("c4")
    assert home is not None
    assert buffered(fed, "a")[str(home.basket_id)] == (4 if home.basket_id == "a_basket_0" else 2)


def test_a_model_that_holds_a_moved_client_is_discarded(open_federation: Any) -> None:
    fed = open_federation(settings())
    fed.register_clients([(f"{domain}{i}", domain) for domain in "abc" for i in range(4)])
    for client in [f"{domain}{i}" for domain in "ab" for i in range(4)]:
        send(fed, client, 0.3)
    assert fed.maybe_aggregate() is None  # a and b are fresh, c is active and is not
    fed.split_basket("a_basket_0")
    assert fed.get_stats()["n_basket_models_discarded"] == 1
    assert fed.get_basket_model("a_basket_1") is None
    assert fed.force_aggregate() is None  # b alone is not enough
    fed.advance_round()
    for i in range(4):
        send(fed, f"c{i}", 0.5)
    model = fed.force_aggregate()
    np.testing.assert_allclose(model, np.full(DIMENSION, (0.3 + 1.0 / math.sqrt(6)) / 2.0), atol=1e-6)


def test_a_model_that_holds_a_client_who_came_back_elsewhere_is_discarded(open_federation: Any) -> None:
    fed = open_federation(settings(basket={"min_clients": 2, "max_clients": 3}))
    fed.register_clients([(f"c{i}", "a") for i in range(3)])
    for i in range(3):
        send(fed, f"c{i}", 0.3)
    fed.maybe_aggregate()
    fed.unregister_client("c0")
    assert fed.get_stats()["n_basket_models_discarded"] == 1  # at once: nobody can know that it stays away
    fed.register_client("stranger", "a")
    assert fed.register_client("c0", "a") == "a_basket_1"
    assert fed.get_stats()["n_basket_models_discarded"] == 1
    # Its replays and its cap followed it.
    assert fed.offer_update("c0", np.full(DIMENSION, 0.3)).reason is Rejection.REPLAYED


def test_leaving_withdraws_and_coming_back_resets_nothing(open_federation: Any) -> None:
    fed = open_federation(settings())
    fed.register_clients([(f"c{i}", "a") for i in range(3)])
    assert send(fed, "c0", 0.1)
    assert send(fed, "c0", 0.2)
    assert fed.unregister_client("c0") is True
    assert fed.offer_update("c0", np.full(DIMENSION, 0.3)).reason is Rejection.UNKNOWN_CLIENT
    stats = fed.get_stats()
    assert (stats["n_updates_withdrawn"], stats["n_updates_buffered"], stats["n_clients"]) == (2, 0, 2)
    fed.register_client("c0", "a")
    assert fed.offer_update("c0", np.full(DIMENSION, 0.1)).reason is Rejection.REPLAYED
    assert fed.offer_update("c0", np.full(DIMENSION, 0.3)).reason is Rejection.PARTICIPATION_CAP


def test_a_leaving_clients_pending_messages_are_dropped(open_federation: Any) -> None:
    fed = open_federation(settings())
    fed.register_clients([(f"c{i}", "a") for i in range(3)])
    send(fed, "c0", 0.1)
    send(fed, "c1", 0.2)
    assert fed.run_gossip_round() == {"a": 2}  # what is sent to c2, who has no state yet, waits
    (basket,) = fed.get_stats()["basket_stats"]["a"]["baskets"].values()
    assert basket["gossip"]["pending"] == 2
    fed.unregister_client("c1")
    (basket,) = fed.get_stats()["basket_stats"]["a"]["baskets"].values()
    assert (basket["gossip"]["pending"], basket["gossip"]["dropped"]) == (1, 1)


def test_baskets_are_cleaned_up_when_the_round_advances(open_federation: Any) -> None:
    fed = open_federation(settings())
    fed.register_clients([("c0", "a"), ("c1", "b")])
    fed.unregister_client("c0")
    assert fed.get_stats()["n_baskets"] == 2
    fed.advance_round()
    assert fed.get_stats()["n_baskets"] == 1
    assert fed.get_basket("a_basket_0") is None
    assert fed.register_client("c0", "a") == "a_basket_1"


def test_lifecycle_follows_activity_in_the_federation(open_federation: Any, clock: Any) -> None:
    fed = open_federation(settings())
    fed.register_clients([(f"c{i}", "a") for i in range(2)])

    def status() -> str:
        info = fed.get_basket("a")
        assert info is not None
        return str(info.status.value)

    assert status() == "active"
    clock.advance(601.0)
    assert status() == "stale"
    assert fed.get_stale_baskets() == ["a_basket_0"]
    assert fed.get_stats()["n_stale_baskets"] == 1
    send(fed, "c0", 0.1)
    assert status() == "active"
    client = fed.get_client("c0")
    assert client is not None
    assert (client.n_updates, client.last_active) == (1, clock.now)
    fed.disband_basket("a")
    info = fed.get_basket("a_basket_0")
    assert info is not None
    assert info.status.value == "disbanded"
