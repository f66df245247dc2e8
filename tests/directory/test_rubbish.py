"""What is none of a manager's arguments is a `UsageError`, or nobody's, and changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scarcity_ray import BasketManager, UsageError

NO_NAMES = [None, "", 1, 1.5, b"x", "x" * 10_000, "a\nb", "\x00", "\ud800", ["a"], {"a": 1}, math.nan, ()]
NO_NUMBERS = ["1", [1], {}, object(), 1 + 2j, math.nan, True, 10**400]


@pytest.fixture
def manager():
    manager = BasketManager(clock=lambda: 5.0)
    for name in "abcd":
        manager.add_client(name, "d")
    return manager


def refused(call, *args, **kwargs):
    with pytest.raises(UsageError) as caught:
        call(*args, **kwargs)
    assert 15 < len(str(caught.value)) < 300


def state_of(manager):
    return manager.get_stats(), manager.live_baskets(), [manager.get_client(c) for c in manager.client_ids()]


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: repr(name)[:12])
def test_what_is_no_name_is_nobodys(manager, name):
    before = state_of(manager)
    for call in (manager.touch_client, manager.touch_basket, manager.resolve):
        refused(call, name)
    for call in (manager.create_basket, manager.split_basket, manager.disband_basket):
        refused(call, name)
    refused(manager.add_client, name, "d")
    refused(manager.add_client, "new", name)
    refused(manager.restore_basket, name, "d", [])
    assert manager.remove_client(name) is False
    for get in (manager.get_client, manager.get_basket, manager.get_client_basket, manager.former_basket):
        assert get(name) is None
    assert manager.get_basket_clients(name) == set()
    assert manager.domain_baskets(name) == manager.moves_from(name) == ()
    manager.record_trust(name, 0.0)
    assert state_of(manager) == before


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:12])
def test_what_is_no_number_is_a_usage_error(manager, value):
    before = state_of(manager)
    refused(manager.touch_client, "a", at=value)
    refused(manager.touch_basket, "d", at=value)
    refused(manager.get_stale_baskets, value)
    refused(manager.record_trust, "a", value)
    if value not in (True, 10**400):
        refused(manager.touch_client, "a", n_updates=value)
    refused(manager.touch_client, "a", n_updates=-1)
    refused(manager.touch_client, "a", n_updates=1.5)
    assert state_of(manager) == before


def test_features_are_a_vector_of_finite_real_numbers(manager):
    for features in (
        "abc",
        [],
        [[1.0]],
        [math.nan],
        [math.inf],
        [1j],
        [True],
        ["1"],
        [None],
        [1e308 * 10],
        3.0,
    ):
        refused(manager.add_client, "new", "d", features=features)
    assert manager.get_client("new") is None
    manager.add_client("new", "d", features=(1, 2))
    np.testing.assert_array_equal(manager.get_client("new").features, [1.0, 2.0])


def test_what_no_manager_can_be_made_of_is_a_usage_error():
    for config in ("", {}, {"min_clients": 3}, 3):
        refused(BasketManager, config)
    for clock in (None, 3, "now", lambda: None, lambda: math.inf):
        refused(BasketManager, clock=clock)
    for rng in (3, np.random, "seed"):
        refused(BasketManager, rng=rng)
