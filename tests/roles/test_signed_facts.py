"""What a basket signs about itself, and what is not accepted as such."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from scarcity_ray.config import BasketConfig, HierarchicalFederationConfig, Layer1Config
from scarcity_ray.plan import BasketFacts, make_plan
from scarcity_ray.roles.signed_facts import Occasion, SignedFacts, facts_digest, refusal, state
from scarcity_ray.secagg import IdentityKeyPair

KEY = IdentityKeyPair.generate()
OCCASION = Occasion("fed", b"s" * 16, 3, 1, b"r" * 32, "head")
FACTS = BasketFacts("d_basket_0", "d", 9, 7, 1, None, 0.5)


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
