"""Canonical encodings and domain-separated hashes: what is signed, and what keys are bound to.

Two different sequences of fields never encode to the same bytes, because each field carries its type
and its length; two different uses never share a hash, because each begins with its own label.
"""

from __future__ import annotations

import functools
import hashlib
import struct

DIGEST_BYTES = 32
_PREFIX = "scarcity_ray.secagg.v1."
_HEADER = struct.Struct(">cQ").pack


def encode(label: str, *fields: bytes | str | int) -> bytes:
    """Encodes ``label`` and ``fields`` injectively.

    Integers are >= 0. Each field is written as its type, its length in 8 bytes, and its content. So an
    encoding with more fields (`encode_fields`) appended is the encoding of them all, and what many encodings
    begin with is made once.

    Guarantees:
        encodings_of_different_fields_differ
    """
    return text(_PREFIX + label) + encode_fields(*fields)


def encode_fields(*fields: bytes | str | int) -> bytes:
    """The fields as `encode` writes them, without a label: for appending alone."""
    parts: list[bytes] = []
    for value in fields:
        if isinstance(value, bytes):
            parts.append(bytes_header(len(value)))
            parts.append(value)
        elif isinstance(value, str):
            parts.append(text(value))
        else:
            content = value.to_bytes((value.bit_length() + 7) // 8, "big")
            parts.append(_HEADER(b"i", len(content)))
            parts.append(content)
    return b"".join(parts)


@functools.lru_cache(maxsize=1 << 12)
def text(value: str) -> bytes:
    """A text as `encode` writes it; ids and labels come again and again."""
    content = value.encode("utf-8", "surrogatepass")
    return _HEADER(b"s", len(content)) + content


@functools.lru_cache(maxsize=256)
def bytes_header(length: int) -> bytes:
    """What `encode` writes before that many bytes."""
    return _HEADER(b"b", length)


def digest(label: str, *fields: bytes | str | int) -> bytes:
    """SHA-256 of `encode` (32 bytes)."""
    return hashlib.sha256(encode(label, *fields)).digest()
