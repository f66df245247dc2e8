"""Long-lived Ed25519 identities: who is speaking, and nothing else.

An identity signs; it never encrypts and never enters a mask. Masks come from keys that live for one
attempt (`scarcity_ray.secagg.key_agreement`), so a stolen identity reveals no past input.
"""

from __future__ import annotations

import hashlib
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from scarcity_ray.errors import UsageError

PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64


class IdentityKeyPair:
    """An Ed25519 key pair (RFC 8032) whose private half stays in the process that made it.

    Guarantees:
        * `signature_verifies_only_for_its_message_and_key`
        * `private_key_is_in_no_repr_and_no_pickle`
    """

    __slots__ = ("_private", "_public_bytes")

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private = private_key
        self._public_bytes = private_key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> IdentityKeyPair:
        """A new identity from the operating system's entropy."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def public_bytes(self) -> bytes:
        """The public key, 32 bytes."""
        return self._public_bytes

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the public key's SHA-256, for logs."""
        return hashlib.sha256(self._public_bytes).hexdigest()[:16]

    def sign(self, message: bytes) -> bytes:
        """Signs ``message``; 64 bytes."""
        return self._private.sign(message)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is this identity's over ``message``."""
        return self.verify_with(self._public_bytes, message, signature)

    @staticmethod
    def verify_with(public_bytes: bytes, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` over ``message`` was made by the holder of ``public_bytes``.

        Never raises for what a peer may send: a malformed key or signature verifies nothing.
        """
        try:
            Ed25519PublicKey.from_public_bytes(public_bytes).verify(signature, message)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True

    def __repr__(self) -> str:
        return f"IdentityKeyPair(fingerprint={self.fingerprint!r})"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a private key is not pickled; send public_bytes, or keep the key where it was made")
