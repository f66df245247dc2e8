"""The messages: plain frozen records, and the checks that a record from outside must pass.

Every message of a party names its sender and the context's digest, and is signed by the sender's
identity over all of its content. `checked` looks at every field's type and length before anything else
touches it, so hostile content ends as a `ProtocolViolation` and never as a traceback from further inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg.context import MAX_ID_LENGTH
from scarcity_ray.secagg.fixed_point import RingArray
from scarcity_ray.secagg.identity import SIGNATURE_BYTES
from scarcity_ray.secagg.key_agreement import GCM_TAG_BYTES, KEY_BYTES
from scarcity_ray.secagg.shamir import SHARE_BYTES
from scarcity_ray.secagg.transcript import DIGEST_BYTES, encode

SEALED_BYTES = 2 * SHARE_BYTES + GCM_TAG_BYTES
Check = Callable[[object], bool]


def _is_id(value: object) -> bool:
    return type(value) is str and 1 <= len(value) <= MAX_ID_LENGTH


def _is_bytes(length: int) -> Check:
    return lambda value: type(value) is bytes and len(value) == length


def _is_tuple_of(check: Check) -> Check:
    return lambda value: type(value) is tuple and all(check(item) for item in value)


def _is_vector(value: object) -> bool:
    return (
        type(value) is np.ndarray
        and value.dtype in (np.dtype(np.uint32), np.dtype(np.uint64))
        and value.ndim == 1
        and bool(value.flags.c_contiguous)
    )


_ID, _IDS = _is_id, _is_tuple_of(_is_id)
_DIGEST, _DIGESTS = _is_bytes(DIGEST_BYTES), _is_tuple_of(_is_bytes(DIGEST_BYTES))
_KEY, _SHARES = _is_bytes(KEY_BYTES), _is_tuple_of(_is_bytes(SHARE_BYTES))
_SEALED = _is_tuple_of(_is_bytes(SEALED_BYTES))
_SIGNATURE = _is_bytes(SIGNATURE_BYTES)


@dataclass(frozen=True, slots=True)
class Advert:
    """Phase 1, party to all: its ephemeral public keys, and a commitment to its self-mask seed."""

    party_id: str
    context_digest: bytes
    cipher_public: bytes
    mask_public: bytes
    seed_commitment: bytes
    signature: bytes = bytes(SIGNATURE_BYTES)

    FIELDS: ClassVar[dict[str, Check]] = {
        "party_id": _ID,
        "context_digest": _DIGEST,
        "cipher_public": _KEY,
        "mask_public": _KEY,
        "seed_commitment": _DIGEST,
        "signature": _SIGNATURE,
    }

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

    party_id: str
    context_digest: bytes
    roster_digest: bytes
    holders: tuple[str, ...]
    sealed: tuple[bytes, ...]
    seed_share_commitments: tuple[bytes, ...]
    key_share_commitments: tuple[bytes, ...]
    signature: bytes = bytes(SIGNATURE_BYTES)

    FIELDS: ClassVar[dict[str, Check]] = {
        "party_id": _ID,
        "context_digest": _DIGEST,
        "roster_digest": _DIGEST,
        "holders": _IDS,
        "sealed": _SEALED,
        "seed_share_commitments": _DIGESTS,
        "key_share_commitments": _DIGESTS,
        "signature": _SIGNATURE,
    }

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

    party_id: str
    context_digest: bytes
    sharers: tuple[str, ...]
    senders: tuple[str, ...]
    sealed: tuple[bytes, ...]
    seed_share_commitments: tuple[bytes, ...]
    key_share_commitments: tuple[bytes, ...]

    FIELDS: ClassVar[dict[str, Check]] = {
        "party_id": _ID,
        "context_digest": _DIGEST,
        "sharers": _IDS,
        "senders": _IDS,
        "sealed": _SEALED,
        "seed_share_commitments": _DIGESTS,
        "key_share_commitments": _DIGESTS,
    }


@dataclass(frozen=True, slots=True, eq=False)
class MaskedInput:
    """Phase 3, party to coordinator: its input plus all of its masks, uint32 or uint64 (d,)."""

    party_id: str
    context_digest: bytes
    sharers_digest: bytes
    vector: RingArray
    signature: bytes = bytes(SIGNATURE_BYTES)

    FIELDS: ClassVar[dict[str, Check]] = {
        "party_id": _ID,
        "context_digest": _DIGEST,
        "sharers_digest": _DIGEST,
        "vector": _is_vector,
        "signature": _SIGNATURE,
    }

    def signed_content(self) -> bytes:
        """What the signature covers: the vector by its hash."""
        content = hashlib.sha256(self.vector.data).digest()
        return encode("masked_input", self.party_id, self.context_digest, self.sharers_digest, content)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Phase 4, party to all: the set of survivors that it was shown, by its hash, and will unmask for."""

    party_id: str
    context_digest: bytes
    survivors_digest: bytes
    signature: bytes = bytes(SIGNATURE_BYTES)

    FIELDS: ClassVar[dict[str, Check]] = {
        "party_id": _ID,
        "context_digest": _DIGEST,
        "survivors_digest": _DIGEST,
        "signature": _SIGNATURE,
    }

    def signed_content(self) -> bytes:
        """What the signature covers."""
        return encode("confirmation", self.party_id, self.context_digest, self.survivors_digest)


@dataclass(frozen=True, slots=True)
class UnmaskShares:
    """Phase 5, party to coordinator: seed shares of the survivors, mask key shares of those who dropped."""

    party_id: str
    context_digest: bytes
    survivors_digest: bytes
    seed_owners: tuple[str, ...]
    seed_shares: tuple[bytes, ...]
    key_owners: tuple[str, ...]
    key_shares: tuple[bytes, ...]
    signature: bytes = bytes(SIGNATURE_BYTES)

    FIELDS: ClassVar[dict[str, Check]] = {
        "party_id": _ID,
        "context_digest": _DIGEST,
        "survivors_digest": _DIGEST,
        "seed_owners": _IDS,
        "seed_shares": _SHARES,
        "key_owners": _IDS,
        "key_shares": _SHARES,
        "signature": _SIGNATURE,
    }

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
M = TypeVar("M", Advert, KeyShares, Inbox, MaskedInput, Confirmation, UnmaskShares)


def checked(message: object, kind: type[M]) -> M:
    """``message`` if it is a ``kind`` whose every field has the right type and length.

    Raises:
        ProtocolViolation: naming the field otherwise.
    """
    if type(message) is not kind:
        raise ProtocolViolation(f"expected {kind.__name__}, got {type(message).__name__}")
    for name, is_right in kind.FIELDS.items():
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
