"""The messages: plain frozen records, and the checks that a record from outside must pass.

Every message of a party names its sender and the context's digest, and is signed by the sender's identity
over all of its content. `checked` compares every field with the type and length of its annotation before
anything else uses it, so hostile content ends as a `ProtocolViolation`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar, get_type_hints

import numpy as np

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg.context import MAX_ID_LENGTH
from scarcity_ray.secagg.fixed_point import RingArray
from scarcity_ray.secagg.key_agreement import GCM_TAG_BYTES, KEY_BYTES
from scarcity_ray.secagg.shamir import SHARE_BYTES
from scarcity_ray.secagg.transcript import DIGEST_BYTES, encode
from scarcity_ray_client.identity import SIGNATURE_BYTES

SEALED_BYTES = 2 * SHARE_BYTES + GCM_TAG_BYTES
Check = Callable[[object], bool]


def _is_id(value: object) -> bool:
    return type(value) is str and 1 <= len(value) <= MAX_ID_LENGTH


def _is_bytes(length: int) -> Check:
    return lambda value: type(value) is bytes and len(value) == length


def _are_ids(value: object) -> bool:
    return (
        type(value) is tuple
        and set(map(type, value)) <= {str}
        and all(1 <= length <= MAX_ID_LENGTH for length in set(map(len, value)))
    )


def _are_bytes(length: int) -> Check:
    def are(value: object) -> bool:
        return type(value) is tuple and set(map(type, value)) <= {bytes} and set(map(len, value)) <= {length}

    return are


def _is_vector(value: object) -> bool:
    return (
        type(value) is np.ndarray
        and value.dtype in (np.dtype(np.uint32), np.dtype(np.uint64))
        and value.ndim == 1
        and bool(value.flags.c_contiguous)
    )


Id = Annotated[str, _is_id]
Ids = Annotated[tuple[str, ...], _are_ids]
Digest = Annotated[bytes, _is_bytes(DIGEST_BYTES)]
Digests = Annotated[tuple[bytes, ...], _are_bytes(DIGEST_BYTES)]
Key = Annotated[bytes, _is_bytes(KEY_BYTES)]
Shares = Annotated[tuple[bytes, ...], _are_bytes(SHARE_BYTES)]
Sealed = Annotated[tuple[bytes, ...], _are_bytes(SEALED_BYTES)]
Signature = Annotated[bytes, _is_bytes(SIGNATURE_BYTES)]
Vector = Annotated[RingArray, _is_vector]


@dataclass(frozen=True, slots=True)
class Advert:
    """Phase 1, party to all: its ephemeral public keys, and a commitment to its self-mask seed."""

    party_id: Id
    context_digest: Digest
    cipher_public: Key
    mask_public: Key
    seed_commitment: Digest
    signature: Signature = bytes(SIGNATURE_BYTES)

    def signed_content(self) -> bytes:
        """What the signature covers."""
        return encode(
            "advert",
            self.party_id,
            self.context_digest,
            self.cipher_public,
            self.mask_public,
            self.seed_commitment,
        )


@dataclass(frozen=True, slots=True)
class KeyShares:
    """Phase 2, party to coordinator: for each holder an encrypted pair of shares, and commitments to them.

    The four tuples run over the sender's neighbourhood in sorted order, the sender itself included.
    """

    party_id: Id
    context_digest: Digest
    roster_digest: Digest
    holders: Ids
    sealed: Sealed
    seed_share_commitments: Digests
    key_share_commitments: Digests
    signature: Signature = bytes(SIGNATURE_BYTES)

    def signed_content(self) -> bytes:
        """What the signature covers."""
        return encode(
            "key_shares",
            self.party_id,
            self.context_digest,
            self.roster_digest,
            len(self.holders),
            *self.holders,
            *self.sealed,
            *self.seed_share_commitments,
            *self.key_share_commitments,
        )


@dataclass(frozen=True, slots=True)
class Inbox:
    """Phase 2, coordinator to one party: who shared keys, and what its neighbours sent to it.

    Unsigned: each sealed pair authenticates its sender, and a party list that others do not see as well
    gives masks that do not cancel.
    """

    party_id: Id
    context_digest: Digest
    sharers: Ids
    senders: Ids
    sealed: Sealed
    seed_share_commitments: Digests
    key_share_commitments: Digests


@dataclass(frozen=True, slots=True, eq=False)
class MaskedInput:
    """Phase 3, party to coordinator: its input plus all of its masks, uint32 or uint64 (d,)."""

    party_id: Id
    context_digest: Digest
    sharers_digest: Digest
    vector: Vector
    signature: Signature = bytes(SIGNATURE_BYTES)

    def signed_content(self) -> bytes:
        """What the signature covers: the vector by its hash."""
        content = hashlib.sha256(self.vector.data).digest()
        return encode("masked_input", self.party_id, self.context_digest, self.sharers_digest, content)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Phase 4, party to all: the set of survivors that it was shown, by its hash, and will unmask for."""

    party_id: Id
    context_digest: Digest
    survivors_digest: Digest
    signature: Signature = bytes(SIGNATURE_BYTES)

    def signed_content(self) -> bytes:
        """What the signature covers."""
        return encode("confirmation", self.party_id, self.context_digest, self.survivors_digest)


@dataclass(frozen=True, slots=True)
class UnmaskShares:
    """Phase 5, party to coordinator: seed shares of the survivors, mask key shares of those who dropped."""

    party_id: Id
    context_digest: Digest
    survivors_digest: Digest
    seed_owners: Ids
    seed_shares: Shares
    key_owners: Ids
    key_shares: Shares
    signature: Signature = bytes(SIGNATURE_BYTES)

    def signed_content(self) -> bytes:
        """What the signature covers."""
        return encode(
            "unmask_shares",
            self.party_id,
            self.context_digest,
            self.survivors_digest,
            len(self.seed_owners),
            *self.seed_owners,
            *self.seed_shares,
            len(self.key_owners),
            *self.key_owners,
            *self.key_shares,
        )


SignedMessage = Advert | KeyShares | MaskedInput | Confirmation | UnmaskShares
S = TypeVar("S", Advert, KeyShares, MaskedInput, Confirmation, UnmaskShares)
M = TypeVar("M", Advert, KeyShares, Inbox, MaskedInput, Confirmation, UnmaskShares)

_CHECKS: dict[type, dict[str, Check]] = {
    kind: {name: hint.__metadata__[0] for name, hint in get_type_hints(kind, include_extras=True).items()}
    for kind in (Advert, KeyShares, Inbox, MaskedInput, Confirmation, UnmaskShares)
}


def checked(message: object, kind: type[M]) -> M:
    """``message`` if it is a ``kind`` whose every field has the right type and length.

    Raises:
        ProtocolViolation: naming the field otherwise.
    """
    if type(message) is not kind:
        raise ProtocolViolation(f"expected {kind.__name__}, got {type(message).__name__}")
    for name, is_right in _CHECKS[kind].items():
        if not is_right(getattr(message, name, None)):
            raise ProtocolViolation(f"{kind.__name__}.{name} is malformed")
    return message


def checked_batch(messages: object, kind: type[M], at_most: int) -> tuple[M, ...]:
    """``messages`` if it is a tuple of at most ``at_most`` sound messages, one a party, else a refusal."""
    if type(messages) is not tuple or len(messages) > at_most:
        raise ProtocolViolation(f"expected a tuple of at most {at_most} {kind.__name__}")
    batch = tuple(checked(message, kind) for message in messages)
    if len({message.party_id for message in batch}) != len(batch):
        raise ProtocolViolation(f"two {kind.__name__} messages of one party")
    return batch


@dataclass(frozen=True, slots=True)
class SessionVolume:
    """Bytes of content of one party's messages in a session in which nobody drops out.

    Attributes:
        sent: From the party: advert, key shares, masked input, confirmation, unmask shares.
        received: By the party: all adverts, its inbox, the set of survivors, all confirmations.
    """

    sent: int
    received: int


def session_volume(
    num_parties: int, *, degree: int | None, dimension: int, ring_bits: int, id_bytes: int
) -> SessionVolume:
    """Count one party's bytes; what carries the messages adds its own headers.

    Guarantees:
        volume_is_that_of_the_messages_of_a_session

    Args:
        degree: Neighbours of each party; None: all others.
    """
    members = num_parties if degree is None else degree + 1
    head = id_bytes + DIGEST_BYTES
    signed = head + SIGNATURE_BYTES
    advert = signed + 2 * KEY_BYTES + DIGEST_BYTES
    shared = id_bytes + SEALED_BYTES + 2 * DIGEST_BYTES
    key_shares = signed + DIGEST_BYTES + members * shared
    masked = signed + DIGEST_BYTES + dimension * ring_bits // 8
    confirmation = signed + DIGEST_BYTES
    unmask_shares = signed + DIGEST_BYTES + members * (id_bytes + SHARE_BYTES)
    inbox = head + num_parties * id_bytes + members * shared
    return SessionVolume(
        sent=advert + key_shares + masked + confirmation + unmask_shares,
        received=num_parties * (advert + id_bytes + confirmation) + inbox,
    )
