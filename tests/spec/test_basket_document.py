"""Promises about baskets, one by one (docs/specification.md#baskets)."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pytest

from scarcity_ray import BasketConfig, BasketInfo, BasketManager, BasketStatus, ClientInfo, UsageError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time_now() -> Clock:
    return Clock()


@pytest.fixture
def manager(time_now: Clock) -> BasketManager:
    return BasketManager(config=BasketConfig(min_clients=3, max_clients=4), clock=time_now)


def fill(manager: BasketManager, count: int, domain: str = "healthcare") -> list[str]:
    return [manager.add_client(f"{domain}_{i}", domain) for i in range(count)]


def test_basket_config_has_the_fields_and_defaults() -> None:
    config = BasketConfig()
    assert (config.min_clients, config.max_clients) == (3, 100)
    assert (config.stale_threshold, config.allow_cross_domain) == (600.0, False)


def test_client_info_has_the_fields() -> None:
    assert [field.name for field in dataclasses.fields(ClientInfo)] == [
        "client_id",
        "domain_id",
        "basket_id",
        "features",
        "joined_at",
        "last_active",
        "n_updates",
        "trust_score",
    ]


def test_basket_info_has_the_fields() -> None:
    assert [field.name for field in dataclasses.fields(BasketInfo)] == [
        "basket_id",
        "domain_id",
        "status",
        "clients",
        "created_at",
        "last_activity",
    ]
    assert typing.get_type_hints(BasketInfo)["clients"] == set[str]


def test_basket_status_has_four_values() -> None:
    assert {status.name: status.value for status in BasketStatus} == {
        "FORMING": "forming",
        "ACTIVE": "active",
        "STALE": "stale",
        "DISBANDED": "disbanded",
    }


def test_manager_is_made_with_a_config_alone() -> None:
    manager = BasketManager(config=BasketConfig(min_clients=3, max_clients=50))
    assert manager.add_client("hospital_1", "healthcare") == "healthcare_basket_0"


def test_add_client_returns_the_assigned_basket(manager: BasketManager) -> None:
    basket = manager.add_client(client_id="hospital_1", domain_id="healthcare", features=np.array([1.0, 0.5]))
    assert manager.get_client_basket("hospital_1") == basket


def test_assignment_takes_the_existing_basket_of_the_domain(manager: BasketManager) -> None:
    assert len(set(fill(manager, 4))) == 1


def test_assignment_opens_a_new_basket_when_full(manager: BasketManager) -> None:
    assert fill(manager, 5) == ["healthcare_basket_0"] * 4 + ["healthcare_basket_1"]


def test_assignment_opens_the_first_basket_of_a_domain(manager: BasketManager) -> None:
    assert manager.get_stats()["n_baskets"] == 0
    assert manager.add_client("bank_1", "finance") == "finance_basket_0"


def test_usually_one_basket_a_domain_but_several_are_possible(manager: BasketManager) -> None:
    fill(manager, 9)
    fill(manager, 2, "finance")
    assert manager.get_stats()["baskets_by_domain"] == {"healthcare": 3, "finance": 1}


def test_allow_cross_domain_lets_a_newcomer_fill_another_domains_basket() -> None:
    apart = BasketManager(BasketConfig())
    apart.add_client("hospital_1", "healthcare")
    assert apart.add_client("bank_1", "finance") == "finance_basket_0"
    together = BasketManager(BasketConfig(allow_cross_domain=True))
    together.add_client("hospital_1", "healthcare")
    assert together.add_client("bank_1", "finance") == "healthcare_basket_0"
    info = together.get_basket("healthcare_basket_0")
    assert info is not None
    assert info.domain_id == "healthcare"


def test_remove_client_tells_whether_it_was_found(manager: BasketManager) -> None:
    fill(manager, 1)
    assert manager.remove_client("healthcare_0") is True
    assert manager.remove_client("healthcare_0") is False
    assert manager.get_client_basket("healthcare_0") is None


def test_an_emptied_basket_is_marked_for_cleanup(manager: BasketManager) -> None:
    fill(manager, 1)
    manager.remove_client("healthcare_0")
    assert manager.get_basket("healthcare_basket_0") is not None
    assert manager.cleanup() == ("healthcare_basket_0",)
    assert manager.get_basket("healthcare_basket_0") is None


def test_get_basket_gives_details_or_none(manager: BasketManager) -> None:
    fill(manager, 3)
    info = manager.get_basket("healthcare_basket_0")
    assert info is not None
    assert info.clients == {"healthcare_0", "healthcare_1", "healthcare_2"}
    assert info.status is BasketStatus.ACTIVE
    assert manager.get_basket("no_such_basket") is None


def test_get_client_basket_gives_the_basket_or_none(manager: BasketManager) -> None:
    fill(manager, 1)
    assert manager.get_client_basket("healthcare_0") == "healthcare_basket_0"
    assert manager.get_client_basket("nobody") is None


def test_get_basket_clients_gives_all_of_them(manager: BasketManager) -> None:
    fill(manager, 2)
    assert manager.get_basket_clients("healthcare_basket_0") == {"healthcare_0", "healthcare_1"}


def test_lifecycle_is_forming_until_there_are_min_clients(manager: BasketManager) -> None:
    statuses = []
    for i in range(3):
        info = manager.get_basket(manager.add_client(f"c{i}", "d"))
        assert info is not None
        statuses.append(info.status)
    assert statuses == [BasketStatus.FORMING, BasketStatus.FORMING, BasketStatus.ACTIVE]


def test_lifecycle_is_stale_without_activity_and_active_again_with_it(
    manager: BasketManager, time_now: Clock
) -> None:
    fill(manager, 3)

    def status() -> BasketStatus:
        info = manager.get_basket("healthcare_basket_0")
        assert info is not None
        return info.status

    time_now.now += 600.0
    assert status() is BasketStatus.ACTIVE
    time_now.now += 1.0
    assert status() is BasketStatus.STALE
    manager.touch_client("healthcare_1")
    assert status() is BasketStatus.ACTIVE


def test_lifecycle_ends_disbanded(manager: BasketManager) -> None:
    fill(manager, 3)
    manager.disband_basket("healthcare_basket_0")
    info = manager.get_basket("healthcare_basket_0")
    assert info is not None
    assert info.status is BasketStatus.DISBANDED
    assert info.clients == set()
    with pytest.raises(UsageError):
        manager.touch_basket("healthcare_basket_0")


def test_features_are_optional_and_kept(manager: BasketManager) -> None:
    manager.add_client("hospital_1", domain_id="healthcare", features=np.array([1.0, 0.5, 0.3]))
    manager.add_client("hospital_2", domain_id="healthcare")
    first, second = manager.get_client("hospital_1"), manager.get_client("hospital_2")
    assert first is not None
    assert second is not None
    assert first.features is not None
    np.testing.assert_array_equal(first.features, [1.0, 0.5, 0.3])
    assert second.features is None


def test_touch_client_marks_it_and_its_basket_active(manager: BasketManager, time_now: Clock) -> None:
    fill(manager, 2)
    time_now.now += 10.0
    manager.touch_client("healthcare_1")
    client, basket = manager.get_client("healthcare_1"), manager.get_basket("healthcare_basket_0")
    other = manager.get_client("healthcare_0")
    assert client is not None
    assert basket is not None
    assert other is not None
    assert (client.last_active, client.n_updates, basket.last_activity) == (time_now.now, 1, time_now.now)
    assert (other.last_active, other.n_updates) == (time_now.now - 10.0, 0)


def test_touch_basket_marks_it_active(manager: BasketManager, time_now: Clock) -> None:
    fill(manager, 1)
    time_now.now += 10.0
    manager.touch_basket("healthcare_basket_0")
    info = manager.get_basket("healthcare_basket_0")
    assert info is not None
    assert info.last_activity == time_now.now


def test_get_stale_baskets_gives_those_without_activity(manager: BasketManager, time_now: Clock) -> None:
    fill(manager, 1)
    fill(manager, 1, "finance")
    time_now.now += 700.0
    manager.touch_basket("finance_basket_0")
    assert manager.get_stale_baskets(threshold=600.0) == ["healthcare_basket_0"]
    assert manager.get_stale_baskets() == ["healthcare_basket_0"]
    assert manager.get_stale_baskets(threshold=700.0) == []


def test_create_basket_opens_one_by_hand(manager: BasketManager) -> None:
    assert manager.create_basket("new_domain") == "new_domain_basket_0"
    assert manager.add_client("first", "new_domain") == "new_domain_basket_0"


def test_disband_reassigns_clients_to_other_baskets_of_the_domain(manager: BasketManager) -> None:
    fill(manager, 5)
    manager.disband_basket("healthcare_basket_1")
    manager.remove_client("healthcare_0")
    assert manager.get_client_basket("healthcare_4") == "healthcare_basket_2"
    manager.disband_basket("healthcare_basket_2")
    assert manager.get_client_basket("healthcare_4") == "healthcare_basket_0"


def test_split_divides_the_clients_between_two_new_baskets(manager: BasketManager) -> None:
    fill(manager, 4)
    first, second = manager.split_basket("healthcare_basket_0")
    assert {first, second} == {"healthcare_basket_1", "healthcare_basket_2"}
    halves = manager.get_basket_clients(first), manager.get_basket_clients(second)
    assert [len(half) for half in halves] == [2, 2]
    assert halves[0] | halves[1] == {f"healthcare_{i}" for i in range(4)}


def test_split_divides_by_features_where_clients_have_them(manager: BasketManager) -> None:
    for name, size in (("a", 0.1), ("b", 9.0), ("c", 0.2), ("d", 8.0)):
        manager.add_client(name, "healthcare", features=np.array([size, 1.0]))
    halves = {frozenset(manager.get_basket_clients(b)) for b in manager.split_basket("healthcare_basket_0")}
    assert halves == {frozenset("ac"), frozenset("bd")}


def test_get_stats_has_the_keys_and_counts(manager: BasketManager, time_now: Clock) -> None:
    fill(manager, 6)
    fill(manager, 3, "finance")
    time_now.now += 601.0
    manager.touch_basket("finance_basket_0")
    assert manager.get_stats() == {
        "n_clients": 9,
        "n_baskets": 3,
        "baskets_by_domain": {"healthcare": 2, "finance": 1},
        "avg_clients_per_basket": 3.0,
        "n_stale_baskets": 2,
    }


def test_an_empty_domain_has_no_basket_and_its_first_client_makes_one(manager: BasketManager) -> None:
    assert manager.domain_baskets("retail") == ()
    assert manager.add_client("shop_1", "retail") == "retail_basket_0"
    assert manager.domain_baskets("retail") == ("retail_basket_0",)
