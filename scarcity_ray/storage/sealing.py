"""Encryption of what a journal holds, by a key that is kept apart from it (AES-256-GCM).

Whoever has the disk, a backup or the database, and not the key, reads no row, nor state, trust or receipt.
What stays readable: names of baskets and clients, rounds, and sizes. Whoever can write there can remove
values and put back older ones, or the whole of an older copy, unnoticed.

Guarantees:
    without_its_key_a_journal_is_refused_by_name: As one written without a key is, where there is one.
    no_row_is_in_the_clear
    what_is_sealed_opens_in_its_place_alone: What is moved to another basket, batch or record is refused.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from scarcity_ray.errors import StorageError

KEY_BYTES = 32
_NONCE_BYTES = 12
"""Drawn anew for each value; good for 2^32 values under a key (NIST SP 800-38D, 8.3)."""


class Sealing:
    """Encrypts and authenticates values of one basket actor; leaves them as they are without a key.

    Args:
        context: Whose they are.
    """

    def __init__(self, key: bytes | None = None, context: str = "") -> None:
        self._cipher = None if key is None else AESGCM(key)
        self._context = context

    def seal(self, value: bytes, *place: str | int) -> bytes:
        """The value as it is kept in this place of this context, and in no other."""
        if self._cipher is None:
            return value
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, self._where(place))

    def open(self, kept: bytes, *place: str | int) -> bytes:
        """The value of which `seal` made this.

        Raises:
            ValueError: If it was sealed with another key, in another context or place, or was changed.
        """
        if self._cipher is None:
            return kept
        try:
            return self._cipher.decrypt(kept[:_NONCE_BYTES], kept[_NONCE_BYTES:], self._where(place))
        except (InvalidTag, ValueError):
            raise ValueError("it was encrypted with another key, moved, or changed") from None

    def _where(self, place: tuple[str | int, ...]) -> bytes:
        return json.dumps([self._context, *place]).encode()


def read_key(path: str) -> bytes:
    """The key in a file that only this user can read.

    Raises:
        StorageError: If it is no such file, or holds anything but 32 bytes.
    """
    make = f"make one with: umask 077; head -c {KEY_BYTES} /dev/urandom > {path}"
    try:
        found = os.stat(path)
        key = Path(path).read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: the journal's key cannot be read ({error.strerror}); {make}") from None
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise StorageError(
            f"{path}: others can read the journal's key (mode {stat.S_IMODE(found.st_mode):04o}, of user "
            f"{found.st_uid}); it is to be this user's alone: chmod 600"
        )
    if len(key) != KEY_BYTES:
        raise StorageError(f"{path}: a journal's key has {KEY_BYTES} bytes, this file {len(key)}; {make}")
    return key
