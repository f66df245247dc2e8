"""Who is registered: a chain of epochs that is followed and never turned back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import Endorsement, Party, Roster, RosterChain
from scarcity_ray.secagg.roster import KEPT, NOBODY_BEFORE


@pytest.fixture
def parties_of(identity_of):
    return lambda *numbers: tuple(Party(f"basket_{i}", identity_of(i).public_bytes) for i in numbers)


@pytest.fixture
def chain_of(parties_of):
    """A chain of epochs, with one more party each."""

    def make(epochs, *, federation="tests", first=2):
        chain = RosterChain(federation)
        for epoch in range(epochs):
            assert chain.follow((chain.next(parties_of(*range(first + epoch))),)) == ""
        return chain

    return make


def test_any_changed_field_changes_the_rosters_digest(parties_of):
    roster = Roster("tests", 3, b"p" * 32, parties_of(0, 1))
    changes = (
        {"federation_id": "others"},
        {"epoch": 4},
        {"previous": b"q" * 32},
        {"parties": parties_of(0)},
        {"parties": (parties_of(0)[0], Party("basket_1", parties_of(2)[0].identity_public))},
        {"parties": (parties_of(0)[0], Party("basket_2", parties_of(1)[0].identity_public))},
    )
    digests = {roster.digest(), *(replace(roster, **change).digest() for change in changes)}
    assert len(digests) == len(changes) + 1
    assert replace(roster, signature=b"s" * 64).digest() == roster.digest()
    assert replace(roster, parties=roster.parties[::-1]) == roster


def test_a_roster_comes_back_from_its_text(chain_of, identity_of):
    roster = chain_of(2).newest.signed(identity_of(8))
    assert Roster.from_json(roster.to_json()) == roster
    assert Roster.from_json(roster.to_json()).is_signed_by(identity_of(8).public_bytes)


@pytest.mark.parametrize(
    "change",
    [
        ("{", ""),
        ('"epoch": 1', '"epoch": 0'),
        ('"epoch": 1', '"epoch": "1"'),
        ('"tests"', "3"),
        ('"previous": "', '"previous": "00'),
        ('"signature": ""', '"signature": "00"'),
        ('"signature": ""', '"signature": "zz"'),
        ("basket_0", ""),
    ],
)
def test_a_text_that_is_no_roster_is_refused(chain_of, change):
    text = chain_of(1).newest.to_json()
    assert change[0] in text
    with pytest.raises(UsageError, match="no roster"):
        Roster.from_json(text.replace(*change))


def test_lower_skipped_and_forked_epochs_are_refused(chain_of, parties_of):
    whole = chain_of(5)
    one, two, three, four, five = whole.kept
    pinned = RosterChain("tests", kept=(two, three))
    assert "skips" in pinned.follow((five,))
    assert "another roster" in pinned.follow((one,))
    assert "another roster" in pinned.follow((replace(three, parties=parties_of(0, 1)),))
    assert "does not follow" in pinned.follow((replace(four, previous=two.digest()),))
    assert "another federation" in pinned.follow((chain_of(1, federation="others").newest,))
    assert pinned.newest is three
    assert pinned.follow((two, three)) == "", "what is pinned is passed over"
    assert pinned.newest is three
    assert pinned.follow((three, four, five)) == ""
    assert pinned.newest is five


def test_a_fork_is_refused_by_whoever_has_seen_one_side(chain_of, parties_of):
    common = chain_of(2)
    left, right = common.newest.next(parties_of(0, 1)), common.newest.next(parties_of(0, 1, 2, 3))
    chain = RosterChain("tests", kept=(common.newest, left))
    assert "another roster" in chain.follow((right,))
    assert "does not follow" in chain.follow((right.next(parties_of(0, 1)),))


@pytest.mark.parametrize(
    "rubbish",
    [
        None,
        3,
        {"epoch": 1},
        Roster("tests", True, NOBODY_BEFORE, ()),
        Roster("tests", 0, NOBODY_BEFORE, ()),
        Roster("tests", 1, b"", ()),
        Roster("tests", 1, NOBODY_BEFORE, (Party("a", b"short"),)),
        Roster("tests", 1, NOBODY_BEFORE, (Party("a", bytes(32)), Party("a", bytes(32)))),
        Roster("tests", 1, NOBODY_BEFORE, (), "signature"),
    ],
)
def test_rubbish_is_not_pinned(rubbish):
    chain = RosterChain("tests")
    assert chain.follow((rubbish,)) == "the roster is malformed"
    assert (chain.newest, chain.epoch, chain.known()) == (None, 0, {})


def test_its_memory_is_bounded_and_those_behind_are_told_what_lies_between(chain_of):
    chain = chain_of(KEPT + 9, first=1)
    assert len(chain.kept) == KEPT
    assert chain.epoch == KEPT + 9
    late = RosterChain("tests", kept=chain.kept[-5:-3])
    assert late.follow(chain.since(late.epoch)) == ""
    assert late.newest is chain.newest
    assert chain.since(0) == chain.kept[-1:], "who has none begins with the newest"


def test_without_the_operators_signature_nothing_is_pinned(parties_of, identity_of):
    operator, other = identity_of(8), identity_of(9)
    chain = RosterChain("tests", operator.public_bytes)
    draft = chain.next(parties_of(0, 1))
    for unsigned in (draft, draft.signed(other), replace(draft, signature=bytes(64))):
        assert "operator's signature" in chain.follow((unsigned,))
    moved = replace(draft.signed(operator), parties=parties_of(0, 1, 2))
    assert "operator's signature" in chain.follow((moved,))
    assert chain.newest is None
    assert chain.follow((draft.signed(operator),)) == ""
    assert chain.known() == {party.party_id: party.identity_public for party in parties_of(0, 1)}


def test_an_endorsed_party_is_known_and_not_registered(parties_of, identity_of):
    chain = RosterChain("tests")
    chain.follow((chain.next(parties_of(0, 1)),))
    two, three, four = parties_of(2, 3, 4)
    first = Endorsement("tests", "basket_0", two).signed(identity_of(0))
    second = Endorsement("tests", "basket_2", three).signed(identity_of(2))
    chain.endorse((first, second))
    assert set(chain.known()) == {"basket_0", "basket_1", "basket_2", "basket_3"}
    assert set(chain.newest.keys()) == {"basket_0", "basket_1"}
    false = (
        Endorsement("tests", "basket_0", four),
        Endorsement("tests", "basket_0", four).signed(identity_of(1)),
        Endorsement("others", "basket_0", four).signed(identity_of(0)),
        Endorsement("tests", "basket_9", four).signed(identity_of(9)),
        replace(first, party=four),
        Endorsement("tests", "basket_0", Party("basket_1", four.identity_public)).signed(identity_of(0)),
        Endorsement("tests", "basket_1", Party("basket_2", four.identity_public)).signed(identity_of(1)),
    )
    before = chain.known()
    chain.endorse(false)
    assert chain.known() == before
