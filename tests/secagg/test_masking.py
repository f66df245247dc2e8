"""Masks against the cipher itself, and against each other."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.secagg import masking
from scarcity_ray.secagg.masking import MaskTerm, apply_masks, pair_mask_key, self_mask_key

ACROSS_BLOCKS = masking.BLOCK_BYTES // 4 + 7


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("dimension", [1, 3, 1000, ACROSS_BLOCKS])
def test_mask_is_the_aes_ctr_keystream_of_its_key(ring_bits, dimension):
    """The oracle encrypts the counter block by block in ECB mode."""
    key = os.urandom(32)
    dtype = np.dtype(f"<u{ring_bits // 8}")
    blocks = -(-dimension * dtype.itemsize // 16)
    counters = b"".join(i.to_bytes(16, "big") for i in range(blocks))
    stream = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)
    expected = np.frombuffer(stream, dtype=dtype)[:dimension]
    vector = np.zeros(dimension, dtype=f"uint{ring_bits}")
    apply_masks(vector, [MaskTerm(key, add=True)])
    np.testing.assert_array_equal(vector, expected)


@given(
    dimension=st.sampled_from([1, 5, 64, ACROSS_BLOCKS]),
    count=st.integers(0, 4),
    ring_bits=st.sampled_from([32, 64]),
    order=st.randoms(use_true_random=False),
)
def test_opposite_masks_cancel_exactly(dimension, count, ring_bits, order):
    vector = np.arange(dimension, dtype=f"uint{ring_bits}")
    terms = [MaskTerm(os.urandom(32), add=bool(i % 2)) for i in range(count)]
    apply_masks(vector, terms)
    if count:
        assert not np.array_equal(vector, np.arange(dimension))
    opposite = [MaskTerm(term.key, not term.add) for term in terms]
    order.shuffle(opposite)
    apply_masks(vector, opposite)
    np.testing.assert_array_equal(vector, np.arange(dimension))


def test_mask_keys_are_bound_to_pair_and_transcript():
    """One secret, every binding changed in turn: no two keys agree, but a pair's two sides do."""
    secret, view, other_view = bytes(32), bytes(32), bytes([1] * 32)
    keys = [
        pair_mask_key(secret, view, "a", "b"),
        pair_mask_key(secret, other_view, "a", "b"),
        pair_mask_key(secret, view, "a", "c"),
        pair_mask_key(secret, view, "ab", ""),
        pair_mask_key(other_view, view, "a", "b"),
        self_mask_key(secret, view, "a"),
        self_mask_key(secret, other_view, "a"),
        self_mask_key(secret, view, "b"),
    ]
    assert len(set(keys)) == len(keys)
    assert pair_mask_key(secret, view, "b", "a") == keys[0]
