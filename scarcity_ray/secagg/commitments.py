"""Commitments, and the digests in messages that tie the phases of one attempt together.

Each digest contains the one before it: context, roster (all adverts), sharers, survivors. Parties that agree
on the last one agree on all of them. Commitments hide because what they hash has 256 bits of entropy.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg.messages import Advert, SignedMessage
from scarcity_ray.secagg.transcript import bytes_header, digest, encode, text
from scarcity_ray_client.identity import IdentityKeyPair


class Secret(StrEnum):
    """The two secrets of a party, of which at most one is ever rebuilt."""

    SEED = "seed"
    KEY = "key"


_SEED, _KEY = text(Secret.SEED), text(Secret.KEY)


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


def share_binding(roster: bytes, owner: str, holder: str) -> bytes:
    """What is bound to one pair of shares: their key, their associated data and both commitments to them."""
    return _shares(roster) + text(owner) + text(holder)


@functools.lru_cache(maxsize=8)
def _shares(roster: bytes) -> bytes:
    """What the binding of every share of an attempt begins with."""
    return encode("share", roster)


def commit_to_share(binding: bytes, secret: Secret, share: bytes) -> bytes:
    """Commitment to one holder's share of one secret, with the pair's `share_binding`."""
    label = _SEED if secret is Secret.SEED else _KEY
    return hashlib.sha256(binding + label + bytes_header(len(share)) + share).digest()


def require_authentic(keys: Mapping[str, bytes], context_digest: bytes, message: SignedMessage) -> None:
    """Refuses a message of an unknown party, of another session, or with a false signature.

    Args:
        keys: Identity keys of the session's parties.
    """
    public = keys.get(message.party_id)
    kind = type(message).__name__
    if public is None:
        raise ProtocolViolation(f"{kind} of a party that is not in this session")
    if message.context_digest != context_digest:
        raise ProtocolViolation(f"{kind} of {message.party_id!r} belongs to another session or attempt")
    if not IdentityKeyPair.verify_with(public, message.signed_content(), message.signature):
        raise ProtocolViolation(f"{kind} of {message.party_id!r} carries a false signature")
