"""Masks: AES-256-CTR keystreams read as words of the ring, added to or taken from a vector in place.

A mask is the keystream of a key that is used for nothing else, so the counter starts at zero. All keys
walk over one block of the vector before the next block is touched: keystream, block and scratch stay in
the cache, and the cost is the cipher's. The words are little-endian on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from scarcity_ray.secagg.fixed_point import RingArray

BLOCK_BYTES = 1 << 20
_COUNTER_START = bytes(16)


class MaskTerm(NamedTuple):
    """A mask and its sign.

    Attributes:
        key: AES-256 key (32 bytes), used for this mask alone.
        add: True to add the mask, False to subtract it.
    """

    key: bytes
    add: bool


def apply_masks(vector: RingArray, terms: Sequence[MaskTerm]) -> None:
    """Adds or subtracts every term's mask, in place, mod 2**bits.

    Args:
        vector: uint32 or uint64 (d,), contiguous and writable.
        terms: The masks.

    Guarantees:
        * `opposite_masks_cancel_exactly`
        * `mask_is_the_aes_ctr_keystream_of_its_key`
    """
    ciphers = [
        (Cipher(algorithms.AES(term.key), modes.CTR(_COUNTER_START)).encryptor(), term.add) for term in terms
    ]
    words_a_block = BLOCK_BYTES // vector.dtype.itemsize
    zeros = np.zeros(min(BLOCK_BYTES, vector.nbytes), dtype=np.uint8)
    keystream = np.empty_like(zeros)
    for start in range(0, vector.size, words_a_block):
        block = vector[start : start + words_a_block]
        plain, cipher_text = zeros[: block.nbytes], keystream[: block.nbytes]
        words = cipher_text.view(vector.dtype.newbyteorder("<"))
        for encryptor, add in ciphers:
            encryptor.update_into(plain.data, cipher_text.data)
            if add:
                np.add(block, words, out=block)
            else:
                np.subtract(block, words, out=block)
