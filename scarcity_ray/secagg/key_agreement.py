"""Keys that live for one attempt: X25519 agreement, HKDF derivation, and AES-GCM for shares.

Each party makes two X25519 pairs an attempt. The *cipher* pair protects the shares that travel through
the coordinator; the *mask* pair gives the pairwise masks, and is itself shared out, so that the masks of
a party that drops can be removed. They must differ: a dropped party's mask key is rebuilt by the
coordinator, which must not thereby be able to read the shares that it carried.

The AES-GCM nonce is constant because each key encrypts one message: it is derived for an ordered pair of
parties from two ephemeral keys, and a participant shares its keys once.
"""

from __future__ import annotations

import functools
import hmac
import os
from collections.abc import Callable
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from scarcity_ray.errors import ProtocolViolation, UsageError
from scarcity_ray.secagg.transcript import encode

Entropy = Callable[[int], bytes]

KEY_BYTES = 32
GCM_TAG_BYTES = 16
_NONCE = bytes(12)
_NO_SALT = bytes(32)
_FIRST_BLOCK = b"\x01"


def private_key_from(seed: bytes) -> X25519PrivateKey:
    """The X25519 key whose scalar is ``seed`` (32 bytes; clamped as RFC 7748 says)."""
    return X25519PrivateKey.from_private_bytes(seed)


def public_key_of(private: X25519PrivateKey) -> bytes:
    """The public half, 32 bytes."""
    return private.public_key().public_bytes_raw()


def agree(private: X25519PrivateKey, peer_public: bytes) -> bytes:
    """The X25519 shared secret (32 bytes).

    Raises:
        ProtocolViolation: if the peer's key is malformed or of low order (the secret would be zero).
    """
    try:
        return private.exchange(_public_key(peer_public))
    except ValueError:
        raise ProtocolViolation("an X25519 public key is malformed or of low order") from None


def derive_key(secret: bytes, label: str, *binding: bytes | str | int) -> bytes:
    """HKDF-SHA256 (RFC 5869) of ``secret`` for one purpose: 32 bytes bound to ``label`` and ``binding``."""
    return expand(extract(secret), encode(label, *binding))


def extract(secret: bytes) -> bytes:
    """HKDF-Extract without salt: the pseudorandom key (32 bytes) from which a secret's keys are expanded."""
    return hmac.digest(_NO_SALT, secret, "sha256")


def expand(pseudorandom_key: bytes, info: bytes) -> bytes:
    """HKDF-Expand to one block: the key (32 bytes) that is bound to ``info``."""
    return hmac.digest(pseudorandom_key, info + _FIRST_BLOCK, "sha256")


class Agreements:
    """What the X25519 keys of one host's parties agree on in one attempt; pairs that are all here cost less.

    Two *mask* keys that were both made here get one X25519 secret: whoever asks first computes it, the other
    takes it away. Two *cipher* keys get a key of the host's own, a function of both and of a secret that was
    drawn for this attempt, since nobody but these two ever needs it. (A mask secret is computed again by the
    coordinator if one of the two drops out.) The coordinator, which carries the sealed shares, knows the
    host's secret as little as a private key; both live in this process and are wiped together.

    An answer depends on the two public keys alone, so a message that repeats another party's key gets nothing
    of use and takes nothing away that would be missed.

    Guarantees:
        a_pair_on_one_host_is_agreed_on_once
        shares_within_a_host_are_sealed_from_all_outside
        nothing_waits_that_was_taken_or_wiped
    """

    __slots__ = ("_made_here", "_own", "_waiting")

    def __init__(self) -> None:
        self._made_here: set[bytes] = set()
        self._waiting: dict[bytes, bytes] = {}
        self._own = bytearray(os.urandom(KEY_BYTES))

    def made(self, public: bytes) -> None:
        """Take note of a public key that was made here."""
        self._made_here.add(public)

    def for_masks(self, private: X25519PrivateKey, public: bytes, peer_public: bytes) -> bytes:
        """The pseudorandom key (`extract`) of a pair's X25519 secret, 32 bytes.

        Args:
            public: Of ``private``, which was `made` here.

        Raises:
            ProtocolViolation: if the peer's key is malformed or of low order.
        """
        if public == peer_public or peer_public not in self._made_here:
            return extract(agree(private, peer_public))
        pair = _pair(public, peer_public)
        secret = self._waiting.pop(pair, None)
        if secret is None:
            secret = self._waiting[pair] = extract(agree(private, peer_public))
        return secret

    def for_shares(self, private: X25519PrivateKey, public: bytes, peer_public: bytes) -> bytes:
        """The pseudorandom key under which a pair's shares are sealed, 32 bytes; as `for_masks`."""
        if self._own and public != peer_public and peer_public in self._made_here:
            return hmac.digest(bytes(self._own), _pair(public, peer_public), "sha256")
        return extract(agree(private, peer_public))

    def wipe(self) -> None:
        """Once all have agreed: overwrite the host's secret, and drop what waits."""
        self._own[:] = bytes(len(self._own))
        self._own.clear()
        self._waiting.clear()

    def __repr__(self) -> str:
        return "Agreements(...)"

    def __reduce__(self) -> NoReturn:
        raise UsageError("agreed secrets are not pickled")


def _pair(one: bytes, other: bytes) -> bytes:
    return one + other if one < other else other + one


@functools.lru_cache(maxsize=512)
def _public_key(public: bytes) -> X25519PublicKey:
    """Cached, as all neighbours of a party on this host agree with one key; each takes some 600 bytes."""
    return X25519PublicKey.from_public_bytes(public)


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """AES-256-GCM under a key that encrypts nothing else (16 bytes longer than the plaintext)."""
    return AESGCM(key).encrypt(_NONCE, plaintext, associated)


def unseal(key: bytes, ciphertext: bytes, associated: bytes) -> bytes | None:
    """The plaintext, or None if ciphertext, key or associated data were changed."""
    try:
        return AESGCM(key).decrypt(_NONCE, ciphertext, associated)
    except InvalidTag:
        return None
