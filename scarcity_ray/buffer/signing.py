"""What a client signs when it sends an update."""

from __future__ import annotations

import hashlib

from scarcity_ray.buffer.update import FloatRow, content_digest


def update_message(federation_id: str, client_id: str, round_id: int, row: FloatRow) -> bytes:
    """The bytes that a client's identity key signs: federation, client, round and content, unambiguously.

    Args:
        federation_id: The federation, so that a signature is worth nothing in another one.
        client_id: The client.
        round_id: The round that the update was made for.
        row: The update as float32, shape (d,).

    >>> import numpy as np
    >>> len(update_message("f", "hospital_1", 3, np.zeros(2, np.float32)))
    32
    """
    digest = hashlib.sha256(b"scarcity_ray/update/1")
    for part in (federation_id.encode(), client_id.encode(), str(round_id).encode(), content_digest(row)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
