"""SIGKILL of roles between rounds: the next call recovers or says what is lost; no charge is forgotten."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.names import ACCOUNTANT
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.supervisor import Supervisor

ROLES = ["basket:1", "accountant", "directory", "global"]
PAIRS = [
    ("basket:0", "basket:2"),
    ("basket:1", "accountant"),
    ("directory", "accountant"),
    ("global", "accountant"),
    ("directory", "global"),
    ("basket:3", "global"),
]


def charges(ledger: Path) -> list[tuple[int, str | None, str]]:
    """All rows of the ledger as SQLite has them, read beside the accountant."""
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
        return list(connection.execute("SELECT seq, charge_id, record FROM ledger ORDER BY seq"))


def releases(ledger: Path) -> list[str]:
    return [str(charge) for _, charge, record in charges(ledger) if json.loads(record)["kind"] == "release"]


def finish_round(harness: Any, seed: int) -> None:
    """Whatever was lost: clients send again what is missing, and there is a release."""
    before = harness.fed.get_stats()
    harness.submit(seed)
    model = harness.fed.maybe_aggregate()
    assert model is not None
    assert np.isfinite(model).all()
    after = harness.fed.get_stats()
    assert after["n_layer2_aggregations"] == before["n_layer2_aggregations"] + 1
    assert after["n_clients"] == 12
    assert after["n_baskets"] == 4
    assert harness.fed.advance_round() == before["current_round"] + 1


@pytest.mark.parametrize("role", ROLES)
def test_a_role_killed_between_rounds_comes_back(harness: Any, role: str, caplog: Any) -> None:
    finish_round(harness, 1)
    before = harness.fed.get_stats()
    rows, model = charges(harness.ledger), harness.fed.get_global_model()
    budget = harness.fed.get_privacy_budget()
    with caplog.at_level(logging.WARNING, "scarcity_ray"):
        harness.kill(role)
        after = harness.fed.get_stats()
    assert after["privacy_consumed_epsilon"] == before["privacy_consumed_epsilon"] > 0.0
    assert harness.fed.get_privacy_budget() == budget
    assert charges(harness.ledger)[: len(rows)] == rows
    for key in ("n_clients", "n_baskets", "current_round", "n_layer2_aggregations"):
        assert after[key] == before[key], key
    np.testing.assert_array_equal(harness.fed.get_global_model(), model)
    (fault,) = after["faults"][len(before["faults"]) :]
    assert role.split(":")[0] in fault
    assert fault in caplog.text
    finish_round(harness, 2)
    assert harness.fed.get_stats()["privacy_consumed_epsilon"] > after["privacy_consumed_epsilon"]


def test_a_release_that_died_with_the_global_aggregator_is_told(open_harness: Any) -> None:
    harness = open_harness("local")
    finish_round(harness, 1)
    harness.kill("global")
    harness.fed.get_stats()
    assert "continues from release 1, and nothing is lost" in harness.fed.faults[-1]
    mu = harness.fed.plan.mu_release
    harness.fed._driver.client.call(ACCOUNTANT, Accountant.charge_release, "layer2/x", mu, 0.0, {}, 0)
    harness.kill("global")
    harness.fed.get_stats()
    assert "1 release was charged and never published" in harness.fed.faults[-1]


@pytest.mark.parametrize(
    ("harness", "roles"),
    [
        *(("local", pair) for pair in PAIRS),
        # Each role once: how a death is noticed on Ray does not depend on who dies beside it.
        *(pytest.param("ray", PAIRS[i], marks=pytest.mark.ray) for i in (1, 4)),
    ],
    indirect=["harness"],
)
def test_two_roles_killed_at_once_come_back(harness: Any, roles: tuple[str, ...]) -> None:
    finish_round(harness, 3)
    before = harness.fed.get_stats()
    rows = charges(harness.ledger)
    harness.kill(*roles)
    after = harness.fed.get_stats()
    assert len(after["faults"]) == len(before["faults"]) + 2
    assert after["privacy_consumed_epsilon"] == before["privacy_consumed_epsilon"]
    assert charges(harness.ledger)[: len(rows)] == rows
    for key in ("n_clients", "n_baskets", "current_round", "n_layer2_aggregations"):
        assert after[key] == before[key], key
    finish_round(harness, 4)


def test_a_basket_actor_killed_with_updates_loses_only_its_own(harness: Any) -> None:
    assert all(harness.submit(5))
    role = harness.basket_role("domain0_basket_0")
    harness.kill(role)
    stats = harness.fed.get_stats()
    assert stats["n_updates_buffered"] == 9
    assert "domain0_basket_0" in stats["faults"][-1]
    assert "send the updates of this round again" in stats["faults"][-1]
    accepted = harness.submit(5)
    assert accepted == [i // 3 % 4 == 0 for i in range(12)], "the others' are replays"
    assert harness.fed.maybe_aggregate() is not None
    harness.fed.advance_round()


def test_basket_actors_that_die_together_come_back_together(
    harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when their node dies."""
    finish_round(harness, 13)
    place, started = harness.fed._runtime, []
    start = type(place).start
    monkeypatch.setattr(place, "start", lambda specs: (started.append(len(specs)), start(place, specs)))
    harness.kill("basket:0", "basket:1", "basket:3")
    finish_round(harness, 14)
    assert started == [3]
    faults = harness.fed.get_stats()["faults"][-3:]
    assert sorted(fault.split(" ")[0] for fault in faults) == ["basket:0", "basket:1", "basket:3"]


def test_an_actor_brought_back_by_a_driver_that_died_right_then_takes_part_again(open_harness: Any) -> None:
    """The directory was not told of its baskets' new keys."""
    harness = open_harness("local")
    finish_round(harness, 15)
    harness.submit(16)
    harness.kill("basket:2")
    client, parts = harness.fed._driver.client, harness.fed._driver.supervisor
    next(parts.recover({"basket:2"}, client.now()))
    harness.submit(16)
    other = Driver(Supervisor(parts.runtime, parts.identity, parts.plan), client.now)
    other.run_layer1(None, True)
    outcome = other.run_layer2(True)
    assert outcome.model is not None
    assert (outcome.model.n_baskets, outcome.dropped) == (4, ())


CALLS: dict[str, Callable[[Any], Any]] = {
    "submit": lambda h: h.submit(7),
    "gossip": lambda h: h.fed.run_gossip_round(),
    "force": lambda h: h.fed.force_aggregate(),
    "advance_round": lambda h: h.fed.advance_round(),
    "register": lambda h: h.fed.register_client("newcomer", "domain1"),
    "unregister": lambda h: h.fed.unregister_client("c04"),
    "split": lambda h: h.fed.split_basket("domain1"),
    "disband": lambda h: h.fed.disband_basket("domain1"),
    "client": lambda h: h.fed.get_client("c04"),
    "basket": lambda h: h.fed.get_basket("domain1_basket_0"),
    "basket_model": lambda h: h.fed.get_basket_model("domain1"),
    "global_model": lambda h: h.fed.get_global_model(),
    "budget": lambda h: h.fed.get_privacy_budget(),
    "renew": lambda h: h.fed.renew_budget(60.0, 1e-5, operator="test"),
}


VICTIMS = [*ROLES, "directory+accountant", "basket:1+accountant"]
FIRSTS = [
    # Each call after three of the deaths, each death before half of the calls; the other pairs by hand.
    pytest.param(first, role, marks=pytest.mark.slow if (i + j) % 2 else ())
    for i, first in enumerate(CALLS)
    for j, role in enumerate(VICTIMS)
]


@pytest.mark.long
@pytest.mark.parametrize(("first", "role"), FIRSTS)
def test_whatever_call_comes_first_recovers(first: str, role: str, open_harness: Any) -> None:
    harness = open_harness("local", basket={"min_clients": 3, "max_clients": 4})
    fed = harness.fed
    finish_round(harness, 6)
    harness.submit(7)
    spent = fed.get_stats()["privacy_consumed_epsilon"]
    harness.kill(*role.split("+"))
    CALLS[first](harness)
    assert fed.get_stats()["privacy_lifetime_epsilon"] >= spent
    fed.advance_round()
    harness.register()
    harness.submit(8)
    fed.force_aggregate()
    stats = fed.get_stats()
    assert stats["n_layer2_aggregations"] == len(releases(harness.ledger)) >= 2
    assert stats["privacy_lifetime_epsilon"] > spent


def test_the_directory_and_a_basket_actor_killed_at_once_say_whose_members_are_lost(harness: Any) -> None:
    finish_round(harness, 9)
    role = harness.basket_role("domain2_basket_0")
    harness.kill("directory", role)
    stats = harness.fed.get_stats()
    assert stats["n_clients"] == 9
    assert any(role in fault and "register them again" in fault for fault in stats["faults"])
    harness.register()
    assert harness.fed.get_stats()["n_clients"] == 12
    finish_round(harness, 10)


def test_gossip_charges_survive_the_accountant(harness: Any) -> None:
    harness.submit(11)
    harness.kill("accountant")
    delivered = harness.fed.run_gossip_round()
    assert sum(delivered.values()) > 0
    rows = charges(harness.ledger)
    gossip = [charge for _, charge, _ in rows if charge and charge.startswith("gossip/")]
    assert len(gossip) == len(set(gossip)) > 0
    spent = harness.fed.get_stats()["privacy_consumed_epsilon"]
    harness.kill("accountant")
    assert harness.fed.get_stats()["privacy_consumed_epsilon"] == spent
    assert charges(harness.ledger)[: len(rows)] == rows
    finish_round(harness, 12)


def test_every_release_was_charged_once(harness: Any) -> None:
    made = harness.fed.get_stats()["n_layer2_aggregations"]
    charged = releases(harness.ledger)
    assert len(set(charged)) == len(charged) == made
    assert all(json.loads(record) for _, _, record in charges(harness.ledger))
