"""What the directory keeps up to date by itself says what looking at everything would say."""

from __future__ import annotations

import gc
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import Begun, FederationIdentity, News, RoutingTable
from scarcity_ray.baskets.reports import Member
from scarcity_ray.config import BasketConfig, HierarchicalFederationConfig, RuntimeConfig
from scarcity_ray.directory.roster import SlotLoads
from scarcity_ray.errors import UsageError
from scarcity_ray.privacy.sampling.noise import SystemNoise
from scarcity_ray.runtime.collector import collector_paused

CLIENTS = [f"c{i}" for i in range(12)]


def directory(per_actor: int | None = None, num_slots: int = 2) -> Directory:
    config = HierarchicalFederationConfig(
        basket=BasketConfig(min_clients=1, max_clients=2), runtime=RuntimeConfig(baskets_per_actor=per_actor)
    )
    return Directory(FederationIdentity("fed", config, "ledger", "node", SystemNoise()), num_slots)


def looked_up(one: Directory) -> RoutingTable:
    """The routing table, found by asking for each basket by itself."""
    live = list(one.stats(0.0)["statuses"])
    return RoutingTable(one._round_id, tuple(one.resolve(b) for b in live), len(one._loads))


def done(one: Directory, begun: Begun) -> None:
    """The operation's steps are done."""
    if begun.operation is not None:
        one.finish(begun.operation.order, None, {}, (), (), 0.0)


ACTIONS = st.one_of(
    st.tuples(st.just("register"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("register"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("unregister"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("split"), st.integers(0, 20)),
    st.tuples(st.just("disband"), st.integers(0, 20)),
    st.tuples(st.just("advance_round"), st.none()),
    st.tuples(st.just("record_identities"), st.integers(0, 20)),
)


@given(steps=st.lists(ACTIONS, max_size=40), per_actor=st.none() | st.integers(1, 3), slots=st.integers(0, 3))
def test_routing_tables_by_version_are_the_routing_tables(steps, per_actor, slots) -> None:
    """Nothing that changes them goes untold, and baskets fill the emptiest actor."""
    one = directory(per_actor, max(slots, per_actor is None))
    known = one.routing_table()
    for action, which in steps:
        live = list(one.stats(0.0)["statuses"])
        before, old = Counter(place.slot for place in known.places), set(live)
        try:
            match action:
                case "register":
                    done(one, one.register([Member(which, "d")], 0.0))
                case "unregister":
                    done(one, one.unregister(which, 0.0))
                case "split" | "disband" if live:
                    done(one, getattr(one, action)(live[which % len(live)], 0.0))
                case "advance_round":
                    done(one, one.advance_round(0.0))
                case "record_identities" if live:
                    one.record_identities(which % 2, {live[which % len(live)]: bytes([which]) * 32})
        except UsageError:
            pass
        answer = one.routing_table(known.version)
        known = known if isinstance(answer, News) else answer
        assert known == looked_up(one)
        assert one.routing_table(known.version) == News()
        held = Counter(place.slot for place in known.places)
        assert one._loads._loads == [held[slot] for slot in range(known.num_slots)]
        new = [place for place in known.places if place.basket_id not in old]
        if action == "register" and new:
            loads = [before[slot] for slot in range(known.num_slots)]
            assert loads[new[0].slot] == min(loads)
        assert per_actor is None or max(held.values(), default=0) <= per_actor


def test_baskets_that_have_closed_and_clients_that_left_are_not_kept_for_good() -> None:
    one = directory()
    done(one, one.register([Member("a", "d"), Member("b", "d")], 0.0))
    for _ in range(5):
        done(one, one.split(one.routing_table().places[0].basket_id, 0.0))
        for place in one.routing_table().places:
            one.record_identities(place.slot, {place.basket_id: b"k" * 32})
        done(one, one.unregister("b", 0.0))
        done(one, one.register([Member("x", "e")], 0.0))
        done(one, one.unregister("x", 0.0))
        done(one, one.advance_round(0.0))
        done(one, one.register([Member("b", "d")], 0.0))
    live = {place.basket_id for place in one.routing_table().places}
    assert set(one._slots) == live
    assert set(one._identities) <= live
    for _ in range(10):
        done(one, one.advance_round(0.0))
    assert one._memories.all() == ()


def test_registering_into_baskets_that_are_there_sends_nothing_anew() -> None:
    one = directory()
    done(one, one.register([Member("a", "d")], 0.0))
    version = one.routing_table().version
    begun = one.register([Member("b", "d")], 0.0)
    assert one.routing_table(version) == News(pending=begun.operation)
    done(one, begun)
    done(one, one.unregister("a", 0.0))
    assert one.routing_table(version) == News()


def test_a_directory_made_anew_never_takes_an_old_version_for_its_own() -> None:
    one, two = directory(), directory()
    assert one.routing_table().version != two.routing_table().version
    assert two.routing_table(one.routing_table().version) == two.routing_table()


@given(
    st.integers(0, 4),
    st.none() | st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["take", "take", "add", "remove"]), st.integers(0, 6)), max_size=400),
)
def test_the_emptiest_actor_is_the_one_that_looking_at_all_would_find(slots, most, steps) -> None:
    loads = SlotLoads(slots, most)
    held = [0] * slots
    for action, which in steps:
        if action == "take":
            found = min(range(len(held)), key=lambda slot: (held[slot], slot), default=None)
            if found is None or (most is not None and held[found] >= most):
                found = len(held)
            assert loads.take() == found
        elif action == "add":
            loads.add(found := which)
        elif which < len(held) and held[which]:
            loads.remove(which)
            held[which] -= 1
            continue
        else:
            continue
        held += [0] * (found + 1 - len(held))
        held[found] += 1
        assert len(loads) == len(held)
        assert len(loads._queue) <= 3 * len(held) + 65, "what is outdated does not pile up"


@given(st.none() | st.integers(1, 3), st.lists(st.sampled_from([None, "eu", "us"]), max_size=60))
def test_a_placed_domain_has_actors_that_hold_no_others_baskets(most, domains) -> None:
    loads, again = SlotLoads(2, most), SlotLoads(2, most)
    held: dict[int, list[str | None]] = {}
    for domain in domains:
        slot = loads.take(domain)
        held.setdefault(slot, []).append(domain)
        again.add(slot, domain)
    for slot, found in held.items():
        assert len(set(found)) == 1
        assert loads.domain(slot) == again.domain(slot) == found[0]
        assert most is None or len(found) <= most
    if most is None:
        assert all(sum(found[0] == domain for found in held.values()) <= 1 for domain in ("eu", "us"))
    free = again.take()
    assert again.domain(free) is None, "a directory that was made anew knows whose an actor is"


def test_the_collector_is_left_as_it_was_found_whatever_happens() -> None:
    seen = []

    @collector_paused()
    def stumble() -> None:
        seen.append(gc.isenabled())
        raise KeyError

    with pytest.raises(KeyError):
        stumble()
    assert seen == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
