"""How trust follows what clients do, and what a basket remembers of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.baskets.reputation import Reputations, after_acceptance, after_agreement, after_refusal
from scarcity_ray.directory.records import FIRST_TRUST

SHARE = st.floats(0, 1)
ACTS = st.lists(SHARE | st.sampled_from(["refused", "accepted"]), max_size=60)


def follow(trust: float, acts: list[float | str]) -> float:
    for act in acts:
        if act == "refused":
            trust = after_refusal(trust)
        elif act == "accepted":
            trust = after_acceptance(trust)
        else:
            trust = after_agreement(trust, float(act))
    return trust


@given(trust=SHARE, acts=ACTS)
def test_trust_stays_in_0_1(trust: float, acts: list[float | str]) -> None:
    assert 0.0 <= follow(trust, acts) <= 1.0


@given(trust=SHARE, more=SHARE, acts=ACTS, data=st.data())
def test_trust_is_monotone_in_each_agreement_and_in_what_it_was_before(
    trust: float, more: float, acts: list[float | str], data: st.DataObject
) -> None:
    better = [act if isinstance(act, str) else data.draw(st.floats(act, 1)) for act in acts]
    assert follow(max(trust, more), better) >= follow(trust, acts) - 1e-12


@given(trust=SHARE, acts=ACTS)
def test_who_always_agrees_tends_to_1_who_never_does_to_0_whatever_the_trust_before(
    trust: float, acts: list[float | str]
) -> None:
    start = follow(trust, acts)
    assert follow(start, [1.0] * 200) > 1 - 1e-8
    assert follow(start, [0.0] * 200) < 1e-8


@given(trust=SHARE)
def test_a_refused_update_halves_trust(trust: float) -> None:
    assert after_refusal(trust) == trust / 2


def test_only_agreement_or_accepted_updates_give_trust_back() -> None:
    assert FIRST_TRUST == 1.0
    assert after_acceptance(after_refusal(FIRST_TRUST)) == pytest.approx(0.51)
    assert follow(0.5, ["accepted"] * 60) == 1.0


@pytest.fixture
def reputations():
    known = Reputations(by_agreement=True)
    for client_id in ("a", "b"):
        known.admit(client_id, 1.0)
    return known


def test_what_was_seen_is_told_once_and_trust_as_it_stands(reputations):
    reputations.accept("a", 5.0)
    reputations.accept("a", 7.0)
    reputations.refuse("b")
    told = reputations.tell()
    assert (told["a"].accepted, told["a"].seen, told["a"].trust) == (2, 7.0, 1.0)
    assert (told["b"].accepted, told["b"].seen, told["b"].trust) == (0, 0.0, 0.5)
    assert reputations.tell() == {}
    assert reputations.trust("b") == 0.5
    reputations.refuse("b")
    assert reputations.tell()["b"].trust == 0.25


def test_trust_goes_with_a_client_that_moves(reputations):
    reputations.refuse("a")
    other = Reputations(by_agreement=True)
    other.admit("a", 1.0)
    moved = reputations.take("a")
    other.put("a", moved)
    assert other.trust("a") == 0.5
    assert reputations.tell() == {}
    assert other.tell()["a"].trust == 0.5
    assert reputations.take("stranger") is None


def test_leaving_and_coming_back_does_not_restore_trust(reputations):
    reputations.refuse("a")
    reputations.admit("a", 1.0)  # came back before the directory was told
    assert reputations.trust("a") == 0.5
    told = reputations.tell()  # left again, and is forgotten here
    reputations.admit("a", told["a"].trust)
    assert reputations.trust("a") == 0.5


@pytest.mark.parametrize("by_agreement", [True, False])
def test_trust_does_not_follow_accepted_updates_where_it_follows_agreement(by_agreement):
    known = Reputations(by_agreement)
    known.admit("a", 0.5)
    known.accept("a", 1.0)
    assert known.trust("a") == (0.5 if by_agreement else pytest.approx(0.51))
    known.agree({"a": 1.0})
    assert known.trust("a") > 0.5


class Closed(dict):
    """A mapping that can be asked for one key, and never be looked through."""

    def _refuse(self, *_):
        raise AssertionError("somebody looks at all of them")

    __iter__ = keys = values = items = _refuse


def test_telling_looks_at_clients_of_which_there_is_news_and_at_no_others():
    known = Reputations(by_agreement=False)
    for i in range(50):
        known.admit(f"c{i}", 1.0)
    known._clients = Closed(known._clients)
    known.accept("c3", 5.0)
    assert set(known.tell()) == {"c3"}
    assert known.tell() == {}


def test_an_offence_is_held_against_a_client_once_and_goes_with_it(reputations):
    for _ in range(3):
        reputations.offend("a", 5, b"what it signed", since=4, most=2)
    assert reputations.trust("a") == 0.5
    other = Reputations(by_agreement=True)
    other.put("a", reputations.take("a"))
    other.tell()
    other.offend("a", 5, b"what it signed", since=4, most=2)
    assert other.trust("a") == 0.5
    for message in (b"one more", b"and one", b"and another"):
        other.offend("a", 5, message, since=4, most=2)
    assert other.trust("a") == 0.25
    other.offend("a", 9, b"what it signed", since=8, most=2)
    assert other.trust("a") == 0.125
    assert list(other.take("a").offences) == [9]
