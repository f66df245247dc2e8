"""Masks: which are in which vector, and AES-256-CTR keystreams added to or taken from a vector in place.

A party adds its self mask; of each pair, the party with the lower id adds the pair's mask and the other
subtracts it. In a sum over both, the pair's mask is gone. What remains for the coordinator to remove is
the self mask of each survivor, and the pair masks between a survivor and a neighbour who dropped.

The key of a pair's mask is derived from the pair's X25519 secret and the digest of the sharers, which
contains the roster and the context: federation, session, attempt, model hash, dimension, ring, parties.
Two parties who were shown different values of any of these derive masks that do not cancel: the sum is
noise, and their inputs stay hidden (model inconsistency: Pasquini, Francati, Ateniese 2022).

A mask is the keystream of a key that is used for nothing else, so the counter starts at zero. All keys
walk over one block of the vector before the next block is touched: keystream, block and scratch stay in
the cache, and the cost is the cipher's. The words are little-endian on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from scarcity_ray.secagg.fixed_point import RingArray
from scarcity_ray.secagg.graph import Graph
from scarcity_ray.secagg.key_agreement import agree, derive_key, expand, extract, private_key_from
from scarcity_ray.secagg.messages import Advert
from scarcity_ray.secagg.transcript import encode, text

BLOCK_BYTES = 1 << 18
_COUNTER_FROM_ZERO = modes.CTR(bytes(16))


class MaskTerm(NamedTuple):
    """A mask and its sign.

    Attributes:
        key: AES-256 key (32 bytes), used for this mask alone.
        add: True to add the mask, False to subtract it.
    """

    key: bytes
    add: bool


def self_mask_key(seed: bytes, sharers_digest: bytes, owner: str) -> bytes:
    """Key of a party's self mask (32 bytes)."""
    return derive_key(seed, "self_mask", sharers_digest, owner)


def pair_mask_key(secret: bytes, sharers_digest: bytes, one: str, other: str) -> bytes:
    """Key of a pair's mask (32 bytes), the same whichever of the two is named first.

    Args:
        secret: The pseudorandom key of the pair's X25519 secret, of their mask keys.
    """
    first, second = (one, other) if one < other else (other, one)
    return expand(secret, _pair_masks(sharers_digest) + text(first) + text(second))


@functools.lru_cache(maxsize=8)
def _pair_masks(sharers_digest: bytes) -> bytes:
    """What the binding of every pair's mask begins with."""
    return encode("pair_mask", sharers_digest)


def terms_to_apply(
    party: str, seed: bytes, secrets: Mapping[str, bytes], others: Iterable[str], sharers_digest: bytes
) -> list[MaskTerm]:
    """The masks that a party puts on its input.

    Args:
        secrets: By neighbour, the pseudorandom key of the pair's X25519 secret, of their mask keys.
        others: Its neighbours who shared their keys.
    """
    terms = [MaskTerm(self_mask_key(seed, sharers_digest, party), add=True)]
    for other in others:
        key = pair_mask_key(secrets[other], sharers_digest, party, other)
        terms.append(MaskTerm(key, add=party < other))
    return terms


def terms_to_remove(
    seeds: Mapping[str, bytes],
    scalars: Mapping[str, bytes],
    graph: Graph,
    survivors: Collection[str],
    adverts: Mapping[str, Advert],
    sharers_digest: bytes,
) -> list[MaskTerm]:
    """The masks that are left in the sum of the survivors' masked inputs, with their signs reversed.

    Args:
        seeds: Self-mask seed of each survivor.
        scalars: Mask key of each party that shared its keys and did not survive.
    """
    terms = [MaskTerm(self_mask_key(seed, sharers_digest, owner), add=False) for owner, seed in seeds.items()]
    for dropped, scalar in scalars.items():
        private = private_key_from(scalar)
        for survivor in graph.present(dropped, survivors):
            secret = extract(agree(private, adverts[survivor].mask_public))
            terms.append(
                MaskTerm(pair_mask_key(secret, sharers_digest, dropped, survivor), add=dropped < survivor)
            )
    return terms


def apply_masks(vector: RingArray, terms: Sequence[MaskTerm]) -> None:
    """Adds or subtracts every term's mask, in place, mod 2**bits.

    Args:
        vector: uint32 or uint64 (d,), contiguous and writable.

    Guarantees:
        opposite_masks_cancel_exactly
        mask_is_the_aes_ctr_keystream_of_its_key
    """
    ciphers = [(Cipher(algorithms.AES(term.key), _COUNTER_FROM_ZERO).encryptor(), term.add) for term in terms]
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
