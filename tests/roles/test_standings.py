"""What a basket remembers of its clients' conduct."""

from __future__ import annotations

import pytest

from scarcity_ray.roles.standings import Standings


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
    told = standings.tell({"a", "b"})
    assert (told["a"].accepted, told["a"].seen, told["a"].trust) == (2, 7.0, 1.0)
    assert (told["b"].accepted, told["b"].seen, told["b"].trust) == (0, 0.0, 0.5)
    assert standings.tell({"a", "b"}) == {}
    assert standings.trust("b") == 0.5
    standings.refuse("b")
    assert standings.tell({"a", "b"})["b"].trust == 0.25


def test_trust_goes_with_a_client_that_moves(standings):
    standings.refuse("a")
    other = Standings(by_agreement=True)
    other.admit("a", 1.0)
    moved = standings.take("a")
    other.put("a", moved)
    assert other.trust("a") == 0.5
    assert standings.tell({"b"}) == {}
    assert other.tell({"a"})["a"].trust == 0.5
    assert standings.take("stranger") is None


def test_leaving_and_coming_back_does_not_restore_trust(standings):
    standings.refuse("a")
    standings.admit("a", 1.0)  # came back before the directory was told
    assert standings.trust("a") == 0.5
    told = standings.tell({"b"})  # left again, and is forgotten here
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
