r"""A Merkle tree over a set of keys, in which each key has one place.

Hashes are those of RFC 6962 (section 2.1; RFC 9162): SHA-256, with a byte 0 before a leaf and a byte 1 before
a node's two children, so that no leaf is taken for a node. The shape is that of a compact sparse tree (as in
CONIKS, Melara et al. 2015): from the top, bit i of a key says whether it lies left (0) or right (1) at depth
i, and a subtree of one key is its leaf. So the root depends on the set alone, and two things can be shown of
any key with about log2(n) hashes: that it is in the set, or that it is not.

Guarantees:
    a_root_depends_on_the_set_alone: Neither on an order nor on repetitions.
    of_one_key_and_root_only_one_answer_can_be_shown: Also if who made the root chose every node. Both answers
        walk from the root along the key's bits. Where they part, one value has two preimages, of which one is
        a leaf of the key and the other is another leaf, a node or nothing: a collision of SHA-256.

>>> tree = MerkleTree([bytes(32), b"\xff" * 32])
>>> tree.path(bytes(32)).shows(bytes(32), tree.root), tree.path(b"\x7f" * 32).shows(b"\x7f" * 32, tree.root)
(True, False)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

KEY_BYTES = 32
MOST_SIBLINGS = 8 * KEY_BYTES
EMPTY = hashlib.sha256().digest()
"""The root of no keys, as in RFC 6962."""


@dataclass(frozen=True)
class MerklePath:
    """The way from a tree's root to the place of a key.

    Attributes:
        siblings: Hashes of the subtrees beside the way, 32 bytes each, from the top.
        found: What lies there: the key, another one that begins with the same bits, or nothing (empty).
    """

    siblings: tuple[bytes, ...]
    found: bytes

    def shows(self, key: bytes, root: bytes) -> bool | None:
        """Whether the key is in the set with that root; None if the path shows neither."""
        return self.found == key if root == self.root(key) else None

    def root(self, key: bytes) -> bytes | None:
        """The root of the trees in which this is the way to the key's place; None if it is no such way."""
        depth = len(self.siblings)
        if {len(key), *map(len, self.siblings)} != {KEY_BYTES} or depth > MOST_SIBLINGS:
            return None
        if self.found and (len(self.found) != KEY_BYTES or _prefix(self.found, depth) != _prefix(key, depth)):
            return None
        value = _leaf(self.found) if self.found else EMPTY
        for place in range(depth - 1, -1, -1):
            sibling = self.siblings[place]
            value = _node(sibling, value) if _bit(key, place) else _node(value, sibling)
        return value


class MerkleTree:
    """The tree over keys of 32 bytes each.

    Attributes:
        root: 32 bytes.
    """

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = sorted(set(keys))
        self._hashes: dict[tuple[int, int, int], bytes] = {}
        self.root = self._hash(0, len(self._keys), 0)

    def path(self, key: bytes) -> MerklePath:
        """The way to the key's place, which shows that it is there or that it is not."""
        start, end, depth = 0, len(self._keys), 0
        siblings = []
        while end - start > 1:
            middle = self._middle(start, end, depth)
            parts = (start, middle), (middle, end)
            start, end = parts[_bit(key, depth)]
            siblings.append(self._hash(*parts[1 - _bit(key, depth)], depth + 1))
            depth += 1
        return MerklePath(tuple(siblings), self._keys[start] if end > start else b"")

    def _hash(self, start: int, end: int, depth: int) -> bytes:
        if end - start < 2:
            return _leaf(self._keys[start]) if end > start else EMPTY
        known = self._hashes.get((start, end, depth))
        if known is None:
            middle = self._middle(start, end, depth)
            known = _node(self._hash(start, middle, depth + 1), self._hash(middle, end, depth + 1))
            self._hashes[start, end, depth] = known
        return known

    def _middle(self, start: int, end: int, depth: int) -> int:
        """Where in a subtree's keys those begin whose bit at `depth` is 1."""
        first = int.from_bytes(self._keys[start], "big") >> (8 * KEY_BYTES - depth)
        least = ((first << 1) | 1) << (8 * KEY_BYTES - depth - 1)
        return bisect_left(self._keys, least.to_bytes(KEY_BYTES, "big"), start, end)


def _bit(key: bytes, place: int) -> int:
    return (key[place >> 3] >> (7 - (place & 7))) & 1


def _prefix(key: bytes, bits: int) -> int:
    return int.from_bytes(key, "big") >> (8 * KEY_BYTES - bits)


def _leaf(key: bytes) -> bytes:
    return hashlib.sha256(b"\0" + key).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
