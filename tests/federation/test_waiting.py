"""Why there is no model: each case, and that what is named as missing is what was missing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from scarcity_ray.baskets.reports import NAMED, Backlog, Registered
from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig
from scarcity_ray.errors import ConfigError
from scarcity_ray.federation.waiting import Missing, waiting_for
from scarcity_ray.plan import FederationPlan, make_plan, session_shape
from scarcity_ray.secagg import IdentityKeyPair


def plan_of(**config: Any) -> FederationPlan:
    return make_plan(HierarchicalFederationConfig(**config))


def basket(
    name: str,
    members: int,
    senders: int = 0,
    *,
    fresh: bool = False,
    seconds: float = 0.0,
    staleness: int = 0,
) -> Backlog:
    absent = tuple(f"{name}{i}" for i in range(senders, members))[:NAMED]
    return Backlog(f"{name}_basket_0", name, members, senders, absent, staleness, seconds, fresh)


def test_without_clients_the_first_step_is_named() -> None:
    waits = waiting_for(plan_of(), [])
    assert waits.missing is Missing.BASKETS
    assert "register_client" in str(waits)


def test_one_domain_alone_never_makes_a_release() -> None:
    waits = waiting_for(plan_of(), [basket("a", 3, 3)])
    assert (waits.missing, waits.least_baskets) == (Missing.BASKETS, 2)
    assert "register clients in another domain" in waits.sentence
    assert "split_basket" not in waits.sentence
    assert "split_basket('a_basket_0')" in waiting_for(plan_of(), [basket("a", 10, 10)]).sentence


def test_a_basket_too_small_for_its_rule_is_told_how_many_are_missing_and_what_else_would_do() -> None:
    waits = waiting_for(plan_of(), [basket("a", 2, 2), basket("b", 2, 2)])
    assert waits.missing is Missing.AGGREGATES
    first = waits.baskets[0]
    assert (first.missing, first.least_rows, first.num_members, first.rule) == (Missing.MEMBERS, 3, 2, "krum")
    for words in ("krum with f = 0 needs 3 rows", "register 1 more in domain a", "aggregation_method: mean"):
        assert words in first.sentence


def test_an_absent_member_is_named() -> None:
    waits = waiting_for(plan_of(), [basket("a", 5, 4), basket("b", 5, 5)])
    first, second = waits.baskets
    assert (first.missing, first.absent, first.num_absent) == (Missing.UPDATES, ("a4",), 1)
    assert "krum with f = 1 needs 5 rows" in first.sentence
    assert "have a4 submit, or unregister_client" in first.sentence
    assert second.missing is Missing.CALL
    assert "run_gossip_round" in second.sentence


def test_many_absent_members_are_counted() -> None:
    (wait,) = waiting_for(plan_of(), [basket("a", 90)]).baskets
    assert (len(wait.absent), wait.num_absent) == (NAMED, 90)
    assert "and 80 more submit" in wait.sentence


def test_enough_but_not_all_waits_for_them_or_for_time() -> None:
    (wait,) = waiting_for(plan_of(), [basket("a", 10, 8, seconds=12.0)]).baskets
    assert (wait.missing, wait.seconds_left) == (Missing.TRIGGER, 48.0)
    assert "a8, a9, or 48 s (buffer.time_trigger_seconds)" in wait.sentence
    (due,) = waiting_for(plan_of(), [basket("a", 10, 8, seconds=61.0)]).baskets
    assert due.missing is Missing.CALL
    (stale,) = waiting_for(plan_of(), [basket("a", 10, 8, staleness=5)]).baskets
    assert stale.missing is Missing.CALL


def test_min_updates_is_named_where_it_is_what_is_missing() -> None:
    plan = plan_of(layer1={"aggregation_method": "mean", "byzantine_fraction": 0.0})
    (wait,) = waiting_for(plan, [basket("a", 4, 2)]).baskets
    assert "layer1.min_updates asks for 3 rows, 2 of 4 clients have sent" in wait.sentence


def test_fresh_baskets_wait_for_the_others_or_for_the_interval() -> None:
    crowd = [*(basket(name, 5, fresh=True) for name in "abc"), basket("d", 5)]
    waits = waiting_for(plan_of(), crowd, 20.0)
    assert (waits.missing, waits.num_fresh, waits.wanted_baskets) == (Missing.TRIGGER, 3, 4)
    assert waits.seconds_left == 40.0
    assert [wait.missing for wait in waits.baskets] == [Missing.UPDATES, *[Missing.RELEASE] * 3]
    assert waiting_for(plan_of(), crowd, 60.0).missing is Missing.CALL
    assert waiting_for(plan_of(), crowd[:3]).missing is Missing.CALL


@pytest.mark.parametrize(("number", "least", "left"), [(3, 3, 2), (4, 3, 2), (12, 4, 2)])
def test_those_that_may_be_corrupt_ask_for_more_than_min_baskets(number: int, least: int, left: int) -> None:
    crowd = [basket(f"d{i}", 5, fresh=i < 2) for i in range(number)]
    waits = waiting_for(plan_of(), crowd, 1000.0)
    assert (waits.missing, waits.num_fresh, waits.least_baskets) == (Missing.AGGREGATES, 2, least)
    assert waits.num_registered == number
    for words in (
        f"A release needs {least} baskets with a new aggregate",
        f"of the {number} registered may be corrupt, layer2.assumed_corrupt_fraction), 2 of {number} have",
        f"close idle ones until {left} are registered",
        "too few to hide one from an aggregator that colludes with another",
        "layer2.assumed_corrupt_fraction: 0",
    ):
        assert words in waits.sentence
    more = [basket(f"d{i}", 5, fresh=i < least) for i in range(number)]
    assert waiting_for(plan_of(), more, 1000.0).missing is Missing.CALL
    assert waiting_for(plan_of(), crowd[:left], 1000.0).missing is Missing.CALL
    trusting = plan_of(layer2={"assumed_corrupt_fraction": 0.0})
    assert waiting_for(trusting, crowd, 1000.0).missing is Missing.CALL
    plain = plan_of(layer2={"use_secure_aggregation": False, "noise": "gaussian"})
    assert waiting_for(plain, crowd, 1000.0).missing is Missing.CALL


@given(number=st.integers(2, 40), fresh=st.integers(0, 40), hundredths=st.sampled_from([0, 5, 10, 20, 30]))
def test_what_a_release_is_said_to_need_is_what_layer_2_asks_for(
    number: int, fresh: int, hundredths: int
) -> None:
    """`GlobalAggregator` asks `too_few` of a session of all that are registered."""
    fresh = min(fresh, number)
    plan = plan_of(layer2={"assumed_corrupt_fraction": hundredths / 100})
    crowd = [basket(f"d{i}", 5, fresh=i < fresh) for i in range(number)]
    waits = waiting_for(plan, crowd, 1000.0)
    refused = session_shape(plan.config.layer2, number, registered=number).too_few(fresh)
    assert waits.missing is (Missing.AGGREGATES if refused else Missing.CALL)
    if "until" in waits.sentence:
        left = int(waits.sentence.split("until ")[1].split()[0])
        assert fresh <= left < number
        assert waiting_for(plan, crowd[:left], 1000.0).missing is Missing.CALL


def test_baskets_that_no_signed_roster_names_wait_for_the_operator() -> None:
    plan = plan_of(operator_key=IdentityKeyPair.generate().public_bytes.hex())
    crowd = [basket("a", 5, fresh=True), basket("b", 5, fresh=True)]
    names = [backlog.basket_id for backlog in crowd]
    unsigned = waiting_for(plan, crowd, registered=Registered(2, frozenset(names), has_roster=False))
    assert unsigned.missing is Missing.ROSTER
    assert "`scarcity-ray roster sign`, then fed.sign_roster(...)" in unsigned.sentence
    one = waiting_for(plan, crowd, registered=Registered(1, frozenset(names[:1])))
    assert (one.missing, one.num_fresh) == (Missing.ROSTER, 1)
    assert "1 basket has a new aggregate, but no roster" in one.sentence
    halves = waiting_for(plan, crowd, registered=Registered(3, frozenset(names), num_unsigned=1))
    assert (halves.missing, halves.least_baskets) == (Missing.BASKETS, 4)
    assert "1 not signed for" in halves.sentence
    assert waiting_for(plan, crowd, registered=Registered(2, frozenset(names))).missing is Missing.CALL


def test_a_basket_that_lost_its_clients_counts_until_the_next_round() -> None:
    crowd = [basket("a", 5, fresh=True), basket("b", 5, fresh=True), basket("c", 0)]
    waits = waiting_for(plan_of(), crowd)
    assert (waits.missing, waits.least_baskets) == (Missing.BASKETS, 3)
    assert "advance_round, until which a basket that has lost all its clients counts" in waits.sentence
    assert waiting_for(plan_of(), crowd[:2]).missing is Missing.CALL
    gone = [basket("a", 5, fresh=True), basket("b", 0, fresh=True)]
    assert waiting_for(plan_of(), gone, 1000.0).missing is Missing.CALL, "its aggregate may still be released"


def test_an_abort_is_told_while_its_baskets_are_there_to_try_again() -> None:
    crowd = [basket("a", 5, fresh=True), basket("b", 5, fresh=True)]
    assert "too few survived" in str(waiting_for(plan_of(), crowd, last_abort="too few survived"))


def test_a_spent_budget_comes_before_everything() -> None:
    waits = waiting_for(plan_of(), [basket("a", 5, 4)], read_only=True)
    assert waits.missing is Missing.BUDGET
    assert "renew_budget" in str(waits)
    assert waits.baskets == (), "nobody is sent to work that nothing accepts"
    assert "submit" not in str(waits)


def test_a_ledger_that_was_taken_over_is_no_spent_budget() -> None:
    taken = "x.sqlite: it was taken over: end this federation, the other one goes on"
    waits = waiting_for(plan_of(), [basket("a", 5, 4)], read_only=True, taken_over=taken)
    assert waits.missing is Missing.LEDGER
    assert str(waits) == f"Nothing is accepted, aggregated or released: {taken}."


def test_without_layer_2_there_never_is_a_global_model() -> None:
    waits = waiting_for(plan_of(layer2={"enabled": False}), [basket("a", 5, 4)])
    assert waits.missing is Missing.LAYER2
    assert waits.baskets[0].missing is Missing.UPDATES


def test_a_rule_that_no_number_of_members_suits_is_answered_too() -> None:
    plan = plan_of(
        basket={"min_clients": 3, "max_clients": 2**31 - 1},
        layer1={"aggregation_method": "bulyan", "byzantine_fraction": 0.3},
    )
    (wait,) = waiting_for(plan, [basket("a", 40, 40)]).baskets
    assert wait.missing is Missing.MEMBERS
    assert "register" not in wait.sentence
    assert "layer1.byzantine_fraction: 0.0" in wait.sentence


def test_it_is_plain_data_too() -> None:
    waits = waiting_for(plan_of(), [basket("a", 5, 4)])
    plain = json.loads(json.dumps(waits.as_json()))
    assert plain["text"] == str(waits)
    assert plain["baskets"][0]["missing"] == "updates"
    told = waits.as_json()
    assert type(told["missing"]) is type(told["baskets"][0]["missing"]) is str


@given(
    rule=st.sampled_from(
        [method for method in AggregationMethod if method is not AggregationMethod.WEIGHTED]
    ),
    hundredths=st.integers(0, 45),
    least=st.integers(1, 6),
    members=st.integers(1, 40),
    data=st.data(),
)
def test_what_is_said_to_be_missing_is_missing(
    rule: AggregationMethod, hundredths: int, least: int, members: int, data: st.DataObject
) -> None:
    layer1 = {"aggregation_method": rule, "byzantine_fraction": hundredths / 100, "min_updates": least}
    try:
        plan = plan_of(layer1=layer1, basket={"min_clients": 3, "max_clients": 60})
    except ConfigError:
        return
    here = basket("a", members, data.draw(st.integers(0, members)))

    def state(backlog: Backlog, of: FederationPlan = plan) -> Missing:
        return waiting_for(of, [backlog]).baskets[0].missing

    (wait,) = waiting_for(plan, [here]).baskets
    if wait.missing is Missing.MEMBERS:
        assert state(replace(here, num_senders=members)) is Missing.MEMBERS
        if "register" in wait.sentence:
            more = members + int(wait.sentence.split("register ")[1].split()[0])
            assert state(basket("a", more, more)) is Missing.CALL
            assert all(state(basket("a", n, n)) is Missing.MEMBERS for n in range(members, more))
    elif wait.missing is Missing.UPDATES:
        assert here.num_senders < wait.least_rows
        assert state(replace(here, num_senders=wait.least_rows)) in (Missing.TRIGGER, Missing.CALL)
        if "unregister" in wait.sentence:
            assert state(basket("a", here.num_senders, here.num_senders)) is Missing.CALL
    elif wait.missing is Missing.TRIGGER:
        assert state(replace(here, seconds=here.seconds + (wait.seconds_left or 0.0))) is Missing.CALL
        assert state(replace(here, num_senders=members)) is Missing.CALL


@pytest.mark.parametrize("members", [1, 2, 4])
def test_the_settings_that_are_named_do_make_the_basket_aggregate(members: int) -> None:
    plan = plan_of(
        layer1={"aggregation_method": "bulyan", "byzantine_fraction": 0.25}, basket={"min_clients": 7}
    )
    (wait,) = waiting_for(plan, [basket("a", members, members)]).baskets
    said = wait.sentence.split("set ")[1].split(", which")[0]
    changes: dict[str, Any] = {}
    for part in said.split(" and "):
        name, value = part.removeprefix("layer1.").split(": ")
        changes[name] = value if name == "aggregation_method" else int(float(value))
    changed = plan_of(layer1={"aggregation_method": "bulyan", **changes}, basket={"min_clients": 7})
    assert waiting_for(changed, [basket("a", members, members)]).baskets[0].missing is Missing.CALL
