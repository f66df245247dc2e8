"""What a party checks before it joins an attempt, and of every list of parties that it is shown.

The coordinator names the parties. Against one that invents them (a Sybil session, in which an honest input
would stand alone among invented ones) a party compares them with identities that it knows from elsewhere;
against one that shows lists too small to hide in, it holds the threshold.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg.context import SessionContext
from scarcity_ray.secagg.identity import IdentityKeyPair


def require_joinable(
    context: SessionContext,
    party_id: str,
    identity: IdentityKeyPair,
    known_parties: Mapping[str, bytes] | None,
    model_hash: bytes | None,
) -> None:
    """Refuses a context that names not this party, names strangers, or another model.

    Args:
        context: As the coordinator announced it; well formed.
        party_id: This party's id.
        identity: This party's identity.
        known_parties: Identity keys by id, from another source than the coordinator; None skips that check.
        model_hash: Hash of the global model that this party started from; None skips that check.
    """
    position = context.position(party_id)
    if position is None or context.parties[position].identity_public != identity.public_bytes:
        raise ProtocolViolation(f"this session does not name {party_id!r} with this identity")
    if model_hash is not None and context.model_hash != model_hash:
        raise ProtocolViolation("this session is about another model than this party was given")
    if known_parties is not None:
        for party in context.parties:
            if known_parties.get(party.party_id) != party.identity_public:
                raise ProtocolViolation(f"{party.party_id!r} is not the party known by that id")


def require_roll(
    party_ids: tuple[str, ...], what: str, *, of: Container[str], including: str, at_least: int
) -> None:
    """Refuses a list of parties that is unsorted, doubled, foreign, without this party, or too short.

    Args:
        party_ids: The list.
        what: What it lists, for the refusal.
        of: Who may be on it.
        including: Who must be on it: this party.
        at_least: The threshold.
    """
    if list(party_ids) != sorted(set(party_ids)):
        raise ProtocolViolation(f"the {what} are not in sorted order, or one is there twice")
    for party in party_ids:
        if party not in of:
            raise ProtocolViolation(f"the {what} name {party!r}, who cannot be among them")
    if including not in party_ids:
        raise ProtocolViolation(f"the {what} leave this party out")
    if len(party_ids) < at_least:
        raise ProtocolViolation(f"{len(party_ids)} {what} are below the threshold of {at_least}")
