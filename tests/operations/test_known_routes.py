"""A driver asks the directory once where a client is; whatever happens to the client then costs no update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from scarcity_ray import Rejection
from scarcity_ray.actors.names import DIRECTORY
from scarcity_ray.federation import operations
from tests.operations.stopping import CLIENTS, IDS, ROWS, Scene, Stopped, Stopper


class Asked(Stopper):
    """Counts a driver's calls to the directory."""

    def __init__(self, fed: Any) -> None:
        super().__init__(fed)
        peers = fed._driver.supervisor.peers
        handle, self.directory = peers.handle, 0

        def counted(name: str) -> Any:
            self.directory += name == DIRECTORY
            return handle(name)

        peers.handle = counted


@pytest.fixture
def scene(scene_of: Callable[..., Scene]) -> Scene:
    return scene_of(buffer={"participation_cap": 9})


def test_a_client_that_was_found_is_not_looked_up_again(scene: Scene) -> None:
    fed = scene.another_driver()
    asked = Asked(fed)
    for number in range(3):
        assert fed.offer_update("c0", (number + 1) * ROWS[0])
    assert asked.directory == 1
    assert all(fed.submit_updates(IDS, 9 * ROWS))
    assert asked.directory == 2, "the others were not known"
    assert all(fed.submit_updates(IDS, 8 * ROWS))
    assert asked.directory == 2


def test_a_driver_knows_where_its_own_operations_have_put_clients(scene: Scene) -> None:
    home, _ = scene.fed.split_basket("c_basket_0")
    asked = Asked(scene.fed)
    receipts = scene.fed.submit_updates(IDS, ROWS)
    assert all(receipts)
    assert home in {receipt.basket_id for receipt in receipts}
    assert asked.directory == 0


@pytest.mark.parametrize("settle", ["split", "disband"])
def test_a_client_that_another_driver_moved_is_found_where_it_is(scene: Scene, settle: str) -> None:
    old = scene.another_driver()
    home = old.offer_update("c0", ROWS[0]).basket_id
    if settle == "split":
        scene.fed.split_basket(home)
    else:
        for client in ("c5", "c6", "c7"):
            scene.fed.register_client(client, "c")
        scene.fed.unregister_client("c1")
        scene.fed.disband_basket(home)
    receipt = old.offer_update("c0", 2 * ROWS[0])
    assert receipt.accepted
    assert receipt.basket_id != home
    assert old.offer_update("c0", 2 * ROWS[0]).reason is Rejection.REPLAYED
    scene.check_places()


def test_a_client_that_left_is_unknown_and_counted_once(scene: Scene) -> None:
    old = scene.another_driver()
    assert old.offer_update("c0", ROWS[0])
    scene.fed.unregister_client("c0")
    assert old.offer_update("c0", 2 * ROWS[0]).reason is Rejection.UNKNOWN_CLIENT
    assert scene.role(DIRECTORY)._unknown == 1
    scene.fed.register_client("c0", "e")
    receipt = old.offer_update("c0", 3 * ROWS[0])
    assert receipt.accepted
    assert receipt.basket_id == "e_basket_0"


def test_an_operation_that_its_driver_left_is_finished_by_whoever_meets_it(scene: Scene) -> None:
    """Stopped at any point of a split, the clients' updates are taken, each by one basket."""
    for at in range(40):
        old, fed = scene.another_driver(), scene.another_driver()
        home = old.offer_update("c0", (2 * at + 1) * ROWS[0]).basket_id
        assert home is not None
        stopped = False
        with suppress(Stopped):
            stopped = Stopper(fed).run(lambda fed=fed, home=home: fed.split_basket(home), at)
        assert old.offer_update("c0", (2 * at + 2) * ROWS[0]).accepted
        if not stopped:
            assert at > 5
            break
        old.get_stats()
        scene.check_places()
        for client, domain in CLIENTS:
            if domain == "c":
                scene.fed.unregister_client(client)
        for client, domain in CLIENTS:
            if domain == "c":
                scene.fed.register_client(client, domain)
        scene.fed.advance_round()
    else:
        pytest.fail("a split has more calls than are stopped here")


def test_a_driver_keeps_so_many_routes_and_no_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "ROUTES", 3)
    fed = scene.another_driver()
    for client in IDS:
        assert fed.offer_update(client, ROWS[0])
    assert 0 < len(fed._driver.operations._routes) <= 3
    assert all(fed.submit_updates(IDS, 2 * ROWS))
    assert len(fed._driver.operations._routes) <= 3
