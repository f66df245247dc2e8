"""The directory as a plain object: places, keys, and coming back from what the actors know."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from scarcity_ray.config import BasketConfig, HierarchicalFederationConfig, RuntimeConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.privacy.noise import SystemNoise
from scarcity_ray.roles.directory import Directory
from scarcity_ray.roles.messages import ActivityReport, ClientActivity, FederationIdentity, Member


def directory(num_slots=2, *, per_actor=None, max_clients=4, **more):
    config = HierarchicalFederationConfig(
        basket=BasketConfig(min_clients=2, max_clients=max_clients, stale_threshold=100.0),
        runtime=RuntimeConfig(baskets_per_actor=per_actor),
    )
    return Directory(FederationIdentity("fed", config, "ledger", "node", SystemNoise()), num_slots, **more)


def members(*names, domain="d"):
    return [Member(name, domain) for name in names]


def test_a_client_is_found_where_it_was_put():
    one = directory()
    registration = one.register(members("a", "b", "c"), 1.0)
    assert registration.baskets == ("d_basket_0",) * 3
    assert [m.client_id for m in registration.admissions[0].members] == ["a", "b", "c"]
    assert one.locate(["b", "x"]) == {"b": ("d_basket_0", 0)}
    assert one.resolve("d") == one.resolve("d_basket_0")
    assert one.stats(1.0)["sizes"] == {"d_basket_0": 3}


def test_a_full_basket_opens_another_and_new_baskets_fill_the_emptiest_actor():
    one = directory(num_slots=2, max_clients=2)
    one.register(members(*"abcdefgh"), 1.0)
    places = one.whereabouts().places
    assert len(places) == 4
    assert sorted(p.slot for p in places) == [0, 0, 1, 1]


@pytest.mark.parametrize(("per_actor", "slots"), [(1, 4), (2, 2), (3, 2)])
def test_baskets_per_actor_asks_for_more_actors(per_actor, slots):
    one = directory(num_slots=0, per_actor=per_actor, max_clients=2)
    one.register(members(*"abcdefgh"), 1.0)
    assert one.whereabouts().num_slots == slots
    counts = np.bincount([p.slot for p in one.whereabouts().places])
    assert counts.max() <= per_actor


def test_a_call_with_one_bad_client_registers_none():
    one = directory()
    one.register([Member("a", "d", b"k" * 32)], 1.0)
    for bad in (
        Member("a", "other", b"k" * 32),
        Member("a", "d", b"x" * 32),
        Member("a", "d"),
        Member("", "d"),
    ):
        with pytest.raises(UsageError):
            one.register([Member("new", "d"), bad], 2.0)
        assert one.locate(["new"]) == {}
    assert one.register([Member("a", "d", b"k" * 32)], 3.0).baskets == ("d_basket_0",)


def test_leaving_is_answered_with_where_and_only_once():
    one = directory()
    one.register(members("a", "b"), 1.0)
    assert one.unregister("a", 2.0).basket_id == "d_basket_0"
    assert one.unregister("a", 2.0) is None
    assert one.locate(["a"]) == {}


def test_who_comes_back_elsewhere_is_named_with_both_places():
    one = directory(max_clients=2)
    one.register(members("a", "b"), 1.0)
    one.unregister("a", 2.0)
    one.register(members("c"), 2.0)
    (returned,) = one.register(members("a"), 3.0).returned
    assert (returned.client_id, returned.source.basket_id, returned.target.basket_id) == (
        "a",
        "d_basket_0",
        "d_basket_1",
    )


@pytest.mark.parametrize("act", ["split", "disband"])
def test_closing_a_basket_rehouses_every_client_once(act):
    one = directory(max_clients=6)
    one.register(members(*"abcdefghij"), 1.0)
    closing = one.basket("d_basket_0", 1.0).clients
    rehousing = getattr(one, act)("d_basket_0", 2.0)
    assert rehousing.closed.basket_id == "d_basket_0"
    moved = [m.client_id for admission in rehousing.admissions for m in admission.members]
    assert sorted(moved) == sorted(closing)
    for admission in rehousing.admissions:
        for member in admission.members:
            found = one.locate([member.client_id])[member.client_id]
            assert found == (admission.place.basket_id, admission.place.slot)
    assert "d_basket_0" not in {p.basket_id for p in one.whereabouts().places}


def test_the_round_moves_and_names_the_baskets_that_were_emptied():
    one = directory()
    one.register(members("a", "b"), 1.0)
    one.register(members("x", domain="e"), 1.0)
    one.unregister("x", 2.0)
    round_id, gone = one.advance_round(3.0)
    assert round_id == 1
    assert [p.basket_id for p in gone] == ["e_basket_0"]
    assert one.whereabouts().round_id == 1


def test_coming_back_from_what_the_actors_know_changes_nothing():
    one = directory(max_clients=3)
    keyed = [Member(f"c{i}", "d", bytes([i]) * 32, np.array([float(i)])) for i in range(7)]
    one.register(keyed, 1.0)
    one.record_identities({"d_basket_0": b"i" * 32})
    one.advance_round(2.0)
    one.note_activity([ActivityReport({"c1": ClientActivity(0, 0.0, 0.25)})], 2.0)
    known = [a for slot in range(2) for a in one.members_of_slot(slot)]
    two = directory(max_clients=3, round_id=1, admissions=known, now=3.0)
    assert [two.client(f"c{i}", 3.0).trust_score for i in range(7)] == [1.0, 0.25, *[1.0] * 5]
    assert two.whereabouts() == one.whereabouts()
    ids = [m.client_id for m in keyed]
    assert two.locate(ids) == one.locate(ids)
    with pytest.raises(UsageError, match="another key"):
        two.register([Member("c0", "d", b"z" * 32)], 4.0)
    assert two.register(members("new"), 4.0).baskets[0] not in {"d_basket_0", "d_basket_1"}


def test_activity_of_clients_that_left_is_ignored_and_of_others_counted():
    one = directory()
    one.register(members("a", "b"), 1.0)
    seen = {"a": ClientActivity(2, 50.0, 0.5), "gone": ClientActivity(1, 50.0, 0.5)}
    report = ActivityReport(seen, {"d_basket_0": 60.0, "x": 1.0})
    one.note_activity([report], 70.0)
    assert one.client("a", 70.0).n_updates == 2
    assert one.client("gone", 70.0) is None
    assert one.stale_baskets(None, 100.0) == []
    assert one.stale_baskets(None, 300.0) == ["d_basket_0"]


def test_time_never_runs_backwards():
    one = directory()
    one.register(members("a", "b"), 500.0)
    assert one.stale_baskets(None, 10.0) == []
    assert one.stale_baskets(None, 700.0) == ["d_basket_0"]
    assert one.stale_baskets(None, 10.0) == ["d_basket_0"]


def test_unknown_clients_are_counted():
    one = directory()
    one.count_unknown(3)
    one.count_unknown(2)
    assert one.stats(1.0)["unknown_clients"] == 5
    assert one.stats(1.0)["n_clients"] == 0


def test_what_the_directory_says_travels_between_processes():
    one = directory()
    answers = [
        one.register(members("a", "b"), 1.0),
        one.whereabouts(),
        one.split("d", 2.0),
        one.members_of_slot(0),
        one.identity(),
        one.advance_round(3.0),
        one.stats(3.0),
    ]
    for answer in answers:
        assert type(pickle.loads(pickle.dumps(answer))) is type(answer)
