"""A driver asks why there is no model, and what it is told to do makes one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scarcity_ray import HierarchicalFederation, IdentityKeyPair, Missing

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
    waits = fed.waiting_for()
    assert waits.missing is Missing.BUDGET
    assert waits.baskets == ()


def silence_the_last(fed: HierarchicalFederation, domains: int) -> list[str]:
    fed.register_clients([(f"{d}_{i}", f"d{d}") for d in range(domains) for i in range(3)])
    sent = [f"{d}_{i}" for d in range(2) for i in range(3)]
    assert all(fed.submit_updates(sent, np.full((6, 4), 0.1)))
    return sent


def test_two_of_three_baskets_are_told_that_a_release_needs_all_three(open_federation: Any) -> None:
    for remedy in ("submit", "unregister"):
        fed = open_federation(QUIET)
        silence_the_last(fed, 3)
        assert fed.force_aggregate() is None
        waits = fed.waiting_for()
        assert (waits.missing, waits.num_fresh, waits.least_baskets) == (Missing.AGGREGATES, 2, 3)
        assert "1 of the 3 registered may be corrupt, layer2.assumed_corrupt_fraction" in waits.sentence
        assert "maybe_aggregate releases them" not in str(waits)
        if remedy == "submit":
            fed.submit_updates([f"2_{i}" for i in range(3)], np.full((3, 4), 0.1))
        else:
            for i in range(3):
                fed.unregister_client(f"2_{i}")
            assert fed.force_aggregate() is None
            waits = fed.waiting_for()
            assert waits.missing is Missing.BASKETS
            assert "advance_round, until which a basket that has lost all its clients counts" in str(waits)
            fed.advance_round()
            assert fed.waiting_for().missing is Missing.CALL
        assert fed.force_aggregate() is not None


def test_an_operators_signature_is_what_is_missing(open_federation: Any) -> None:
    operator = IdentityKeyPair.generate()
    fed = open_federation({**QUIET, "operator_key": operator.public_bytes.hex()})
    sent = silence_the_last(fed, 2)
    assert fed.force_aggregate() is None
    for _ in range(2):
        assert fed.waiting_for().missing is Missing.ROSTER
    assert "roster sign" in fed.get_stats()["waiting_for"]["text"]
    fed.sign_roster(operator)
    assert fed.waiting_for().missing is Missing.CALL
    assert fed.force_aggregate() is not None
    # A new domain's basket takes part once it is signed for, too.
    fed.advance_round()
    fed.register_clients([(f"new{i}", "new") for i in range(3)])
    assert all(fed.submit_updates([*sent[:3], *(f"new{i}" for i in range(3))], np.full((6, 4), 0.1)))
    assert fed.force_aggregate() is None
    assert (fed.waiting_for().missing, fed.waiting_for().num_fresh) == (Missing.ROSTER, 1)
    fed.sign_roster(operator)
    assert all(fed.submit_updates(sent[3:], np.full((3, 4), 0.1)))
    assert fed.force_aggregate() is not None


def test_a_driver_that_signs_waits_for_no_signature(open_federation: Any) -> None:
    operator = IdentityKeyPair.generate()
    settings = {**QUIET, "auto_aggregate": False, "operator_key": operator.public_bytes.hex()}
    fed = open_federation(settings, operator_keypair=operator)
    silence_the_last(fed, 2)
    assert fed.waiting_for().missing is Missing.AGGREGATES
    assert fed.force_aggregate() is not None


def test_a_ledger_that_was_taken_over_is_what_is_missing(open_federation: Any, tmp_path: Any) -> None:
    settings = {"vector_dim": 4, "ledger_path": str(tmp_path / "shared.sqlite")}
    fed = open_federation(settings)
    crowd(fed, 10, 2, absent=1)
    open_federation(settings, take_over_ledger=True)
    waits = fed.waiting_for()
    assert waits.missing is Missing.LEDGER
    assert "taken over" in str(waits)
    assert "end this federation, the other one goes on" in str(waits)
    assert "budget is spent" not in str(waits)
    assert "submit" not in str(waits)
