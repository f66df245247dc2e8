"""The Merkle tree over a set of keys, against roots written out by hand."""

import hashlib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray_client.merkle import EMPTY, MerklePath, MerkleTree

# Few first bytes and few last ones, so that keys share long beginnings.
KEYS = st.builds(
    lambda first, last: bytes([first]) + bytes(30) + bytes([last]), *[st.sampled_from([0, 1, 128, 255])] * 2
)
SETS = st.lists(KEYS, max_size=12)


def by_hand(keys: set[str]) -> bytes:
    """The definition, over keys as strings of bits."""
    if len(keys) < 2:
        return hashlib.sha256(
            b"".join(b"\0" + int("".join(bits), 2).to_bytes(32, "big") for bits in keys)
        ).digest()
    return _below(keys, 0)


def _below(keys: set[str], depth: int) -> bytes:
    if len(keys) < 2:
        return by_hand(keys)
    parts = [{bits for bits in keys if bits[depth] == side} for side in "01"]
    return hashlib.sha256(b"\1" + b"".join(_below(part, depth + 1) for part in parts)).digest()


@given(SETS)
def test_a_root_depends_on_the_set_alone(keys):
    root = MerkleTree(keys).root
    assert root == MerkleTree([*reversed(keys), *keys]).root
    assert root == by_hand({f"{int.from_bytes(key, 'big'):0256b}" for key in keys})
    assert keys or root == EMPTY == hashlib.sha256(b"").digest()


@given(SETS, KEYS)
def test_a_path_shows_whether_a_key_is_there(keys, asked):
    tree = MerkleTree(keys)
    for key in {*keys, asked}:
        path = tree.path(key)
        assert path.shows(key, tree.root) is (key in keys)
        assert len(path.siblings) <= 256
        assert path.shows(key, hashlib.sha256(tree.root).digest()) is None


@given(SETS, KEYS, st.data())
def test_of_one_key_and_root_only_one_answer_can_be_shown(keys, asked, data):
    """Paths put together from all hashes that a forger has show the truth, or nothing."""
    tree = MerkleTree(keys)
    known = [tree.path(key) for key in {*keys, asked}]
    hashes = sorted({h for path in known for h in path.siblings} | {EMPTY, tree.root})
    siblings = data.draw(st.lists(st.sampled_from(hashes), max_size=10))
    found = data.draw(st.sampled_from([b"", *keys, asked]))
    forged = [MerklePath(tuple(siblings), found)]
    forged += [replace(path, found=found) for path in known]
    forged += [replace(path, siblings=path.siblings[:-1]) for path in known]
    for path in forged:
        assert path.shows(asked, tree.root) in (None, asked in keys)


def test_a_leaf_is_not_taken_for_a_node():
    """Without the bytes before leaf and node, two children could be given as one key."""
    tree = MerkleTree([bytes(32), b"\xff" * 32])
    (left,) = tree.path(b"\xff" * 32).siblings
    assert left == hashlib.sha256(b"\0" + bytes(32)).digest()
    for key in (left, tree.root):
        assert MerklePath((), key).shows(key, tree.root) is None


def test_what_is_no_path_shows_nothing():
    tree = MerkleTree([bytes(32), b"\xff" * 32])
    path = tree.path(bytes(32))
    for wrong in (
        replace(path, found=bytes(31)),
        replace(path, found=b"\xff" * 32),
        replace(path, siblings=(b"short",)),
        replace(path, siblings=path.siblings * 257),
    ):
        assert wrong.shows(bytes(32), tree.root) is None
    assert path.shows(b"short", tree.root) is None
