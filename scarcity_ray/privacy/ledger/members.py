"""Which clients a gossip charge covers, as bytes: their places, and the names of those who are new.

The places of n clients out of N known ones are kept as a bitmap (N / 8 bytes) or as a list (4 n bytes),
whichever is shorter, so a round of 1e5 clients takes 12.5 kB of the ledger.

Layout: one byte ``B`` (bitmap) or ``L`` (list of little-endian uint32); the length of that part in bytes as
uint64; the part; the newcomers' names as a JSON list in UTF-8, in the order of their places.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class GossipMembers:
    """Who a gossip charge covers.

    Attributes:
        places: int64, sorted: where the clients stand in the accountant's list.
        newcomers: Names that the charge adds to that list.
    """

    places: NDArray[np.int64]
    newcomers: tuple[str, ...]


def pack_gossip(places: NDArray[np.int64], newcomers: Sequence[str]) -> bytes:
    """Pack distinct places >= 0 and new names.

    >>> unpack_gossip(pack_gossip(np.array([5, 2]), ["ann"]))
    GossipMembers(places=array([2, 5]), newcomers=('ann',))
    """
    count = int(places.max(initial=-1)) + 1
    if count < 32 * places.size:
        bits = np.zeros(count, dtype=np.bool_)
        bits[places] = True
        tag, part = b"B", np.packbits(bits, bitorder="little").tobytes()
    else:
        tag, part = b"L", np.sort(places).astype("<u4").tobytes()
    return tag + len(part).to_bytes(8, "little") + part + json.dumps(list(newcomers)).encode()


def unpack_gossip(payload: bytes) -> GossipMembers:
    """Read what `pack_gossip` wrote."""
    end = 9 + int.from_bytes(payload[1:9], "little")
    part = payload[9:end]
    if payload[:1] == b"B":
        places = np.flatnonzero(np.unpackbits(np.frombuffer(part, dtype=np.uint8), bitorder="little"))
    else:
        places = np.frombuffer(part, dtype="<u4")
    return GossipMembers(places.astype(np.int64), tuple(json.loads(payload[end:])))


__all__ = ["GossipMembers", "pack_gossip", "unpack_gossip"]
