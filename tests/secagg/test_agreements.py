"""Secrets that two parties of one host agree on: computed once, and never those of another pair."""

from __future__ import annotations

import pickle

import pytest

from scarcity_ray.errors import ProtocolViolation, UsageError
from scarcity_ray.secagg import Agreements, Participant, PublicView, key_agreement
from scarcity_ray.secagg.key_agreement import agree, extract, private_key_from, public_key_of


def key(number):
    private = private_key_from(bytes([number]) * 32)
    return private, public_key_of(private)


@pytest.fixture
def exchanged(monkeypatch):
    """The peers' keys of all secrets that are computed."""
    seen = []
    honest = key_agreement.agree

    def noting(private, peer_public):
        seen.append(peer_public)
        return honest(private, peer_public)

    monkeypatch.setattr(key_agreement, "agree", noting)
    return seen


def test_a_pair_on_one_host_is_agreed_on_once(session_of, identity_of, exchanged):
    session = session_of(6, threshold=4)
    view, agreements = PublicView(session.context), Agreements()
    for i in range(6):
        party = f"basket_{i}"
        session.participants[party] = Participant(
            session.context, party, identity_of(i), view=view, agreements=agreements
        )
    assert (session.run() == sum(session.vectors.values())).all()
    pairs, selves = 6 * 5 // 2, 6
    assert len(exchanged) == 2 * (pairs + selves), "a cipher and a mask secret each"
    assert not agreements._waiting


def test_what_is_taken_is_what_would_be_computed(exchanged):
    """Also where a stranger repeats a key that was made here, or the parties ask in any order."""
    agreements = Agreements()
    (a, a_public), (b, b_public), (_, c_public) = key(1), key(2), key(3)
    agreements.made(a_public)
    agreements.made(b_public)
    asked = [
        (a, a_public, b_public),
        (a, a_public, b_public),
        (b, b_public, a_public),
        (a, a_public, c_public),
    ]
    asked += [(a, a_public, a_public), (b, b_public, c_public), (b, b_public, a_public)]
    for private, public, peer in asked:
        assert agreements.agree(private, public, peer) == extract(agree(private, peer))
    assert agreements.agree(a, a_public, c_public) != agreements.agree(a, a_public, b_public)
    with pytest.raises(ProtocolViolation):
        agreements.agree(a, a_public, bytes(32))


def test_nothing_waits_that_was_taken_or_wiped(exchanged):
    agreements = Agreements()
    (a, a_public), (b, b_public), (_, c_public) = key(1), key(2), key(3)
    agreements.made(a_public)
    agreements.made(b_public)
    agreements.agree(a, a_public, c_public)
    agreements.agree(a, a_public, a_public)
    assert not agreements._waiting, "nobody here will ask for these again"
    agreements.agree(a, a_public, b_public)
    assert len(agreements._waiting) == 1
    agreements.agree(b, b_public, a_public)
    assert not agreements._waiting
    agreements.agree(a, a_public, b_public)
    agreements.wipe()
    assert not agreements._waiting
    assert agreements.agree(b, b_public, a_public) == extract(agree(b, a_public))
    assert repr(agreements) == "Agreements(...)"
    with pytest.raises(UsageError):
        pickle.dumps(agreements)


@pytest.mark.parametrize("end", ["mask", "close"])
def test_secrets_that_a_silent_party_never_asked_for_are_wiped_with_the_others(session_of, identity_of, end):
    session = session_of(4, threshold=3, drops={"basket_3": "share_keys"})
    agreements = Agreements()
    for i in range(4):
        party = f"basket_{i}"
        session.participants[party] = Participant(
            session.context, party, identity_of(i), agreements=agreements
        )
    session.until("mask")
    assert len(agreements._waiting) == 2 * 3, "with whom basket_3 would have agreed"
    session.mask() if end == "mask" else session.participants["basket_0"].close()
    assert not agreements._waiting
