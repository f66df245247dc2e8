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
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from scarcity_ray.errors import ProtocolViolation
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
    """HKDF-SHA256 (RFC 5869) of ``secret`` for one purpose: 32 bytes bound to ``label`` and ``binding``.

    Without salt and for one block of output that is two HMACs: extract, then expand.
    """
    extracted = hmac.digest(_NO_SALT, secret, "sha256")
    return hmac.digest(extracted, encode(label, *binding) + _FIRST_BLOCK, "sha256")


@functools.lru_cache(maxsize=512)
def _public_key(public: bytes) -> X25519PublicKey:
    """Cached, as all neighbours of a party on this host agree with the same key; one takes 600 bytes."""
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
