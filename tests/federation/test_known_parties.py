"""Baskets hold a session against what a driver told them: each other's keys, and the last release.

The global aggregator names a session's parties and its model; neither is believed on its word alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import News
from scarcity_ray.baskets.reports import Member
from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.federation.driver import Driver
from scarcity_ray.federation.supervisor import Supervisor
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.secagg import IdentityKeyPair, Party, SessionContext

DIMENSION = 4
BASKETS = 4
PER_BASKET = 4
Forge = Callable[[SessionContext], SessionContext]


def open_with(open_federation: Any, **layer2: Any) -> HierarchicalFederation:
    fed: HierarchicalFederation = open_federation(
        {
            "vector_dim": DIMENSION,
            "auto_aggregate": False,
            "gossip_budget_share": 0.0,
            "total_epsilon": 20.0,
            "basket": {"min_clients": 2, "max_clients": 8},
            "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 2},
            "layer2": layer2,
            "runtime": {"baskets_per_actor": 1},
        }
    )
    fed.register_clients([(f"{b}_{i}", f"d{b}") for b in range(BASKETS) for i in range(PER_BASKET)])
    return fed


@pytest.fixture
def fed(open_federation: Any) -> HierarchicalFederation:
    return open_with(open_federation)


def role(fed: HierarchicalFederation, name: str) -> Any:
    return fed._runtime.peers.roles[name]  # type: ignore[attr-defined]


def latest(fed: HierarchicalFederation) -> GlobalMetaModel:
    model = fed.get_global_meta_model()
    assert model is not None
    return model


def fill(fed: HierarchicalFederation) -> None:
    clients = [f"{b}_{i}" for b in range(BASKETS) for i in range(PER_BASKET)]
    assert all(fed.submit_updates(clients, np.full((len(clients), DIMENSION), 0.1)))


def release_of_all(fed: HierarchicalFederation) -> None:
    """A round whose release holds every live basket, and in which none refused."""
    refused = fed.get_stats()["n_sessions_refused"]
    fill(fed)
    assert fed.force_aggregate() is not None
    stats = fed.get_stats()
    assert latest(fed).n_baskets == stats["n_baskets"]
    assert stats["n_sessions_refused"] == refused
    fed.advance_round()


def forge(fed: HierarchicalFederation, change: Forge) -> Callable[[], None]:
    """Let the global aggregator announce changed contexts, until the returned function is called."""
    aggregator = role(fed, "global")
    honest = aggregator._terms

    def forged(*args: Any) -> Any:
        terms = honest(*args)
        return replace(terms, context=change(terms.context))

    aggregator._terms = forged

    def stop() -> None:
        aggregator._terms = honest

    return stop


def with_a_stranger(context: SessionContext) -> SessionContext:
    stranger = Party("zz_basket_0", IdentityKeyPair.generate().public_bytes)
    return replace(context, parties=(*context.parties, stranger))


def with_another_key(context: SessionContext) -> SessionContext:
    first = replace(context.parties[0], identity_public=IdentityKeyPair.generate().public_bytes)
    return replace(context, parties=(first, *context.parties[1:]))


def with_another_model(context: SessionContext) -> SessionContext:
    return replace(context, model_hash=bytes(32))


@pytest.mark.parametrize("change", [with_a_stranger, with_another_key, with_another_model])
def test_a_session_that_is_not_what_the_baskets_were_told_is_refused_and_counted(
    fed: HierarchicalFederation, change: Forge
) -> None:
    fill(fed)
    stop = forge(fed, change)
    assert fed.force_aggregate() is None
    stats = fed.get_stats()
    assert stats["n_sessions_refused"] == BASKETS
    assert (stats["n_layer2_aggregations"], stats["privacy_consumed_epsilon"]) == (0, 0.0)
    stop()
    assert fed.force_aggregate() is not None
    assert latest(fed).n_baskets == BASKETS


def test_a_coordinator_that_starts_from_another_release_is_refused(fed: HierarchicalFederation) -> None:
    release_of_all(fed)
    aggregator = role(fed, "global")
    honest = aggregator._last.model
    aggregator._last.model = replace(honest, aggregate=honest.aggregate + 1)
    fill(fed)
    assert fed.force_aggregate() is None
    assert fed.get_stats()["n_sessions_refused"] == BASKETS


def test_without_distribution_there_is_no_release_to_hold_a_session_against(open_federation: Any) -> None:
    fed = open_with(open_federation, distribute_to_baskets=False)
    release_of_all(fed)
    release_of_all(fed)
    fill(fed)
    stop = forge(fed, with_another_model)
    assert fed.force_aggregate() is not None
    stop()
    fed.advance_round()
    fill(fed)
    forge(fed, with_a_stranger)
    assert fed.force_aggregate() is None


def test_baskets_that_open_split_and_close_are_known_to_all(fed: HierarchicalFederation) -> None:
    release_of_all(fed)
    fed.register_clients([(f"new_{i}", "elsewhere") for i in range(2)])
    fed.split_basket("d0")
    assert all(fed.submit_updates(["new_0", "new_1"], np.full((2, DIMENSION), 0.1)))
    release_of_all(fed)
    assert latest(fed).n_baskets == BASKETS + 2
    first = next(p.basket_id for p in fed._driver.operations.routing_table().places if p.domain_id == "d0")
    fed.disband_basket(first)
    assert all(fed.submit_updates(["new_0", "new_1"], np.full((2, DIMENSION), 0.1)))
    release_of_all(fed)
    assert latest(fed).n_baskets == BASKETS + 1


@pytest.mark.parametrize("lost", [["basket:0"], ["directory"], ["global"], ["basket:0", "global"]], ids=repr)
def test_actors_that_come_back_with_other_keys_join_the_next_session(
    fed: HierarchicalFederation, lost: list[str]
) -> None:
    release_of_all(fed)
    version = latest(fed).version
    for name in lost:
        fed._runtime.kill(name)
    release_of_all(fed)
    assert latest(fed).version == version + 1
    release_of_all(fed)


def test_an_actor_that_dies_while_it_is_told_takes_part_under_its_new_key(
    fed: HierarchicalFederation,
) -> None:
    release_of_all(fed)
    fed.register_clients([("new_0", "elsewhere"), ("new_1", "elsewhere")])
    fill(fed)
    assert all(fed.submit_updates(["new_0", "new_1"], np.full((2, DIMENSION), 0.1)))
    fed._driver.run_layer1(None, True)
    fed._runtime.kill("basket:0")
    assert fed._driver.run_layer2(True).dropped == ()
    assert latest(fed).n_baskets == BASKETS
    stats = fed.get_stats()
    # It refuses the roster that still names its predecessor's key, and follows the next.
    assert (stats["n_sessions_refused"], stats["n_layer2_aborts"]) == (1, 0)


def test_two_drivers_keep_each_others_baskets_in_the_sessions(fed: HierarchicalFederation) -> None:
    release_of_all(fed)
    other = Driver(fed._driver.supervisor, fed._driver.client._clock)
    fed.register_clients([(f"mine_{i}", "mine") for i in range(2)])
    fill(fed)
    other.run_layer1(None, True)
    assert other.run_layer2(True).model is not None
    fed.advance_round()
    assert latest(fed).n_baskets == BASKETS
    assert all(fed.submit_updates(["mine_0", "mine_1"], np.full((2, DIMENSION), 0.1)))
    release_of_all(fed)


def test_what_a_driver_did_not_live_to_tell_is_told_after_the_first_refusal(
    fed: HierarchicalFederation,
) -> None:
    release_of_all(fed)
    before = role(fed, "basket:0")._last.model
    release_of_all(fed)
    host = role(fed, "basket:0")
    host._last.model = before
    fill(fed)
    assert fed.force_aggregate() is not None, "three of four went on without it"
    assert fed.get_stats()["n_sessions_refused"] == 1
    assert fed.force_aggregate() is None, "it is fresh, but alone"
    fed.advance_round()
    clients = [f"{b}_{i}" for b in range(1, BASKETS) for i in range(PER_BASKET)]
    assert all(fed.submit_updates(clients, np.full((len(clients), DIMENSION), 0.1)))
    assert fed.force_aggregate() is not None
    assert latest(fed).n_baskets == BASKETS
    assert fed.get_stats()["n_sessions_refused"] == 1


def test_a_late_word_of_an_older_release_changes_nothing(fed: HierarchicalFederation) -> None:
    release_of_all(fed)
    host = role(fed, "basket:0")
    older = host._last.model
    release_of_all(fed)
    newer = host._last.model
    host.adopt(older)
    assert host._last.model is newer
    release_of_all(fed)


def test_an_actor_that_was_told_nothing_joins_no_strangers(fed: HierarchicalFederation) -> None:
    fill(fed)
    fed._driver.run_layer1(None, True)
    where = fed._driver.operations.routing_table()
    outcome = role(fed, "global").run(where.places, where.round_id, True, fed._driver.client.now())
    assert outcome.model is None
    assert fed.get_stats()["n_sessions_refused"] == BASKETS


def test_an_actor_that_another_driver_starts_before_a_session_is_told_too(
    fed: HierarchicalFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between this driver's look at who is where, and at who is registered."""
    fill(fed)
    driver = fed._driver
    other = Driver(Supervisor(fed._runtime, driver.supervisor.identity, fed.plan), driver.client.now)
    other.attach()
    run_layer1 = driver.run_layer1

    def meanwhile(baskets: Any, force: bool) -> Any:
        outcomes = run_layer1(baskets, force)
        newcomers = Member("new_0", "new"), Member("new_1", "new")
        other.operations.run(Directory.register, newcomers, driver.client.now())
        return outcomes

    monkeypatch.setattr(driver, "run_layer1", meanwhile)
    assert fed.force_aggregate() is not None
    assert role(fed, "global").stats()["violations"] == []
    assert role(fed, f"basket:{BASKETS}").know_parties(()).epoch == 1


def test_a_directory_that_has_no_table_for_a_driver_without_one_is_told_so(
    fed: HierarchicalFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([News()] * 3)
    monkeypatch.setattr(role(fed, "directory"), "routing_table", lambda known: next(answers))
    fed._driver.client.routing_table = None
    with pytest.raises(ProtocolViolation, match="no routing table"):
        fed.get_stats()
