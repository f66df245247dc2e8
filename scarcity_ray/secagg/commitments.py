"""Commitments, and the digests in messages that tie the phases of one attempt together.

Each digest contains the one before it: context, roster (all adverts), sharers, survivors. Parties that agree
on the last one agree on all of them. Commitments hide because what they hash has 256 bits of entropy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.messages import Advert, SignedMessage
from scarcity_ray.secagg.transcript import digest
from scarcity_ray_client.identity import IdentityKeyPair


class Secret(StrEnum):
    """The two secrets of a party, of which at most one is ever rebuilt."""

    SEED = "seed"
    KEY = "key"


def roster_digest(context_digest: bytes, adverts: Iterable[Advert]) -> bytes:
    """Hash of all adverts, in the order of their senders' ids."""
    ordered = sorted(adverts, key=lambda advert: advert.party_id)
    return digest("roster", context_digest, *(advert.signed_content() for advert in ordered))


def sharers_digest(roster: bytes, sharers: Sequence[str]) -> bytes:
    """Hash of who shared keys (sorted ids), bound to the roster."""
    return digest("sharers", roster, *sharers)


def survivors_digest(sharers: bytes, survivors: Sequence[str]) -> bytes:
    """Hash of whose masked inputs are in the sum (sorted ids), bound to the sharers."""
    return digest("survivors", sharers, *survivors)


def commit_to_seed(context_digest: bytes, owner: str, seed: bytes) -> bytes:
    """Commitment to a self-mask seed."""
    return digest("seed", context_digest, owner, seed)


def commit_to_share(roster: bytes, owner: str, holder: str, secret: Secret, share: bytes) -> bytes:
    """Commitment to one holder's share of one secret."""
    return digest("share", roster, owner, holder, secret, share)


def require_authentic(context: SessionContext, context_digest: bytes, message: SignedMessage) -> None:
    """Refuses a message of an unknown party, of another session, or with a false signature."""
    position = context.position(message.party_id)
    kind = type(message).__name__
    if position is None:
        raise ProtocolViolation(f"{kind} of a party that is not in this session")
    if message.context_digest != context_digest:
        raise ProtocolViolation(f"{kind} of {message.party_id!r} belongs to another session or attempt")
    public = context.parties[position].identity_public
    if not IdentityKeyPair.verify_with(public, message.signed_content(), message.signature):
        raise ProtocolViolation(f"{kind} of {message.party_id!r} carries a false signature")
