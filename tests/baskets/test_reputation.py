"""What a basket remembers of its clients' conduct."""

from __future__ import annotations

import pytest

from scarcity_ray.baskets.reputation import Standings


@pytest.fixture
def standings():
    known = Standings(by_agreement=True)
    for client_id in ("a", "b"):
        known.admit(client_id, 1.0)
    return known


def test_what_was_seen_is_told_once_and_trust_as_it_stands(standings):
    standings.accept("a", 5.0)
    standings.accept("a", 7.0)
    standings.refuse("b")
    told = standings.tell()
    assert (told["a"].accepted, told["a"].seen, told["a"].trust) == (2, 7.0, 1.0)
    assert (told["b"].accepted, told["b"].seen, told["b"].trust) == (0, 0.0, 0.5)
    assert standings.tell() == {}
    assert standings.trust("b") == 0.5
    standings.refuse("b")
    assert standings.tell()["b"].trust == 0.25


def test_trust_goes_with_a_client_that_moves(standings):
    standings.refuse("a")
    other = Standings(by_agreement=True)
    other.admit("a", 1.0)
    moved = standings.take("a")
    other.put("a", moved)
    assert other.trust("a") == 0.5
    assert standings.tell() == {}
    assert other.tell()["a"].trust == 0.5
    assert standings.take("stranger") is None


def test_leaving_and_coming_back_does_not_restore_trust(standings):
    standings.refuse("a")
    standings.admit("a", 1.0)  # came back before the directory was told
    assert standings.trust("a") == 0.5
    told = standings.tell()  # left again, and is forgotten here
    standings.admit("a", told["a"].trust)
    assert standings.trust("a") == 0.5


@pytest.mark.parametrize("by_agreement", [True, False])
def test_trust_does_not_follow_accepted_updates_where_it_follows_agreement(by_agreement):
    known = Standings(by_agreement)
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
    known = Standings(by_agreement=False)
    for i in range(50):
        known.admit(f"c{i}", 1.0)
    known._clients = Closed(known._clients)
    known.accept("c3", 5.0)
    assert set(known.tell()) == {"c3"}
    assert known.tell() == {}


def test_an_offence_is_held_against_a_client_once_and_goes_with_it(standings):
    for _ in range(3):
        standings.offend("a", 5, b"what it signed", since=4, most=2)
    assert standings.trust("a") == 0.5
    other = Standings(by_agreement=True)
    other.put("a", standings.take("a"))
    other.tell()
    other.offend("a", 5, b"what it signed", since=4, most=2)
    assert other.trust("a") == 0.5
    for message in (b"one more", b"and one", b"and another"):
        other.offend("a", 5, message, since=4, most=2)
    assert other.trust("a") == 0.25
    other.offend("a", 9, b"what it signed", since=8, most=2)
    assert other.trust("a") == 0.125
    assert list(other.take("a").offences) == [9]
