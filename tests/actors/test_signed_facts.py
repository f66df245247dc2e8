"""What a basket signs about itself, and what is not accepted as such."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from scarcity_ray.actors.signed_facts import Occasion, SignedFacts, facts_digest, implausible, refusal, state
from scarcity_ray.config import BasketConfig, HierarchicalFederationConfig, Layer1Config, Layer2Config
from scarcity_ray.plan import BasketFacts, make_plan
from scarcity_ray.secagg import IdentityKeyPair

KEY = IdentityKeyPair.generate()
OCCASION = Occasion("fed", b"s" * 16, 3, 1, b"r" * 32, "head")
FACTS = BasketFacts("d_basket_0", "d", 9, 7, 1, None, 1.0)


@pytest.fixture(scope="module")
def plan():
    return make_plan(
        HierarchicalFederationConfig(
            basket=BasketConfig(max_clients=20), layer1=Layer1Config(aggregation_method="trimmed_mean")
        )
    )


def why(plan, said, occasion=OCCASION, party="d_basket_0"):
    return refusal(party, KEY.public_bytes, said, occasion, plan)


def test_what_a_basket_signs_is_accepted(plan):
    assert why(plan, state(FACTS, OCCASION, KEY)) == ""
    assert why(plan, state(BasketFacts("d_basket_0", "d", 0), OCCASION, KEY)) == ""


OTHERS = {
    "federation_id": "other",
    "session_id": b"t" * 16,
    "round_id": 4,
    "attempt": 2,
    "roster": b"q" * 32,
    "ledger_head": "",
}


@pytest.mark.parametrize("name", OTHERS)
def test_facts_of_another_occasion_are_refused(plan, name):
    assert set(OTHERS) == {field.name for field in fields(Occasion)}
    other = replace(OCCASION, **{name: OTHERS[name]})
    assert "not signed by it for this attempt" in why(plan, state(FACTS, OCCASION, KEY), other)
    assert facts_digest({"d_basket_0": state(FACTS, OCCASION, KEY)}, other) != facts_digest(
        {"d_basket_0": state(FACTS, OCCASION, KEY)}, OCCASION
    )


CHANGES = {
    "basket_id": "e_basket_0",
    "domain_id": "e",
    "num_members": 8,
    "num_rows": 6,
    "num_byzantine": 0,
    "max_row_share": 0.5,
    "clip_norm": None,
    "num_persons": 500,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_fact_is_refused(plan, name):
    assert set(CHANGES) == {field.name for field in fields(BasketFacts)}
    said = state(FACTS, OCCASION, KEY)
    changed = replace(said, facts=replace(FACTS, **{name: CHANGES[name]}))
    assert why(plan, changed)
    assert facts_digest({"a": changed}, OCCASION) != facts_digest({"a": said}, OCCASION)
    assert "another basket" in why(plan, said, party="d_basket_1")
    assert "not signed" in refusal(
        "d_basket_0", IdentityKeyPair.generate().public_bytes, said, OCCASION, plan
    )


def test_each_statement_is_new():
    assert state(FACTS, OCCASION, KEY) != state(FACTS, OCCASION, KEY)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_members": 21}, "more than basket.max_clients = 20"),
        ({"num_rows": 21}, "more than basket.max_clients = 20"),
        ({"num_rows": 2}, "fewer than its rule needs"),
        ({"num_byzantine": 4}, "fewer than its rule needs"),
        ({"clip_norm": 1e30}, "rows of norm 1e+30, to which nothing is clipped here"),
        ({"clip_norm": 1.0 + 2.0**-52}, "to which nothing is clipped here"),
        ({"max_row_share": 0.5}, "a share of one row, where rows are not weighted"),
        ({"domain_id": "e"}, "its domain is not 'e'"),
        ({"num_rows": -1}, "malformed"),
        ({"num_rows": 7.0}, "malformed"),
        ({"num_members": True}, "malformed"),
        ({"num_byzantine": 2**40}, "malformed"),
        ({"clip_norm": float("nan")}, "malformed"),
        ({"clip_norm": float("inf")}, "malformed"),
        ({"clip_norm": 0.0}, "malformed"),
        ({"max_row_share": 1.5}, "malformed"),
        ({"max_row_share": "1"}, "malformed"),
        ({"domain_id": None}, "malformed"),
    ],
)
def test_facts_that_no_basket_can_have_are_refused(plan, changes, reason):
    """Though it signs them: a corrupt basket has no more weight than a full one, and stops nobody's sums."""
    facts = replace(FACTS, **changes)
    try:
        said = state(facts, OCCASION, KEY)
    except (AttributeError, OverflowError, TypeError):
        said = SignedFacts(facts, bytes(16), bytes(64))
    assert reason in why(plan, said)


@pytest.mark.parametrize("rubbish", [None, 3, FACTS, SignedFacts(None), SignedFacts(FACTS), {"facts": FACTS}])
def test_what_is_no_statement_is_refused(plan, rubbish):
    assert "missing or malformed" in why(plan, rubbish)


def test_a_clip_norm_that_an_adaptive_release_may_tell_is_one_that_a_basket_may_have():
    plan = make_plan(
        HierarchicalFederationConfig(
            layer1=Layer1Config(aggregation_method="mean", byzantine_fraction=0.0),
            layer2=Layer2Config(adaptive_clipping=True, clip_norm_range=(0.25, 4.0)),
        )
    )
    facts = replace(FACTS, num_byzantine=0, max_row_share=None)
    for clip_norm, possible in ((0.25, True), (1.0, True), (4.0, True), (0.24, False), (4.1, False)):
        assert (implausible(replace(facts, clip_norm=clip_norm), plan) == "") is possible


@pytest.mark.parametrize(("share", "possible"), [(1.0 / 7.0, True), (0.5, True), (1.0, True), (0.1, False)])
def test_the_largest_share_is_no_less_than_an_equal_one(share, possible):
    plan = make_plan(
        HierarchicalFederationConfig(
            layer1=Layer1Config(aggregation_method="weighted", byzantine_fraction=0.0),
        )
    )
    facts = replace(FACTS, num_rows=7, num_byzantine=0, max_row_share=share, clip_norm=None)
    assert (implausible(facts, plan) == "") is possible
