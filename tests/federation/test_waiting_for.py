"""A driver asks why there is no model, and what it is told to do makes one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scarcity_ray import HierarchicalFederation, Missing

QUIET = {"total_epsilon": math.inf, "layer2": {"central_dp_epsilon": math.inf}, "vector_dim": 4}


def crowd(fed: HierarchicalFederation, num: int, domains: int, absent: int = 0) -> None:
    fed.register_clients([(f"c{i}", f"d{i % domains}") for i in range(num)])
    for i in range(num - absent):
        assert fed.submit_update(f"c{i}", np.full(4, 0.1 + 0.01 * i))


def test_three_clients_of_one_domain_are_told_to_find_another(open_federation: Any) -> None:
    fed = open_federation(QUIET)
    crowd(fed, 3, 1)
    assert fed.maybe_aggregate() is None
    waits = fed.waiting_for()
    assert waits.missing is Missing.BASKETS
    assert fed.get_stats()["waiting_for"]["missing"] == "baskets"
    fed.register_clients([(f"e{i}", "another") for i in range(3)])
    for i in range(3):
        fed.submit_update(f"e{i}", np.full(4, 0.2))
    assert fed.maybe_aggregate() is not None


def test_two_domains_of_two_are_told_how_many_are_missing(open_federation: Any) -> None:
    fed = open_federation(QUIET)
    crowd(fed, 4, 2)
    assert fed.force_aggregate() is None
    assert [(b.basket_id, b.missing) for b in fed.waiting_for().baskets] == [
        ("d0_basket_0", Missing.MEMBERS),
        ("d1_basket_0", Missing.MEMBERS),
    ]
    assert "register 1 more in domain d1" in str(fed.waiting_for())
    for domain in ("d0", "d1"):
        fed.register_client(f"new {domain}", domain)
        fed.submit_update(f"new {domain}", np.full(4, 0.2))
    assert fed.maybe_aggregate() is not None


def test_an_absent_client_is_named_and_may_be_unregistered(open_federation: Any) -> None:
    fed = open_federation(QUIET)
    crowd(fed, 10, 2, absent=1)
    assert fed.force_aggregate() is None
    first, second = fed.waiting_for().baskets
    assert (first.missing, first.absent) == (Missing.UPDATES, ("c9",))
    assert second.missing is Missing.RELEASE
    fed.unregister_client("c9")
    assert fed.maybe_aggregate() is not None


def test_asking_changes_nothing(open_federation: Any, clock: Any) -> None:
    told = []
    for asks in (False, True):
        fed = open_federation({"vector_dim": 4}, clock=type(clock)())
        crowd(fed, 10, 2)
        for _ in range(3 * asks):
            fed.waiting_for()
        fed.run_gossip_round()
        model = fed.maybe_aggregate()
        stats = fed.get_stats()
        told.append((model.tobytes(), {k: v for k, v in stats.items() if not k.startswith("ledger")}))
    assert told[0] == told[1]


def test_a_spent_budget_is_what_is_missing(open_federation: Any) -> None:
    fed = open_federation({"vector_dim": 4, "total_epsilon": 1.1, "gossip_budget_share": 0.0})
    crowd(fed, 6, 2)
    assert fed.get_global_model() is not None
    assert fed.waiting_for().missing is Missing.BUDGET
