"""A driver stops before or after any call of any operation; whoever comes next goes on."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from itertools import chain, count, cycle
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, Rejection, UsageError
from tests.operations.stopping import CLIENTS, IDS, ROWS, Scene, Stopper

Act = Callable[[HierarchicalFederation], Any]

OPERATIONS: dict[str, Act] = {
    "register_client": lambda f: f.register_client("new", "c"),
    "register_clients": lambda f: f.register_clients([("new", "c"), ("newer", "f"), ("newest", "f")]),
    "unregister_client": lambda f: f.unregister_client("c0"),
    "split_basket": lambda f: f.split_basket("c_basket_0"),
    "disband_basket": lambda f: f.disband_basket("c_basket_0"),
    "advance_round": lambda f: f.advance_round(),
    "submit_update": lambda f: f.submit_update("c0", ROWS[0]),
    "offer_update": lambda f: f.offer_update("c0", ROWS[0]),
    "submit_updates": lambda f: f.submit_updates(IDS, ROWS),
    "run_gossip_round": lambda f: f.run_gossip_round(),
    "maybe_aggregate": lambda f: f.maybe_aggregate(),
    "force_aggregate": lambda f: f.force_aggregate(),
    "get_global_model": lambda f: f.get_global_model(),
    "get_global_meta_model": lambda f: f.get_global_meta_model(),
    "get_basket_model": lambda f: f.get_basket_model("c_basket_0"),
    "get_basket_meta_model": lambda f: f.get_basket_meta_model("c_basket_0"),
    "get_meta_params": lambda f: f.get_meta_params(),
    "get_client": lambda f: f.get_client("c0"),
    "get_basket": lambda f: f.get_basket("c_basket_0"),
    "get_stale_baskets": lambda f: f.get_stale_baskets(),
    "get_privacy_budget": lambda f: f.get_privacy_budget("c0"),
    "renew_budget": lambda f: f.renew_budget(60.0, 1e-5, operator="op"),
    "renewal_message": lambda f: f.renewal_message(60.0, 1e-5, operator="op"),
    "get_stats": lambda f: f.get_stats(),
    "waiting_for": lambda f: f.waiting_for(),
    "terminate": lambda f: f.terminate(),
    "close": lambda f: f.close(),
}
CALLS_NOBODY = {
    "attach": "makes a driver",
    "restore": "makes a driver and all roles",
    "federation_id": "what a driver knows",
    "faults": "asks the directory one thing",
    "lost_updates": "asks nobody",
    "get_local_states": "without Layer 2 (below)",
    "publish_metrics": "goes to the runtime, to no role",
    "map_tasks": "tasks are no role's",
    "tasks_beside": "tasks are no role's",
    "fit": "registers, submits, gossips, aggregates and moves on, each as above",
    "signing_scope": "asks the accountant one thing, and tells what the baskets must know",
    "submit_update_async": "sends as submit_update does, and hears later (federation/test_pipeline.py)",
    "get_clients": "asks as get_client does",
    "get_ceilings": "asks the accountant one thing",
    "site_ledger_head": "asks the accountant one thing",
    "note_site_ledger": "has the accountant do one thing",
    "prove_receipt": "asks one basket actor one thing",
    "get_roster": "asks the directory one thing",
    "sign_roster": "has the directory do one thing, with an operator's key",
    "change_client_key": "the steps of register_client, with a client that is there",
}
SENDS = {"submit_update", "offer_update", "submit_updates"}
RECORDED = {
    "register_client",
    "register_clients",
    "unregister_client",
    "split_basket",
    "disband_basket",
    "advance_round",
}
ENDS = {"terminate", "close"}

Next = Callable[[Scene, HierarchicalFederation], HierarchicalFederation]
LIVING: list[Next] = [
    lambda scene, _: scene.another_driver(),
    lambda _, old: old,
    lambda scene, _: scene.fed,
]
DEAD: list[Next] = [
    lambda scene, _: (scene.kill("directory"), scene.another_driver())[1],
    lambda scene, old: (scene.kill("directory"), old)[1],
]


EACH = 1 if os.environ.get("CI") else 3
"""CI tries each of the points that follow; elsewhere every third is tried."""

EVERY_POINT = pytest.mark.parametrize("step", [2 * EACH, pytest.param(1, marks=pytest.mark.slow)])
"""Where a driver stops: before its first call and after each; by hand also before each of the others.

Nothing is sent between an answer and the next call, so all others find the same. The driver alone, if it goes
on after all, has taken that answer or has not.
"""


def points(step: int, most: int) -> Iterator[int]:
    """Points of a `Stopper`."""
    return chain((0,), range(1, most, step))


def test_every_public_operation_is_stopped() -> None:
    public = {name for name, _ in inspect.getmembers(HierarchicalFederation) if not name.startswith("_")}
    assert public == set(OPERATIONS) | set(CALLS_NOBODY)


@pytest.mark.long
@EVERY_POINT
@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - ENDS))
@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
def test_a_driver_may_stop_anywhere(name: str, step: int, scene_of: Callable[..., Scene]) -> None:
    """Whoever it is; after operations with a record also if the directory has died."""
    act, driver, survivor = OPERATIONS[name], cycle(LIVING), cycle([who for who in DEAD for _ in range(2)])
    for at, who in [
        (at, who) for at in points(step, 60) for who in (driver, survivor)[: 1 + (name in RECORDED)]
    ]:
        scene = scene_of()
        fed = scene.fed
        if name not in SENDS:
            assert all(fed.submit_updates(IDS, ROWS))
        old = scene.another_driver()
        old.offer_update("c0", 2 * ROWS[0])  # over its cap, or it is the first: it knows the way from now on
        stopper = Stopper(fed)
        if not stopper.run(lambda fed=fed: act(fed), at):
            assert 0 < stopper.passed <= at
            return
        go_on(scene, next(who)(scene, old), act, name)
    pytest.fail("it has more calls than are stopped here")


@pytest.mark.long
@EVERY_POINT
@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
@pytest.mark.parametrize("name", ["force_aggregate", "split_basket"])
def test_a_driver_may_stop_anywhere_where_sums_are_masked(
    name: str, step: int, scene_of: Callable[..., Scene]
) -> None:
    """The roster and the last release reach every basket actor, whoever stopped before they did."""
    act, driver = OPERATIONS[name], cycle(LIVING)
    for at in points(step, 80):
        scene = scene_of(layer2={"central_dp_epsilon": 5.0})
        assert all(scene.fed.submit_updates(IDS, ROWS))
        old = scene.another_driver()
        stopper = Stopper(scene.fed)
        if not stopper.run(lambda fed=scene.fed: act(fed), at):
            assert 0 < stopper.passed <= at
            return
        go_on(scene, next(driver)(scene, old), act, name)
    pytest.fail("it has more calls than are stopped here")


def go_on(scene: Scene, driver: HierarchicalFederation, act: Act, name: str) -> None:
    driver.get_stats()
    scene.check_places()
    known = {c for c, _ in CLIENTS if driver.get_client(c) is not None}
    assert set(IDS) - known <= ({"c0"} if name == "unregister_client" else set())

    # Nothing that was accepted is lost or counted twice: sent again, it is a replay, and one release has all.
    for client, receipt in zip(IDS, driver.submit_updates(IDS, ROWS, 0), strict=True):
        expected = {Rejection.UNKNOWN_CLIENT} if client not in known else {None, Rejection.REPLAYED}
        expected |= {Rejection.PARTICIPATION_CAP} if client == "c0" and name in SENDS else set()
        assert receipt.reason in expected, (client, receipt)
        assert name in SENDS or receipt.reason is not None
    driver.force_aggregate()
    if name != "run_gossip_round":
        expected = np.where([i < len(IDS) and IDS[i] in known for i in range(ROWS.shape[1])], 1.0, 0.0)
        released = scene.released() * len(known)
        if name == "advance_round" and scene.role("directory")._round_id == 1:
            expected *= 2**-0.5  # a round old
        if name in SENDS:
            expected[0], released[0] = (
                0.0,
                0.0,
            )  # it was sent twice with different values, and one was accepted
        np.testing.assert_allclose(released, expected, atol=0.01)
    assert driver.force_aggregate() is None

    # The next round is a round as any other.
    driver.run_gossip_round()
    driver.advance_round()
    scene.check_places()
    here = [c for c, _ in CLIENTS if c in known]
    assert all(driver.submit_updates(here, ROWS[[IDS.index(c) for c in here]]))
    driver.run_gossip_round()
    scene.check_gossip()
    assert driver.force_aggregate() is not None

    # And the operation can be asked for again, by whoever did not hear the answer.
    with suppress(UsageError) if name in ("split_basket", "disband_basket") else nullcontext():
        act(driver)
    driver.get_stats()
    scene.check_places()


@pytest.mark.parametrize("name", sorted(ENDS))
def test_an_end_that_was_stopped_is_finished_by_the_next(name: str, scene_of: Callable[..., Scene]) -> None:
    for at in count():
        scene = scene_of()
        other = scene.another_driver()
        stopper = Stopper(scene.fed)
        if not stopper.run(lambda scene=scene: OPERATIONS[name](scene.fed), at):
            assert at > 0
            return
        other.terminate()
        assert scene.fed._runtime.names() == ()
        assert scene.fed._runtime.card() is None


MEANWHILE = [
    ("finished", 1, 4 * EACH),
    ("finished and another", 3, 4 * EACH),
    ("directory", 1, 4 * EACH),
    ("directory, and finished", 3, 4 * EACH),
    ("accountant", 1, 8 * EACH),
]
EVERY_CALL = [pytest.param(what, 1, 2, marks=pytest.mark.slow) for what, _, _ in MEANWHILE]


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(RECORDED))
@pytest.mark.parametrize(("meanwhile", "first", "step"), [*MEANWHILE, *EVERY_CALL])
@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
def test_finishing_twice_changes_nothing(
    name: str, meanwhile: str, first: int, step: int, scene_of: Callable[..., Scene]
) -> None:
    """After a call another driver finishes the same operation, and begins its own, or a role dies.

    After every call something happens: each thing after every second or fourth one, by hand after all.
    """
    act = OPERATIONS[name]
    for at in range(first, 60, step):
        scene = scene_of()
        fed, other = scene.fed, scene.another_driver()
        assert all(fed.submit_updates(IDS, ROWS))
        stopper = Stopper(fed)

        def happens(scene: Scene = scene, other: HierarchicalFederation = other) -> None:
            if meanwhile == "accountant" or meanwhile.startswith("directory"):
                scene.kill(meanwhile.split(",")[0])
            if "finished" in meanwhile:
                other.get_stats()
            if "another" in meanwhile:
                other.register_client("other", "f")

        stopper.run(lambda fed=fed: act(fed), at, happens)
        if stopper.passed <= at:
            return
        stats = fed.get_stats()
        assert (stats["n_baskets"], stats["n_clients"]) in done(name, "another" in meanwhile), at
        go_on(scene, fed, act, name)
    pytest.fail("it has more calls than are watched here")


@pytest.mark.parametrize("name", sorted(RECORDED))
@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
def test_what_others_have_finished_is_not_done_again_once_the_directory_has_died(
    name: str, scene_of: Callable[..., Scene]
) -> None:
    """A slow driver is told the answer that it waits for, though the directory that gave it is no more."""
    for at in points(2 * EACH, 60):
        scene = scene_of()
        fed, other = scene.fed, scene.another_driver()
        answers: list[Any] = []

        def happens(scene: Scene = scene, other: HierarchicalFederation = other) -> None:
            other.get_stats()
            other.register_client("other", "f")
            other.register_client("another", "f")
            scene.kill("directory")
            other.get_stats()

        stopper = Stopper(fed)
        stopper.run(lambda fed=fed, answers=answers: answers.append(OPERATIONS[name](fed)), at, happens)
        if stopper.passed <= at:
            return
        (answer,), stats = answers, fed.get_stats()
        live = {place.basket_id for place in fed._driver.operations.routing_table().places}
        match name:
            case "advance_round":
                assert answer == stats["current_round"] == 1, at
            case "unregister_client":
                assert (answer, stats["n_clients"]) == (True, 9), at
            case "split_basket":
                assert len(set(answer) & live) == 2, at
            case "disband_basket":
                assert "c_basket_0" not in live, at
            case _:
                baskets = [answer] if isinstance(answer, str) else answer
                assert baskets[0] == fed._driver.operations.locate(["new"])["new"][0], at
        scene.check_places()
    pytest.fail("it has more calls than are watched here")


def done(name: str, another: bool) -> set[tuple[int, int]]:
    """Baskets and clients after an operation, and perhaps after another client has come to domain f."""
    baskets, clients = {
        "register_client": (3, 9),
        "register_clients": (4, 11),
        "unregister_client": (2, 7),
        "split_basket": (3, 8),
        "disband_basket": (2, 8),
        "advance_round": (2, 8),
    }[name]
    return {(baskets + another - (another and name == "register_clients"), clients + another)}
