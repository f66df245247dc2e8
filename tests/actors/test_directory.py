"""The directory as a plain object: places, keys, and coming back from what the actors know."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import Admission, BasketPlace, FederationIdentity, closed
from scarcity_ray.actors.recovery import HostState, recovered_from
from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.reports import ActivityReport, ClientActivity, Member
from scarcity_ray.config import BasketConfig, HierarchicalFederationConfig, RuntimeConfig
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.errors import UsageError
from scarcity_ray.privacy.sampling.noise import SystemNoise
from scarcity_ray.secagg import IdentityKeyPair, Party, Roster


def directory(num_slots=2, *, per_actor=None, max_clients=4, **more):
    config = HierarchicalFederationConfig(
        basket=BasketConfig(min_clients=2, max_clients=max_clients, stale_threshold=100.0),
        runtime=RuntimeConfig(baskets_per_actor=per_actor),
    )
    return Directory(FederationIdentity("fed", config, "ledger", "node", SystemNoise()), num_slots, **more)


def done(one, begun, memories=()):
    """Say that an operation's steps are done; its answer."""
    assert begun.is_asked_for
    if begun.operation is not None:
        assert one.finish(begun.operation.order, None, {}, memories, (), 0.0).stands
    return begun.answer


def members(*names, domain="d"):
    return [Member(name, domain) for name in names]


def test_a_client_is_found_where_it_was_put():
    one = directory()
    begun = one.register(members("a", "b", "c"), 1.0)
    assert begun.answer == ("d_basket_0",) * 3
    assert [m.client_id for m in begun.operation.admissions[0].members] == ["a", "b", "c"]
    assert one.locate(["b", "x"]).routes == {"b": ("d_basket_0", 0)}
    assert one.resolve("d") == one.resolve("d_basket_0")
    assert one.stats(1.0)["sizes"] == {"d_basket_0": 3}


def test_a_full_basket_opens_another_and_new_baskets_fill_the_emptiest_actor():
    one = directory(num_slots=2, max_clients=2)
    one.register(members(*"abcdefgh"), 1.0)
    places = one.routing_table().places
    assert len(places) == 4
    assert sorted(p.slot for p in places) == [0, 0, 1, 1]


@pytest.mark.parametrize(("per_actor", "slots"), [(1, 4), (2, 2), (3, 2)])
def test_baskets_per_actor_asks_for_more_actors(per_actor, slots):
    one = directory(num_slots=0, per_actor=per_actor, max_clients=2)
    one.register(members(*"abcdefgh"), 1.0)
    assert one.routing_table().num_slots == slots
    counts = np.bincount([p.slot for p in one.routing_table().places])
    assert counts.max() <= per_actor


def test_a_call_with_one_bad_client_registers_none():
    one = directory()
    done(one, one.register([Member("a", "d", b"k" * 32)], 1.0))
    for bad in (
        Member("a", "other", b"k" * 32),
        Member("a", "d", b"x" * 32),
        Member("a", "d"),
        Member("", "d"),
    ):
        with pytest.raises(UsageError):
            one.register([Member("new", "d"), bad], 2.0)
        assert one.locate(["new"]).routes == {}
    assert one.register([Member("a", "d", b"k" * 32)], 3.0).answer == ("d_basket_0",)


def test_leaving_is_answered_only_once():
    one = directory()
    done(one, one.register(members("a", "b"), 1.0))
    begun = one.unregister("a", 2.0)
    ((place, client_id),) = begun.operation.leavers
    assert (place.basket_id, client_id) == ("d_basket_0", "a")
    assert done(one, begun) is True
    assert done(one, one.unregister("a", 2.0)) is False
    assert one.locate(["a"]).routes == {}


def test_who_comes_back_is_admitted_with_what_is_remembered_of_it():
    one = directory(max_clients=2)
    done(one, one.register(members("a", "b"), 1.0))
    leaving = one.unregister("a", 2.0)
    memory = ClientMemory("a", trust=0.25, number=leaving.operation.order.number)
    done(one, leaving, [memory])
    done(one, one.register(members("c"), 2.0))
    begun = one.register(members("a"), 3.0)
    assert begun.answer == ("d_basket_1",)
    ((member,),) = (admission.members for admission in begun.operation.admissions)
    assert (member.memory, member.trust) == (memory, 0.25)
    assert one.slot_state(0).memories == (memory,)


def test_one_operation_at_a_time():
    one = directory()
    begun = one.register(members("a", "b"), 1.0)
    for other in (
        one.register(members("c"), 2.0),
        one.unregister("a", 2.0),
        one.split("d", 2.0),
        one.disband("d", 2.0),
        one.advance_round(2.0),
    ):
        assert not other.is_asked_for
        assert other.operation is begun.operation
    assert one.routing_table().news.pending is one.locate(["a"]).news.pending is begun.operation
    assert one.locate(["a", "c"]).routes == {"a": ("d_basket_0", 0)}
    done(one, begun)
    assert one.routing_table().news.pending is None
    assert one.finish(begun.operation.order, None, {}, (), (), 3.0).stands, "late, and said already"


def test_an_order_that_actors_do_not_obey_is_given_again_above_all_that_they_have_heard():
    one = directory()
    begun = one.register(members("a", "b"), 1.0)
    closing = one.finish(begun.operation.order, OrderNumber(7, 3), {}, (), (), 2.0)
    assert not closing.stands
    assert closing.again.order.operation_id == begun.operation.order.operation_id
    assert closing.again.order.number > OrderNumber(7, 3)
    assert one.finish(closing.again.order, None, {}, (), (), 3.0).stands


@pytest.mark.parametrize("heard", ["source", "target"])
def test_an_operation_outlives_the_directory(heard):
    """Once the basket that closes has heard of it; the members are where it takes them."""
    one = directory(per_actor=1, max_clients=6, num_slots=0)
    done(one, one.register(members(*"abcdef"), 1.0))
    before = one.slot_state(0)
    begun = one.split("d", 2.0)
    order = begun.operation.order
    states = [HostState(0, OrderNumber(1), order, before.admissions)]
    if heard == "target":
        states.append(HostState(0, OrderNumber(1), order, begun.operation.admissions[1:]))
    two = directory(
        per_actor=1, max_clients=6, num_slots=3, recovered=recovered_from(dict(enumerate(states)))
    )
    assert two.locate([*"abcdef"]).routes == one.locate([*"abcdef"]).routes
    again = two._news().pending
    assert (again.order.operation_id, again.order.homes) == (order.operation_id, order.homes)
    assert again.order.number > order.number
    assert two.finish(order, OrderNumber(1), {}, (), (), 3.0).again.order.operation_id == order.operation_id
    assert two.finish(two._news().pending.order, None, {}, (), (), 3.0).stands
    assert {p.basket_id for p in two.routing_table().places} == set(begun.answer)


def test_that_a_basket_closes_is_believed_of_nobody_but_who_holds_it():
    one = directory(per_actor=1, max_clients=6, num_slots=0)
    done(one, one.register(members(*"abcdef"), 1.0))
    before = one.slot_state(0)
    operation = one.split("d", 2.0).operation
    lie = replace(operation.order.closing, slot=1)
    for order in (operation.order, replace(operation.order, closing=lie)):
        states = {
            0: HostState(0, OrderNumber(1), None, before.admissions),
            1: HostState(0, OrderNumber(1), order),
        }
        recovered = recovered_from(states)
        assert recovered.pending is None or recovered.pending.order.closing is None
        assert directory(num_slots=2, recovered=recovered).locate([*"abcdef"]).routes == {
            client_id: ("d_basket_0", 0) for client_id in "abcdef"
        }


def test_an_actor_speaks_for_the_baskets_in_its_slot_alone():
    one = directory(per_actor=1, max_clients=2, num_slots=0)
    begun = one.register(members(*"abcd"), 1.0)
    thief, own = b"t" * 32, b"o" * 32
    answers = {0: {"d_basket_0": own}, 1: {"d_basket_0": thief, "d_basket_1": own, "x": thief}}
    assert one.finish(begun.operation.order, None, answers, (), (), 1.0).stands
    one.record_identities(1, {"d_basket_0": thief, "d_basket_1": b"short"})
    assert one.registry().newest.keys() == {"d_basket_0": own, "d_basket_1": own}


def test_no_epoch_is_made_halfway_through_an_operation():
    one = directory(max_clients=6)
    done(one, one.register(members(*"abcdef"), 1.0))
    one.record_identities(0, {"d_basket_0": b"o" * 32})
    whole = one.registry()
    begun = one.split("d", 2.0)
    assert one.registry() == whole
    keys = {p.slot: {p.basket_id: p.basket_id.encode().ljust(32)} for p in one.routing_table().places}
    one.finish(begun.operation.order, None, keys, (), (), 3.0)
    assert one.registry().newest.epoch == 2
    assert set(one.registry().newest.keys()) == set(begun.answer)


def held_by(slot, chain, *baskets, keys=None, proofs=None, closed=None):
    admissions = tuple(
        Admission(BasketPlace(b, "d", slot, (keys or KEYS)[b].public_bytes), tuple(members(f"in {b}")))
        for b in baskets
    )
    state = HostState(0, OrderNumber(1), None, admissions, rosters=tuple(chain))
    return replace(state, proofs=proofs or {}, closed=closed or {})


KEYS = {f"d_basket_{k}": IdentityKeyPair.generate() for k in range(4)}
FIRST = Roster("fed", 1, bytes(32), tuple(Party(b, k.public_bytes) for b, k in KEYS.items()))
SECOND = FIRST.next(FIRST.parties[:3])


def test_an_actor_that_claims_the_baskets_of_others_gets_none_of_them():
    names = sorted(KEYS)
    for claimed in (0, 3):  # what it says of where they live: their slot, its own
        lie = held_by(claimed, [FIRST], *names).admissions
        states = {slot: held_by(slot, [FIRST], names[slot]) for slot in range(3)}
        states[3] = replace(states[0], admissions=lie)
        held = {a.place.basket_id: a.place.slot for a in recovered_from(states).admissions}
        assert [held[name] for name in names[:3]] == [0, 1, 2]


@pytest.mark.parametrize("honest", [0, 1])
def test_a_basket_that_two_claim_is_that_ones_which_signs_for_it_with_the_key_on_the_roster(honest):
    name, key = "d_basket_0", KEYS["d_basket_0"]
    states = {slot: held_by(slot, [FIRST], name) for slot in range(2)}
    place = states[honest].admissions[0].place
    states[honest] = replace(states[honest], proofs={name: key.sign(place.holding())})
    # The other has heard the signature, and is in another slot.
    states[1 - honest] = replace(states[1 - honest], proofs=states[honest].proofs)
    assert [a.place.slot for a in recovered_from(states).admissions] == [honest]


def test_the_chain_that_most_actors_hold_goes_on_and_a_made_up_one_does_not():
    far = replace(FIRST, epoch=1000, previous=b"x" * 32)
    broken = (FIRST, replace(SECOND, epoch=3))
    for lie in ((far,), broken, (FIRST, replace(SECOND, previous=b"x" * 32))):
        states = {0: held_by(0, lie), 1: held_by(1, [FIRST]), 2: held_by(2, [FIRST])}
        assert recovered_from(states).rosters == (FIRST,)
    behind = {0: held_by(0, [FIRST]), 1: held_by(1, [FIRST]), 2: held_by(2, [FIRST, SECOND])}
    assert recovered_from(behind).rosters == (FIRST, SECOND), "one that was told first is no fork"
    assert set(recovered_from(behind).dead) == set(KEYS), "but does not say who is registered"
    told = behind | {1: held_by(1, [FIRST, SECOND])}
    assert set(recovered_from(told).dead) == set(SECOND.keys())


def test_who_died_with_the_directory_stays_registered_until_it_is_closed():
    names = sorted(KEYS)
    farewell = {names[1]: KEYS[names[1]].sign(closed(names[1])), names[2]: b"x" * 64}
    states = {0: held_by(0, [FIRST], names[0], closed=farewell)}
    recovered = recovered_from(states)
    assert set(recovered.dead) == set(names[2:]), "one has signed that it closed, another has not"
    one = directory(num_slots=2, recovered=recovered)
    assert set(one.registry().newest.keys()) == {names[0], *names[2:]}
    assert one.disband(names[2], 1.0).operation is None
    assert set(one.registry().newest.keys()) == {names[0], names[3]}
    with pytest.raises(UsageError):
        one.disband(names[2], 1.0)


def test_a_client_that_two_actors_have_leaves_both_and_registers_again():
    one = directory(per_actor=1, max_clients=2, num_slots=0)
    done(one, one.register(members(*"abcd"), 1.0))
    first, second = (one.slot_state(slot).admissions[0] for slot in (0, 1))
    both = replace(second, members=(*second.members, first.members[0]))
    states = [HostState(0, OrderNumber(1), None, (first,)), HostState(0, OrderNumber(1), None, (both,))]
    two = directory(
        per_actor=1, max_clients=2, num_slots=2, recovered=recovered_from(dict(enumerate(states)))
    )
    assert recovered_from(dict(enumerate(states))).contested == ("a",)
    assert two.locate(["a"]).routes == {}, "nobody who merely claims a client is sent its updates"
    leavers = [(place.basket_id, client_id) for place, client_id in two._news().pending.leavers]
    assert leavers == [("d_basket_0", "a"), ("d_basket_1", "a")]
    assert two.finish(two._news().pending.order, None, {}, (), (), 2.0).stands
    assert two.register(members("a"), 3.0).answer == ("d_basket_0",)


def test_an_operation_that_nobody_has_heard_of_is_void():
    begun = directory().register(members("a", "b"), 1.0)
    two = directory(recovered=recovered_from({0: HostState(0, OrderNumber(1))}))
    assert not two.finish(begun.operation.order, OrderNumber(1), {}, (), (), 2.0).stands
    assert two.locate(["a", "b"]).routes == {}


@pytest.mark.parametrize("act", ["split", "disband"])
def test_closing_a_basket_moves_every_client_once(act):
    one = directory(max_clients=6)
    done(one, one.register(members(*"abcdefghij"), 1.0))
    members_there = one.basket("d_basket_0", 1.0).clients
    closing = one.resolve("d_basket_0")
    migration = getattr(one, act)("d_basket_0", 2.0).operation
    assert [place.basket_id for place in migration.closed] == ["d_basket_0"]
    assert migration.order.closing == closing == migration.closed[0]
    assert set(migration.order.homes) == members_there
    moved = [m.client_id for admission in migration.admissions for m in admission.members]
    assert sorted(moved) == sorted(members_there)
    for admission in migration.admissions:
        for member in admission.members:
            found = one.locate([member.client_id]).routes[member.client_id]
            assert found == (admission.place.basket_id, admission.place.slot)
    assert "d_basket_0" not in {p.basket_id for p in one.routing_table().places}


def test_the_round_moves_and_names_the_baskets_that_were_emptied():
    one = directory()
    done(one, one.register(members("a", "b"), 1.0))
    done(one, one.register(members("x", domain="e"), 1.0))
    done(one, one.unregister("x", 2.0))
    begun = one.advance_round(3.0)
    assert begun.answer == begun.operation.order.round_id == 1
    assert [p.basket_id for p in begun.operation.closed] == ["e_basket_0"]
    assert one.routing_table().round_id == 1


def test_coming_back_from_what_the_actors_know_changes_nothing():
    one = directory(max_clients=3)
    keyed = [Member(f"c{i}", "d", bytes([i]) * 32, np.array([float(i)])) for i in range(7)]
    done(one, one.register(keyed, 1.0))
    one.record_identities(0, {"d_basket_0": b"i" * 32})
    done(one, one.advance_round(2.0))
    one.note_activity([ActivityReport({"c1": ClientActivity(0, 0.0, 0.25)})], 2.0)
    known = [HostState(1, OrderNumber(1), None, one.slot_state(slot).admissions) for slot in range(2)]
    two = directory(max_clients=3, recovered=recovered_from(dict(enumerate(known))), now=3.0)
    assert [two.client(f"c{i}", 3.0).trust_score for i in range(7)] == [1.0, 0.25, *[1.0] * 5]
    assert two.routing_table() == one.routing_table()
    ids = [m.client_id for m in keyed]
    assert two.locate(ids).routes == one.locate(ids).routes
    with pytest.raises(UsageError, match="another key"):
        two.register([Member("c0", "d", b"z" * 32)], 4.0)
    assert two.register(members("new"), 4.0).answer[0] not in {"d_basket_0", "d_basket_1"}


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
        one.routing_table(),
        one.split("d", 2.0),
        one.slot_state(0),
        one.advance_round(3.0),
        one.stats(3.0),
    ]
    for answer in answers:
        assert type(pickle.loads(pickle.dumps(answer))) is type(answer)
