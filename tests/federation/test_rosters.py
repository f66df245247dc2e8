"""Who is registered, through splits, deaths and signatures: epochs rise, and nobody is counted too early."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, IdentityKeyPair, PrivacyWarning, UsageError
from scarcity_ray.actors.messages import Overtaken
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.errors import ActorLost
from scarcity_ray.secagg import Party

D, BASKETS, EACH = 4, 5, 4
OPERATOR = IdentityKeyPair.generate()


@pytest.fixture
def fed_of(open_federation: Any) -> Callable[..., HierarchicalFederation]:
    def make(**arguments: Any) -> HierarchicalFederation:
        layer2, operator_key = arguments.pop("layer2", {}), arguments.pop("operator_key", None)
        fed: HierarchicalFederation = open_federation(
            {
                "vector_dim": D,
                "auto_aggregate": False,
                "gossip_budget_share": 0.0,
                "total_epsilon": 50.0,
                "basket": {"min_clients": 2, "max_clients": 8},
                "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 2},
                "layer2": layer2,
                "operator_key": operator_key,
                "runtime": {"baskets_per_actor": 1},
            },
            **arguments,
        )
        fed.register_clients([(f"{b}_{i}", f"d{b}") for b in range(BASKETS) for i in range(EACH)])
        return fed

    return make


def role(fed: HierarchicalFederation, name: str) -> Any:
    return fed._runtime.peers.roles[name]  # type: ignore[attr-defined]


def release(fed: HierarchicalFederation) -> Any:
    clients = [f"{b}_{i}" for b in range(BASKETS) for i in range(EACH)]
    assert all(fed.submit_updates(clients, np.full((len(clients), D), 0.1)))
    model = fed.force_aggregate()
    fed.advance_round()
    return model


def hosts(fed: HierarchicalFederation) -> list[Any]:
    return [role(fed, name) for name in sorted(fed._runtime.peers.roles) if name.startswith("basket:")]  # type: ignore[attr-defined]


def epochs(fed: HierarchicalFederation) -> set[int]:
    return {host._secure.chain.epoch for host in hosts(fed)}


def test_every_change_of_baskets_or_keys_is_an_epoch_that_all_follow(fed_of: Any) -> None:
    fed = fed_of()
    assert release(fed) is not None
    assert release(fed) is not None
    assert epochs(fed) == {1}
    fed.split_basket("d0")
    assert release(fed) is not None
    assert epochs(fed) == {2}
    assert len(fed.get_roster().parties) == BASKETS + 1
    fed._runtime.kill("basket:1")
    assert release(fed) is not None
    assert epochs(fed) == {3}, "an actor that came back has a new key"
    first = next(p.basket_id for p in fed._driver.operations.routing_table().places if p.domain_id == "d0")
    fed.disband_basket(first)
    assert release(fed) is not None
    assert epochs(fed) == {4}
    assert first not in {party.party_id for party in fed.get_roster().parties}
    assert [r.epoch for r in hosts(fed)[2]._secure.chain.kept] == [1, 2, 3, 4]
    for earlier, later in zip(
        hosts(fed)[2]._secure.chain.kept, hosts(fed)[2]._secure.chain.kept[1:], strict=False
    ):
        assert later.previous == earlier.digest()


def test_an_actor_that_is_dead_stays_registered(fed_of: Any) -> None:
    """It counts among those of whom some may be corrupt, whether it answers or not."""
    fed = fed_of()
    assert release(fed) is not None
    before = fed.get_roster()
    fed._runtime.kill("basket:1")
    assert role(fed, "directory").registry().newest == before


@pytest.mark.parametrize("also", [[], ["basket:0"], ["basket:0", "basket:1", "global"]], ids=repr)
def test_a_directory_that_came_back_goes_on_from_the_epoch_that_the_baskets_hold(
    fed_of: Any, also: list[str]
) -> None:
    fed = fed_of()
    assert release(fed) is not None
    fed.split_basket("d0")
    assert release(fed) is not None
    held = fed.get_roster()
    assert held.epoch == 2
    for name in ["directory", *also]:
        fed._runtime.kill(name)
    # Who was in a basket that died with the directory must register again.
    fed.register_clients([(f"{b}_{i}", f"d{b}") for b in range(BASKETS) for i in range(EACH)])
    assert release(fed) is not None
    newest = fed.get_roster()
    assert newest.epoch >= 2
    if "basket:1" not in also:
        assert newest == held, "a half that died stays registered, and its clients are in the other"
    else:
        assert newest.previous == held.digest()
    assert release(fed) is not None
    assert epochs(fed) == {newest.epoch}


def test_an_actor_that_missed_epochs_is_told_what_lies_between(fed_of: Any) -> None:
    fed = fed_of()
    assert release(fed) is not None
    directory = role(fed, "directory")
    late = hosts(fed)[3]
    for i in range(3):
        fed.register_clients([(f"new{i}_0", f"n{i}"), (f"new{i}_1", f"n{i}")])
        directory.registry()
    assert late._secure.chain.epoch == 1
    assert release(fed) is not None
    assert epochs(fed) == {4}
    assert fed.get_stats()["n_sessions_refused"] == 0


def test_a_stale_roster_for_one_basket_is_refused(fed_of: Any) -> None:
    fed = fed_of()
    assert release(fed) is not None
    stale = fed.get_roster()
    fed.split_basket("d0")
    assert release(fed) is not None
    host = hosts(fed)[2]
    few = stale.next(stale.parties[:2])
    for lie in (few, few.next(stale.parties[:2])):
        answer = host.know_parties((lie,))
        assert answer.refusal
        assert answer.epoch == 2
    assert host.know_parties((stale,)).epoch == 2, "what was pinned before is passed over"
    assert release(fed) is not None


def test_a_basket_that_holds_another_roster_is_named_and_left_out(fed_of: Any) -> None:
    fed = fed_of()
    assert release(fed) is not None
    host, roster = hosts(fed)[2], fed.get_roster()
    assert host.know_parties((roster.next(roster.parties[:3]),)).refusal == ""
    fed.split_basket("d0")
    assert release(fed) is not None, "the others go on"
    assert fed.get_global_meta_model().n_baskets == BASKETS
    assert any("basket:2 follows no new roster" in fault for fault in fed.get_stats()["faults"])


def test_with_an_operators_key_nothing_is_released_before_its_signature(fed_of: Any) -> None:
    fed = fed_of(operator_key=OPERATOR.public_bytes.hex())
    assert release(fed) is None
    assert "no roster is signed" in fed._driver.run_layer2(True).reason
    assert fed.get_stats()["n_sessions_refused"] == 0
    draft = fed.get_roster()
    assert (draft.epoch, len(draft.parties), draft.signature) == (1, BASKETS, b"")
    for false in (draft, draft.signed(IdentityKeyPair.generate()), IdentityKeyPair.generate()):
        with pytest.raises(UsageError, match="operator's signature"):
            fed.sign_roster(false)
    fed.sign_roster(draft.signed(OPERATOR))
    assert release(fed) is not None
    assert fed.get_roster().is_signed_by(OPERATOR.public_bytes)
    with pytest.raises(UsageError, match="no roster waits"):
        fed.sign_roster(OPERATOR)


def test_a_driver_that_holds_the_operators_key_signs_as_it_goes(fed_of: Any) -> None:
    fed = fed_of(operator_key=OPERATOR.public_bytes.hex(), operator_keypair=OPERATOR)
    assert release(fed) is not None
    fed.split_basket("d0")
    fed._runtime.kill("basket:1")
    assert release(fed) is not None
    fed._runtime.kill("directory")
    assert release(fed) is not None
    assert all(roster.is_signed_by(OPERATOR.public_bytes) for roster in hosts(fed)[2]._secure.chain.kept)
    with pytest.raises(UsageError, match="operator_keypair is not that of"):
        fed_of(operator_keypair=OPERATOR)


def test_the_halves_of_a_split_take_part_and_count_as_corrupt_until_they_are_signed_for(
    fed_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = fed_of(
        operator_key=OPERATOR.public_bytes.hex(),
        layer2={"noise": "distributed_discrete_gaussian"},
    )
    fed.sign_roster(OPERATOR)
    assert release(fed) is not None
    fed.split_basket("d0")
    seen: list[Any] = []
    aggregator = role(fed, "global")
    honest = aggregator._terms

    def noting(*args: Any) -> Any:
        seen.append(honest(*args))
        return seen[-1]

    monkeypatch.setattr(aggregator, "_terms", noting)
    assert release(fed) is not None
    assert len(seen[-1].context.parties) == BASKETS + 1
    assert seen[-1].release.num_honest == 2, "of t = 5 one may be corrupt, and two are not signed for"
    fed.split_basket("d1")
    assert release(fed) is None, "of t = 5 none is left: four are not signed for"
    fed.sign_roster(OPERATOR)
    assert release(fed) is not None
    assert len(seen[-1].context.parties) == BASKETS + 2
    assert seen[-1].release.num_honest == 4, "t = 5 of seven, one of them corrupt"


def test_an_unsigned_half_takes_part_where_the_others_suffice(fed_of: Any) -> None:
    fed = fed_of(operator_key=OPERATOR.public_bytes.hex(), layer2={"assumed_corrupt_fraction": 0.0})
    more = [(f"x{b}_{i}", f"x{b}") for b in range(5) for i in range(2)]
    fed.register_clients(more)
    fed.sign_roster(OPERATOR)
    fed.split_basket("d0")
    assert all(fed.submit_updates([c for c, _ in more], np.full((len(more), D), 0.1)))
    assert release(fed) is not None
    assert fed.get_global_meta_model().n_baskets == BASKETS + 6
    assert fed.get_roster().signature == b"", "the next epoch still waits"
    # A new domain's basket has nobody who vouches for it.
    fed.register_clients([("new_0", "new"), ("new_1", "new")])
    assert all(fed.submit_updates([c for c, _ in more], np.full((len(more), D), 0.1)))
    assert all(fed.submit_updates(["new_0", "new_1"], np.full((2, D), 0.1)))
    assert release(fed) is not None
    assert fed.get_global_meta_model().n_baskets == BASKETS + 6
    assert fed.get_stats()["n_sessions_refused"] == 0


def test_the_keys_of_a_basket_are_taken_from_its_own_actor_alone(fed_of: Any, monkeypatch: Any) -> None:
    fed = fed_of()
    thief, evil = IdentityKeyPair.generate().public_bytes, role(fed, "basket:4")
    knows, admits = evil.know_parties, evil.admit
    names = [place.basket_id for place in fed._driver.operations.routing_table().places if place.slot != 4]
    stolen = dict.fromkeys(names, thief)

    def lying(*args: Any) -> Any:
        answer = knows(*args)
        return replace(answer, keys={**answer.keys, **stolen})

    monkeypatch.setattr(evil, "know_parties", lying)
    monkeypatch.setattr(evil, "admit", lambda *args: {**admits(*args), **stolen})
    fed.register_client("more", domain_id="d4")
    assert release(fed) is not None
    assert thief not in fed.get_roster().keys().values()


def test_an_actor_refuses_a_roster_that_names_its_baskets_under_other_keys(fed_of: Any) -> None:
    fed = fed_of()
    assert release(fed) is not None
    roster, host = fed.get_roster(), hosts(fed)[1]
    (mine,) = host._secure.own_keys()
    thief = Party(mine, IdentityKeyPair.generate().public_bytes)
    false = roster.next([thief, *(party for party in roster.parties if party.party_id != mine)])
    answer = host.know_parties((false,))
    assert mine in answer.refusal
    assert answer.epoch == 1
    assert fed.get_stats()["n_sessions_refused"] == 1
    assert release(fed) is not None


def test_a_basket_actor_hijacks_no_basket_and_no_chain_as_the_directory_comes_back(
    fed_of: Any, monkeypatch: Any
) -> None:
    fed = fed_of()
    assert release(fed) is not None
    evil, others = role(fed, "basket:4"), hosts(fed)[:4]
    theirs = [a for host in others for a in host.step_down().admissions]
    honest, far = evil.step_down, replace(fed.get_roster(), epoch=1000, previous=bytes(range(32)))
    claimed = tuple(replace(a, place=replace(a.place, slot=4)) for a in theirs)

    def lying() -> Any:
        state = honest()
        return replace(state, admissions=(*state.admissions, *claimed), rosters=(far,))

    monkeypatch.setattr(evil, "step_down", lying)
    fed._runtime.kill("directory")
    fed.advance_round()
    slots = {place.domain_id: place.slot for place in fed._driver.operations.routing_table().places}
    assert slots == {f"d{b}": b for b in range(BASKETS)}
    assert release(fed) is not None
    assert epochs(fed) == {1}


def test_a_roster_of_a_directory_that_has_died_is_not_followed(fed_of: Any) -> None:
    """A driver that stalls with it in hand puts no actor on a fork."""
    fed = fed_of()
    assert release(fed) is not None
    fed.register_clients([("n0", "dn"), ("n1", "dn")])
    late = role(fed, "directory").registry()
    fed._runtime.kill("directory")
    fed.register_clients([("m0", "dm"), ("m1", "dm")])
    answer = hosts(fed)[0].know_parties(late.rosters, late.endorsements, late.life)
    assert "has died since" in answer.refusal
    assert release(fed) is not None
    assert epochs(fed) == {2}


def test_actors_that_a_directory_which_did_not_come_to_be_fenced_off_are_told_again(fed_of: Any) -> None:
    fed = fed_of()
    for host in hosts(fed):
        host.step_down()
    assert release(fed) is not None
    assert epochs(fed) == {1}


def test_who_died_with_the_directory_still_counts(fed_of: Any) -> None:
    fed = fed_of()
    assert release(fed) is not None
    before = fed.get_roster()
    for name in ("directory", "basket:0", "basket:1", "basket:2"):
        fed._runtime.kill(name)
    fed.advance_round()
    assert fed.get_roster() == before
    fed.disband_basket("d0_basket_0")
    assert len(fed.get_roster().parties) == BASKETS - 1


@pytest.mark.parametrize("lie", ["invented", "omitted"])
def test_a_driver_signs_no_roster_that_the_basket_actors_do_not_state(fed_of: Any, lie: str) -> None:
    fed = fed_of(operator_key=OPERATOR.public_bytes.hex(), operator_keypair=OPERATOR)
    directory = role(fed, "directory")
    live = directory._manager.live_basket_ids
    invented = {f"x_basket_{i}": IdentityKeyPair.generate().public_bytes for i in range(9)}
    directory._identities.update(invented)
    shown = {"invented": lambda: [*live(), *invented], "omitted": lambda: live()[:3]}
    registry, manager = directory.registry, directory._manager

    def false(since: int = 0) -> Any:
        manager.live_basket_ids = shown[lie]
        try:
            return registry(since)
        finally:
            manager.live_basket_ids = live

    directory.registry = false
    assert release(fed) is None
    assert role(fed, "directory")._chain.epoch == 0
    assert any("the next roster is not signed" in fault for fault in fed.get_stats()["faults"])
    directory.registry = registry
    assert release(fed) is not None


def test_a_directory_that_came_back_has_the_endorsements_again(fed_of: Any) -> None:
    fed = fed_of(operator_key=OPERATOR.public_bytes.hex(), layer2={"assumed_corrupt_fraction": 0.0})
    fed.sign_roster(OPERATOR)
    assert release(fed) is not None
    fed.split_basket("d0")
    assert len(fed._driver.tell_parties()[0].places) == BASKETS + 1
    fed._runtime.kill("directory")
    assert len(fed._driver.tell_parties()[0].places) == BASKETS + 1


def test_halves_that_nobody_vouches_for_are_a_fault(fed_of: Any) -> None:
    fed = fed_of(operator_key=OPERATOR.public_bytes.hex())
    fed.sign_roster(OPERATOR)
    assert release(fed) is not None
    fed._runtime.kill("basket:0")
    fed.split_basket("d0")
    assert any("await the operator's signature" in fault for fault in fed.get_stats()["faults"])


@pytest.mark.parametrize("operator_key", [None, OPERATOR.public_bytes.hex()], ids=["nobody", "operator"])
def test_an_actor_that_states_no_keys_is_named_and_blocks_nobody(
    fed_of: Any, monkeypatch: Any, operator_key: str | None
) -> None:
    fed = fed_of(operator_key=operator_key)
    monkeypatch.setattr(role(fed, "basket:4"), "admit", lambda *args: {})
    fed.split_basket("d4")
    fed.split_basket("d0")
    fed.advance_round()
    assert any("basket:4 states no key of d4_basket_" in fault for fault in fed.get_stats()["faults"])


def test_an_actor_that_obeys_no_order_is_named(fed_of: Any, monkeypatch: Any) -> None:
    fed = fed_of()

    def refusing(round_id: int, now: float, order: Any) -> Overtaken:
        return Overtaken(OrderNumber(order.number.life + 1))

    monkeypatch.setattr(role(fed, "basket:4"), "advance_round", refusing)
    with pytest.raises(ActorLost, match="basket:4 was lost: it obeys no order") as lost:
        fed.advance_round()
    assert not lost.value.retryable


def test_the_constructor_says_what_two_baskets_are_worth(fed_of: Any) -> None:
    with pytest.warns(PrivacyWarning, match=r"until 3 baskets are registered.*colludes with no basket"):
        fed_of()
    with pytest.warns(PrivacyWarning, match="each share of noise carries the whole noise"):
        fed_of(layer2={"noise": "distributed_discrete_gaussian"})
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*masking protects only", PrivacyWarning)
        fed_of(layer2={"min_baskets": 3})
        fed_of(layer2={"use_secure_aggregation": False})
        fed_of(layer2={"assumed_corrupt_fraction": 0.0})


def test_without_masks_nobody_takes_a_directory_that_came_back_for_a_dead_one(fed_of: Any) -> None:
    fed = fed_of(layer2={"use_secure_aggregation": False})
    assert release(fed) is not None
    fed._runtime.kill("directory")
    assert release(fed) is not None
    life = role(fed, "directory")._number.life
    fed._driver._told_registry = None
    assert release(fed) is not None
    assert role(fed, "directory")._number.life == life
