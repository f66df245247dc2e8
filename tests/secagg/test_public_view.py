"""What a host checks once for all that it hosts, and what it must not take over from one to another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg import IdentityKeyPair, Participant, PublicView

STEPS = ("advertise", "share_keys", "mask", "confirm", "unmask")


@pytest.fixture
def verified(monkeypatch):
    """Every signature that is verified, as (key, content, signature)."""
    seen = []
    honest = IdentityKeyPair.verify_with

    def noting(*arguments):
        seen.append(arguments)
        return honest(*arguments)

    monkeypatch.setattr(IdentityKeyPair, "verify_with", staticmethod(noting))
    return seen


@pytest.fixture
def hosted_of(session_of, identity_of):
    """A session whose participants live on one host."""

    def make(count, **changes):
        session = session_of(count, **changes)
        view = PublicView(session.context)
        for i in range(count):
            party = f"basket_{i}"
            session.participants[party] = Participant(session.context, party, identity_of(i), view=view)
        return session

    return make


@pytest.mark.parametrize("changes", [{}, {"degree": 6, "share_threshold": 5}], ids=["complete", "sparse"])
def test_a_host_verifies_each_signature_once(hosted_of, verified, changes):
    session = hosted_of(12, threshold=9, **changes)
    total = session.run()
    assert (total == sum(session.vectors.values())).all()
    # The coordinator has every message once, the host every advert and confirmation.
    assert len(verified) == 12 * 5 + 12 * 2
    again = hosted_of(12, threshold=9, attempt=1, **changes)
    again.participants = {
        p: Participant(again.context, p, m._identity) for p, m in again.participants.items()
    }
    verified.clear()
    again.run()
    neighbourhood = changes.get("degree", 11) + 1
    assert len(verified) == 12 * 5 + 12 * 2 * neighbourhood, "alone each checks for itself"


@pytest.mark.parametrize("changes", [{}, {"degree": 6, "share_threshold": 5}], ids=["complete", "sparse"])
@pytest.mark.parametrize("silent", ["share_keys", "mask", "confirm"])
def test_hosted_parties_say_what_parties_alone_say(hosted_of, changes, silent):
    session = hosted_of(12, threshold=8, drops={"basket_3": silent}, **changes)
    left = [p for p in session.vectors if p != "basket_3" or silent == "confirm"]
    assert (session.run() == sum(session.vectors[p] for p in left)).all()


def test_what_one_party_alone_is_shown_is_checked_for_it(hosted_of):
    """The others on its host were shown the truth before; none of it is taken for what this one sees."""
    session = hosted_of(6, threshold=4)
    session.advertise()
    adverts = session.coordinator.adverts()
    victim = session.participants["basket_0"]
    for party in list(session.participants)[1:]:
        session.coordinator.add_key_shares(session.participants[party].share_keys(adverts))
    forged = tuple(replace(a, mask_public=adverts[0].mask_public) if a is adverts[3] else a for a in adverts)
    unsigned = tuple(replace(a, signature=bytes(64)) if a is adverts[3] else a for a in adverts)
    for lie in (forged, unsigned, adverts[:3], (*adverts[1:], adverts[1]), list(adverts)):
        with pytest.raises(ProtocolViolation):
            victim.share_keys(lie)
    session.coordinator.add_key_shares(victim.share_keys(adverts))
    session.mask()
    survivors = session.coordinator.survivors()
    for party in list(session.participants)[1:]:
        session.coordinator.add_confirmation(session.participants[party].confirm(survivors))
    for lie in (survivors[1:], survivors[:3], (*survivors, "basket_9"), survivors[::-1]):
        with pytest.raises(ProtocolViolation):
            victim.confirm(lie)
    session.coordinator.add_confirmation(victim.confirm(survivors))
    confirmations = session.coordinator.confirmations()
    for party in list(session.participants)[1:]:
        session.coordinator.add_unmask_shares(session.participants[party].unmask(confirmations))
    false = tuple(replace(c, signature=bytes(64)) if c is confirmations[2] else c for c in confirmations)
    other = tuple(
        replace(c, survivors_digest=bytes(32)) if c is confirmations[2] else c for c in confirmations
    )
    for lie in (false, other, confirmations[1:], confirmations[:2]):
        with pytest.raises(ProtocolViolation):
            victim.unmask(lie)
    session.coordinator.add_unmask_shares(victim.unmask(confirmations))
    assert (session.coordinator.finish() == sum(session.vectors.values())).all()


def test_a_refused_message_is_refused_again(hosted_of):
    """A forgery is never taken for known: not by who refused it, by a neighbour, or after the true one."""
    session = hosted_of(6, threshold=4)
    session.advertise()
    adverts = session.coordinator.adverts()
    forged = tuple(replace(a, signature=bytes(64)) if a is adverts[3] else a for a in adverts)
    first, second, third = list(session.participants.values())[:3]
    for victim in (first, first, second):
        with pytest.raises(ProtocolViolation, match="false signature"):
            victim.share_keys(forged)
    session.coordinator.add_key_shares(third.share_keys(adverts))
    for victim in (first, second):
        with pytest.raises(ProtocolViolation, match="false signature"):
            victim.share_keys(forged)
        session.coordinator.add_key_shares(victim.share_keys(adverts))


@pytest.mark.parametrize(
    "changes",
    [{"attempt": 1}, {"session_id": b"another-" + bytes(8)}, {"round_id": 4}, {"roster": b"r" * 32}],
)
def test_what_was_verified_in_one_attempt_vouches_for_nothing_in_another(hosted_of, verified, changes):
    """Neither adverts nor confirmations that a host has verified are taken in another attempt of theirs."""
    before, after = hosted_of(4, threshold=3), hosted_of(4, threshold=3, **changes)
    for step in STEPS[:4]:
        getattr(before, step)()
    said = before.coordinator.confirmations()
    before.unmask()
    after.advertise()
    fresh = after.coordinator.adverts()
    victim = after.participants["basket_0"]
    stale = (fresh[0], *before.coordinator.adverts()[1:])
    verified.clear()
    with pytest.raises(ProtocolViolation, match="another session or attempt"):
        victim.share_keys(stale)
    with pytest.raises(ProtocolViolation, match="false signature"):
        victim.share_keys((fresh[0], *(replace(a, context_digest=after.context.digest()) for a in stale[1:])))
    after.share_keys()
    after.mask()
    after.coordinator.survivors()
    after.confirm()
    own = after.coordinator.confirmations()
    now, digest = after.context.digest(), own[0].survivors_digest
    for lie in (
        (own[0], *said[1:]),
        (own[0], *(replace(c, survivors_digest=digest) for c in said[1:])),
        (
            own[0],
            *(replace(c, survivors_digest=digest, context_digest=now) for c in said[1:]),
        ),
    ):
        with pytest.raises(ProtocolViolation):
            victim.unmask(lie)
    assert len(verified) >= 4 * 3, "everything of this attempt was verified in it"
    after.unmask()
    assert (after.coordinator.finish() == sum(after.vectors.values())).all()


def test_parties_of_one_host_that_are_shown_two_sets_of_survivors_do_not_unmask(hosted_of):
    session = hosted_of(6, threshold=4)
    for step in STEPS[:3]:
        getattr(session, step)()
    everybody = session.coordinator.survivors()
    said = [
        session.participants[p].confirm(everybody if i < 3 else tuple(everybody[1:]))
        for i, p in enumerate(session.participants)
    ]
    with pytest.raises(ProtocolViolation, match="another set of survivors"):
        session.participants["basket_1"].unmask(tuple(said))


def test_a_view_of_another_context_is_not_used(session_of, identity_of, verified):
    session, other = session_of(4), session_of(4, attempt=1)
    view = PublicView(other.context)
    participant = Participant(session.context, "basket_0", identity_of(0), view=view)
    assert participant.advertise().context_digest == session.context.digest()


@pytest.mark.parametrize("rubbish", [None, 3, "context"])
def test_a_context_that_is_none_is_refused(rubbish):
    with pytest.raises(ProtocolViolation):
        PublicView(rubbish)
