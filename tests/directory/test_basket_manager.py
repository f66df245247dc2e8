from __future__ import annotations

import pickle

import numpy as np
import pytest

from scarcity_ray.config import BasketConfig
from scarcity_ray.directory import BasketManager, BasketStatus, Move
from scarcity_ray.errors import UsageError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def manager_with(clock: Clock, **config: object) -> BasketManager:
    return BasketManager(BasketConfig(**config), clock=clock)


def test_first_client_creates_the_first_basket(clock: Clock) -> None:
    manager = manager_with(clock)
    assert manager.get_stats() == {
        "n_clients": 0,
        "n_baskets": 0,
        "baskets_by_domain": {},
        "avg_clients_per_basket": 0.0,
        "n_stale_baskets": 0,
    }
    assert manager.add_client("hospital_1", "healthcare", np.array([1.0, 0.5])) == "healthcare_basket_0"
    info = manager.get_basket("healthcare_basket_0")
    assert info is not None
    assert (info.clients, info.status) == ({"hospital_1"}, BasketStatus.FORMING)
    client = manager.get_client("hospital_1")
    assert client is not None
    assert (client.joined_at, client.last_active, client.n_updates, client.trust_score) == (1000, 1000, 0, 1)


def test_a_full_basket_opens_a_new_one_and_the_oldest_with_room_fills_first(clock: Clock) -> None:
    manager = manager_with(clock, min_clients=1, max_clients=2)
    assert [manager.add_client(f"c{i}", "d") for i in range(5)] == [f"d_basket_{i // 2}" for i in range(5)]
    manager.remove_client("c0")
    assert manager.add_client("c9", "d") == "d_basket_0"
    assert manager.domain_baskets("d") == ("d_basket_0", "d_basket_1", "d_basket_2")


def test_lifecycle_forming_active_stale_and_back(clock: Clock) -> None:
    manager = manager_with(clock, min_clients=2, stale_threshold=10.0)
    for name in ("a", "b"):
        manager.add_client(name, "d")
    status = lambda: manager.get_basket("d").status  # noqa: E731
    assert status() is BasketStatus.ACTIVE
    clock.now += 10
    assert status() is BasketStatus.ACTIVE
    clock.now += 1
    assert status() is BasketStatus.STALE
    assert manager.get_stale_baskets() == ["d_basket_0"]
    assert manager.get_stats()["n_stale_baskets"] == 1
    assert manager.get_stale_baskets(threshold=100) == []
    manager.touch_client("a")
    assert status() is BasketStatus.ACTIVE
    clock.now += 11
    manager.touch_basket("d")
    assert status() is BasketStatus.ACTIVE
    manager.remove_client("a")
    assert status() is BasketStatus.FORMING
    clock.now += 11
    assert status() is BasketStatus.STALE
    manager.disband_basket("d")
    assert manager.get_basket("d_basket_0").status is BasketStatus.DISBANDED


def test_registering_again_touches_and_another_domain_is_refused(clock: Clock) -> None:
    manager = manager_with(clock)
    manager.add_client("a", "d", [1.0])
    clock.now += 5
    assert manager.add_client("a", "d", [2.0]) == "d_basket_0"
    client = manager.get_client("a")
    assert (client.last_active, client.joined_at, client.n_updates, client.features.tolist()) == (
        1005,
        1000,
        0,
        [2],
    )
    with pytest.raises(UsageError, match="unregister it first"):
        manager.add_client("a", "e")
    assert manager.get_stats()["n_clients"] == 1


@pytest.mark.parametrize("bad", ["", "x" * 201, "a\nb", "\x00", "\ud800", None, 3, b"a", ["a"]])
def test_ids_that_cannot_be_names_are_refused(bad: object) -> None:
    manager = BasketManager()
    with pytest.raises(UsageError):
        manager.add_client(bad, "d")
    with pytest.raises(UsageError):
        manager.add_client("c", bad)
    with pytest.raises(UsageError):
        manager.create_basket(bad)
    assert manager.get_stats()["n_baskets"] == 0


@pytest.mark.parametrize("bad", [[], [[1.0]], [np.nan], ["x"], 3.0, [None], object(), [10**400]])
def test_features_that_are_no_vector_are_refused(bad: object) -> None:
    manager = BasketManager()
    with pytest.raises(UsageError, match="features"):
        manager.add_client("c", "d", bad)
    assert manager.get_client("c") is None


def test_a_domain_name_stands_for_its_only_basket(clock: Clock) -> None:
    manager = manager_with(clock, min_clients=1, max_clients=2)
    manager.add_client("a", "d")
    assert manager.resolve("d") == manager.resolve("d_basket_0") == "d_basket_0"
    assert manager.get_basket_clients("d") == {"a"}
    manager.create_basket("d")
    for call in (manager.resolve, manager.get_basket, manager.get_basket_clients, manager.touch_basket):
        with pytest.raises(UsageError, match="d_basket_0, d_basket_1"):
            call("d")
    manager.disband_basket("d_basket_0")
    assert manager.resolve("d") == "d_basket_1"


def test_a_domain_named_like_a_basket_does_not_shadow_it(clock: Clock) -> None:
    manager = manager_with(clock)
    manager.add_client("a", "d")
    manager.add_client("b", "d_basket_0")
    assert manager.get_basket_clients("d_basket_0") == {"a"}
    assert manager.get_basket_clients("d_basket_0_basket_0") == {"b"}


def test_unknown_ids(clock: Clock) -> None:
    manager = manager_with(clock)
    assert manager.get_basket("x") is None
    assert manager.get_basket_clients("x") == set()
    assert manager.get_client("x") is None
    assert manager.get_client_basket("x") is None
    assert manager.former_basket("x") is None
    assert manager.moves_from("x") == ()
    assert manager.remove_client("x") is False
    for call in (
        manager.resolve,
        manager.touch_basket,
        manager.touch_client,
        manager.disband_basket,
        manager.split_basket,
    ):
        with pytest.raises(UsageError):
            call("x")


def test_what_a_caller_does_to_a_returned_object_changes_nothing_here(clock: Clock) -> None:
    manager = manager_with(clock)
    features = np.array([1.0])
    manager.add_client("a", "d", features)
    features[0] = 9
    info, client = manager.get_basket("d"), manager.get_client("a")
    info.clients.clear()
    info.status = BasketStatus.DISBANDED
    client.features[0] = 7
    client.basket_id = None
    manager.get_basket_clients("d").clear()
    manager.get_stats()["baskets_by_domain"].clear()
    manager.live_baskets()[0].clients.clear()
    assert manager.get_basket("d").clients == {"a"}
    assert manager.get_client("a").features.tolist() == [1.0]
    assert manager.get_client_basket("a") == "d_basket_0"
    assert manager.get_stats()["baskets_by_domain"] == {"d": 1}


def test_an_empty_basket_is_marked_and_cleaned_up_and_its_index_never_used_again(clock: Clock) -> None:
    manager = manager_with(clock)
    manager.create_basket("other")
    manager.add_client("a", "d")
    manager.remove_client("a")
    assert manager.get_basket("d").clients == set()
    assert manager.cleanup() == ("d_basket_0",)
    assert manager.cleanup() == ()
    assert manager.get_basket("d_basket_0") is None
    assert manager.domain_baskets("d") == ()
    assert manager.get_stats()["baskets_by_domain"] == {"other": 1}
    assert manager.add_client("a", "d") == "d_basket_1"


def test_a_newcomer_saves_an_empty_basket(clock: Clock) -> None:
    manager = manager_with(clock)
    manager.add_client("a", "d")
    manager.remove_client("a")
    assert manager.add_client("b", "d") == "d_basket_0"
    assert manager.cleanup() == ()


def test_disband_reassigns_and_opens_baskets_when_full(clock: Clock) -> None:
    manager = manager_with(clock, min_clients=1, max_clients=3)
    for i in range(7):
        manager.add_client(f"c{i}", "d")
    moves = manager.disband_basket("d_basket_0")
    assert moves == (
        Move("c0", "d_basket_0", "d_basket_2"),
        Move("c1", "d_basket_0", "d_basket_2"),
        Move("c2", "d_basket_0", "d_basket_3"),
    )
    assert manager.moves_from("d_basket_0") == moves
    assert manager.get_client_basket("c2") == "d_basket_3"
    record = manager.get_basket("d_basket_0")
    assert (record.status, record.clients) == (BasketStatus.DISBANDED, set())
    assert "d_basket_0" not in [b.basket_id for b in manager.live_baskets()]
    for call in (manager.disband_basket, manager.split_basket, manager.touch_basket, manager.resolve):
        with pytest.raises(UsageError, match="disbanded"):
            call("d_basket_0")


def test_split_by_features_separates_groups(clock: Clock) -> None:
    manager = manager_with(clock)
    groups = {}
    for i in range(10):
        groups[f"c{i}"] = i % 2
        manager.add_client(f"c{i}", "d", [1e300 * (i % 2), 1e290 * i])
    first, second = manager.split_basket("d")
    assert {frozenset(manager.get_basket_clients(b)) for b in (first, second)} == {
        frozenset(c for c, g in groups.items() if g == side) for side in (0, 1)
    }
    assert (first, second) == ("d_basket_1", "d_basket_2")
    assert manager.moves_from("d_basket_0") == tuple(
        Move(c, "d_basket_0", manager.get_client_basket(c)) for c in sorted(groups)
    )


@pytest.mark.parametrize(
    "features", [lambda i: None, lambda i: [1.0], lambda i: [0.0] * (1 + i % 2), lambda i: None if i else [1]]
)
def test_split_at_random_is_even_and_follows_the_rng(clock: Clock, features: object) -> None:
    halves = set()
    for seed in (1, 1, 2):
        manager = BasketManager(clock=clock, rng=np.random.Generator(np.random.PCG64DXSM(seed)))
        for i in range(11):
            manager.add_client(f"c{i:02}", "d", features(i))
        first, second = manager.split_basket("d_basket_0")
        assert (len(manager.get_basket_clients(first)), len(manager.get_basket_clients(second))) == (6, 5)
        halves.add(frozenset(manager.get_basket_clients(first)))
    assert len(halves) == 2


def test_split_needs_two_clients(clock: Clock) -> None:
    manager = manager_with(clock)
    manager.add_client("a", "d")
    with pytest.raises(UsageError, match="needs two"):
        manager.split_basket("d")
    assert manager.resolve("d") == "d_basket_0"
    manager.add_client("b", "d")
    assert [len(manager.get_basket_clients(b)) for b in manager.split_basket("d")] == [1, 1]


def test_cross_domain_newcomers_fill_the_oldest_basket_which_keeps_its_domain(clock: Clock) -> None:
    manager = manager_with(clock, min_clients=1, max_clients=2, allow_cross_domain=True)
    assert manager.add_client("a", "d") == "d_basket_0"
    assert manager.add_client("b", "e") == "d_basket_0"
    assert manager.add_client("c", "e") == "e_basket_0"
    assert manager.get_basket("d_basket_0").domain_id == "d"
    assert manager.get_client("b").domain_id == "e"
    assert manager.get_client_basket("b") == "d_basket_0"
    with pytest.raises(UsageError, match="'e'"):
        manager.add_client("b", "d")


def test_activity_can_be_reported_in_bulk_and_never_moves_back(clock: Clock) -> None:
    manager = manager_with(clock)
    manager.add_client("a", "d")
    manager.touch_client("a", n_updates=3, at=1007.0)
    manager.touch_client("a", n_updates=2, at=1003.0)
    client = manager.get_client("a")
    assert (client.n_updates, client.last_active, manager.get_basket("d").last_activity) == (5, 1007, 1007)
    with pytest.raises(UsageError):
        manager.touch_client("a", n_updates=-1)


def test_trust_is_what_was_last_recorded(clock: Clock) -> None:
    manager = manager_with(clock)
    manager.add_client("a", "d")
    manager.record_trust("a", 0.25)
    manager.touch_client("a", n_updates=1000)
    assert manager.get_client("a").trust_score == 0.25
    manager.record_trust("never seen", 0.5)
    assert manager.get_client("never seen") is None
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="trust"):
            manager.record_trust("a", bad)


def test_leaving_and_coming_back_does_not_restore_trust(clock: Clock) -> None:
    manager = manager_with(clock)
    manager.add_client("a", "d")
    assert manager.former_basket("a") is None
    manager.remove_client("a")
    manager.record_trust("a", 0.5)  # told after it had left
    assert manager.former_basket("a") == "d_basket_0"
    manager.add_client("a", "e")
    assert manager.get_client("a").trust_score == 0.5
    assert manager.former_basket("a") == "d_basket_0"


def test_of_those_that_left_the_last_are_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scarcity_ray.directory.manager.MOST_DEPARTURES", 2)
    manager = manager_with(clock)
    for client in ("a", "b", "a", "c"):
        manager.add_client(client, "d")
        manager.remove_client(client)
    assert [manager.former_basket(client) is not None for client in "abc"] == [True, False, True]


def test_a_manager_survives_pickling() -> None:
    manager = BasketManager()
    manager.add_client("a", "d", [1.0])
    copy = pickle.loads(pickle.dumps(manager))
    assert copy.add_client("b", "d") == "d_basket_0"
    assert manager.get_basket_clients("d") == {"a"}


def test_a_manager_that_came_back_empty_takes_its_baskets_over(clock: Clock) -> None:
    manager = manager_with(clock, min_clients=1, max_clients=2)
    for index in (10, 2):
        manager.restore_basket(
            f"d_basket_{index}", "d", [(f"c{index}", "d", [1.0]), (f"x{index}", "d", None)]
        )
    assert manager.domain_baskets("d") == ("d_basket_2", "d_basket_10")
    assert manager.get_client_basket("x10") == "d_basket_10"
    assert manager.get_client("c2").features.tolist() == [1.0]
    assert manager.add_client("new", "d") == "d_basket_11"
    before = manager.get_stats()
    for basket_id, domain, clients in (
        ("d_basket_10", "d", []),
        ("d_basket_12", "d", [("fresh", "d", None), ("new", "d", None)]),
        ("d_basket_x", "d", []),
        ("e_basket_0", "d", []),
        ("d", "d", []),
    ):
        with pytest.raises(UsageError):
            manager.restore_basket(basket_id, domain, clients)
    assert manager.get_stats() == before
