"""Long-lived Ed25519 identities: who is speaking, and nothing else.

An identity signs; it never encrypts and never enters a mask. Masks come from keys that live for one
attempt of secure aggregation, so a stolen identity reveals no past input.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from scarcity_ray_client.errors import UsageError

PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
LEAST_PASSWORD_BYTES = 16


class IdentityKeyPair:
    """An Ed25519 key pair (RFC 8032) whose private half stays in the process that made it.

    Guarantees:
        Signature verifies only for its message and key.
        Private key is in no repr and no pickle.
        Saved identity is loaded with its password alone.
    """

    __slots__ = ("_private", "_public_bytes")

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private = private_key
        self._public_bytes = private_key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> IdentityKeyPair:
        """A new identity from the operating system's entropy."""
        return cls(Ed25519PrivateKey.generate())

    def save(self, path: str | os.PathLike[str], password: bytes) -> None:
        """Writes the key pair to a new PEM file (PKCS #8, AES-256), readable by its owner alone.

        The format stretches passwords by 2048 rounds of PBKDF2 only, so a password that people can remember
        would be found by trying; a random secret is asked for.

        Args:
            path: Of a file that does not exist.
            password: At least 16 bytes.

        Raises:
            UsageError: if the password is too short, or the file exists or cannot be made.
        """
        pem = self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(_checked_password(password)),
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise UsageError(f"cannot make the identity file {os.fspath(path)}: {error.strerror}") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: str | os.PathLike[str], password: bytes) -> IdentityKeyPair:
        """Reads a key pair that `save` wrote.

        Raises:
            UsageError: if the file cannot be read, is not an encrypted Ed25519 key, or the password is wrong.
        """
        try:
            pem = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the identity file {os.fspath(path)}: {error.strerror}") from None
        try:
            private = serialization.load_pem_private_key(pem, _checked_password(password))
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise UsageError(
                f"{os.fspath(path)} is not an encrypted identity, or the password is wrong"
            ) from None
        if not isinstance(private, Ed25519PrivateKey):
            raise UsageError(f"{os.fspath(path)} holds another kind of key than Ed25519")
        return cls(private)

    @property
    def public_bytes(self) -> bytes:
        """The public key, 32 bytes."""
        return self._public_bytes

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the public key's SHA-256, for logs."""
        return hashlib.sha256(self._public_bytes).hexdigest()[:16]

    @classmethod
    def of_seed(cls, seed: bytes) -> IdentityKeyPair:
        """The identity of 32 secret bytes, where its holder keeps these and not a file of its own."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

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
            _public_key(public_bytes).verify(signature, message)
        except (InvalidSignature, ValueError, TypeError):
            return False
        return True

    def __repr__(self) -> str:
        return f"IdentityKeyPair(fingerprint={self.fingerprint!r})"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a private key is not pickled; send public_bytes, or keep the key where it was made")


@lru_cache(maxsize=4096)
def _public_key(public_bytes: bytes) -> Ed25519PublicKey:
    """A key that was decompressed before: a tenth of a verification."""
    return Ed25519PublicKey.from_public_bytes(public_bytes)


def _checked_password(password: bytes) -> bytes:
    if not isinstance(password, bytes) or len(password) < LEAST_PASSWORD_BYTES:
        raise UsageError(f"an identity file's password is at least {LEAST_PASSWORD_BYTES} random bytes")
    return password
