"""Secrets that two parties of one host agree on: computed once, and never those of another pair."""

from __future__ import annotations

import pickle
from dataclasses import replace

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
    assert len(exchanged) == pairs + 2 * selves, "mask secrets; shares within the host need none"
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
        assert agreements.for_masks(private, public, peer) == extract(agree(private, peer))
    assert agreements.for_masks(a, a_public, c_public) != agreements.for_masks(a, a_public, b_public)
    with pytest.raises(ProtocolViolation):
        agreements.for_masks(a, a_public, bytes(32))


def test_shares_within_a_host_are_sealed_from_all_outside(exchanged):
    """The two on a host agree; whoever repeats a key from outside, or has another host, does not."""
    here, there = Agreements(), Agreements()
    (a, a_public), (b, b_public), (c, c_public) = key(1), key(2), key(3)
    here.made(a_public)
    here.made(b_public)
    there.made(c_public)
    within = here.for_shares(a, a_public, b_public)
    assert within == here.for_shares(b, b_public, a_public) == here.for_shares(a, a_public, b_public)
    assert not exchanged
    assert within not in (extract(agree(a, b_public)), here.for_shares(a, a_public, a_public))
    there.made(a_public)
    there.made(b_public)
    assert there.for_shares(a, a_public, b_public) != within, "each attempt and host draws its own"
    across = here.for_shares(a, a_public, c_public)
    assert across == Agreements().for_shares(c, c_public, a_public) == extract(agree(a, c_public))
    here.wipe()
    assert here.for_shares(a, a_public, b_public) == extract(agree(a, b_public)), "never under a key of zeros"


def test_parties_of_two_hosts_make_one_sum_though_a_third_repeats_a_key(session_of, identity_of):
    """A corrupt party advertises the keys of an honest one; the honest on their hosts are none the worse."""
    session = session_of(7, threshold=4)
    hosts = [Agreements(), Agreements()]
    for i in range(7):
        party = f"basket_{i}"
        session.participants[party] = Participant(
            session.context, party, identity_of(i), agreements=hosts[i % 2] if i < 6 else None
        )
    for party in list(session.participants)[:6]:
        session.coordinator.add_advert(session.participants[party].advertise())
    copied = session.coordinator._adverts["basket_1"]
    corrupt = session.participants["basket_6"]
    forged = corrupt._signed(
        replace(corrupt.advertise(), cipher_public=copied.cipher_public, mask_public=copied.mask_public)
    )
    session.coordinator.add_advert(forged)
    session.drops = {"basket_6": "share_keys"}
    for step in ("share_keys", "mask", "confirm", "unmask"):
        getattr(session, step)()
    honest = [session.vectors[f"basket_{i}"] for i in range(6)]
    assert (session.coordinator.finish() == sum(honest)).all()


def test_nothing_waits_that_was_taken_or_wiped(exchanged):
    agreements = Agreements()
    (a, a_public), (b, b_public), (_, c_public) = key(1), key(2), key(3)
    agreements.made(a_public)
    agreements.made(b_public)
    agreements.for_masks(a, a_public, c_public)
    agreements.for_masks(a, a_public, a_public)
    assert not agreements._waiting, "nobody here will ask for these again"
    agreements.for_masks(a, a_public, b_public)
    assert len(agreements._waiting) == 1
    agreements.for_masks(b, b_public, a_public)
    assert not agreements._waiting
    agreements.for_masks(a, a_public, b_public)
    agreements.wipe()
    assert not agreements._waiting
    assert agreements.for_masks(b, b_public, a_public) == extract(agree(b, a_public))
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
    assert len(agreements._waiting) == 3, "with whom basket_3 would have agreed"
    assert any(agreements._own)
    own = agreements._own
    session.mask() if end == "mask" else session.participants["basket_0"].close()
    assert not agreements._waiting
    assert not any(own)
