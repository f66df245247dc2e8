"""Standard normal noise: from the operating system's entropy for privacy, from a seed for tests.

Whoever can predict the noise can subtract it. So privacy noise comes from AES-256 in counter mode under a key
that is drawn from `os.urandom` for each call and then forgotten. As nothing is kept between calls, a fork, a
pickle or a restored snapshot of the process cannot repeat earlier noise.

The values come from a ziggurat (`noise.ziggurat`), whose tail is dense: with 53 bits in all, past
6.5 standard deviations values would lie further apart than the integers of a release, and which integers can
occur would betray what the noise was added to, in one coordinate of 2e10. The tail's 117 bits reach past 20.

Who sees noised values rounded to a grid of sigma/2048 or more (`rounded_gaussian`, `mechanisms.on_grid`) sees
each with its Gaussian probability to within a relative 4e-12. In d = 1e7 coordinates that shifts a privacy
loss by 4e-5 at the very most, and by 2e-8 if the errors are as good as independent. The grid of gossip's
vectors is finer, 2^-18 sigma or more, so it is 5e-10 there: 5e-3 at the very most, and 2e-6.

Guarantees:
    system_noise_is_standard_normal: Two-sided tests of distribution, scale and independence.
    two_calls_never_give_the_same_noise: Also across fork, pickle and copies.
    a_pickled_source_carries_no_key: There is none to carry.
    seeded_noise_depends_on_seed_stream_and_shape_alone: In every process and on every machine; and so do
        seeded words.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from scarcity_ray_client.errors import UsageError
from scarcity_ray_client.noise.ziggurat import DrawBlock, Float64, Words, draw_block, normals

Shape = int | Sequence[int]


class NoiseSource(Protocol):
    """A source of noise, secure or seeded."""

    def standard_normal(self, shape: Shape, stream: str) -> Float64:
        """Draw standard normal noise as float64.

        Args:
            stream: What the noise is for, e.g. ``layer2/3``; sources of true randomness ignore it.
        """
        ...

    def uniform_words(self, stream: str) -> Words:
        """A generator of uniform words for one drawing, for noise that is not normal."""
        ...


class SystemNoise:
    """Noise for privacy, from the operating system's entropy; it holds no state but how to compute.

    Args:
        draw: `ziggurat.draw_block` or a faster function of a module that does the same.
    """

    def __init__(self, draw: DrawBlock = draw_block) -> None:
        self._draw = draw

    def standard_normal(self, shape: Shape, stream: str = "") -> Float64:
        """Draw fresh standard normal noise; `stream` is ignored."""
        dimensions = _dimensions(shape)
        count = math.prod(dimensions)
        keystream = Keystream()
        return normals(count, keystream.blocks(count), keystream.words, self._draw).reshape(dimensions)

    def uniform_words(self, stream: str = "") -> Words:
        """The keystream, under a fresh key for each call; `stream` is ignored."""
        return random_words


class SeededNoise:
    """Noise that can be foretold: for tests and simulations only, never for privacy.

    >>> bool((SeededNoise(1).standard_normal(3, "a") == SeededNoise(1).standard_normal(3, "a")).all())
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def standard_normal(self, shape: Shape, stream: str) -> Float64:
        """The standard normal noise that belongs to (seed, stream, shape)."""
        dimensions = _dimensions(shape)
        generator = np.random.Generator(self._philox(stream, *map(str, dimensions)))
        return generator.standard_normal(dimensions)

    def uniform_words(self, stream: str) -> Words:
        """The sequence of words that belongs to (seed, stream), from its beginning."""
        return self._philox(stream, "words").random_raw

    def _philox(self, *names: str) -> np.random.Philox:
        name = "\x1f".join([str(self.seed), *names])
        return np.random.Philox(key=int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little"))


class Keystream:
    """Uniform 64-bit words for one drawing: AES-256 in counter mode under a fresh key from `os.urandom`."""

    def __init__(self) -> None:
        self._cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next words, shape (count,)."""
        room = np.empty(8 * count + _OVER, np.uint8)
        for start in range(0, 8 * count, len(_ZEROS)):
            stop = min(start + len(_ZEROS), 8 * count)
            self._cipher.update_into(_ZEROS[: stop - start], room[start : stop + _OVER].data)
        return room[: 8 * count].view("<u8").astype(np.uint64, copy=False)

    def blocks(self, count: int) -> Iterator[NDArray[np.uint64]]:
        """The next `count` words in pieces that stay in the processor's cache; the next overwrites each."""
        room = np.empty(8 * min(count, _BLOCK) + _OVER, np.uint8)
        for start in range(0, count, _BLOCK):
            length = min(_BLOCK, count - start)
            self._cipher.update_into(_ZEROS[: 8 * length], room.data)
            yield room[: 8 * length].view("<u8").astype(np.uint64, copy=False)


def random_words(count: int) -> NDArray[np.uint64]:
    """Uniform 64-bit words, shape (count,), under a key of their own."""
    return Keystream().words(count)


def rounded_gaussian(
    total: NDArray[np.int64], sigma: float, noise: NoiseSource, stream: str
) -> NDArray[np.int64]:
    """Add Gaussian noise to integers and round, to multiples of g = 2^floor(log2(sigma / 1024)) if above 1.

    Rounding is post-processing of the Gaussian mechanism, so mu = sensitivity / sigma stands exactly; and the
    result, an integer, has no low-order bits that betray `total` (Mironov 2012). The coarser grid adds a
    variance of at most g^2 / 12, less than 1e-7 sigma^2, and its cells are so wide that the sampler's own
    granularity does not matter (see above).

    Args:
        total: int64, any shape: sums on the integer grid.
        sigma: Standard deviation in grid steps, >= 0; 0 adds nothing.
        stream: Name of the noise, unique to this release.

    Returns:
        A new int64 array of the same shape; what passes 2^63 is 2^64 less.

    Raises:
        UsageError: If `sigma` is negative, or so large that noise could pass 2^62.
    """
    if not 0.0 <= sigma <= 2.0**58:
        raise UsageError(f"sigma: {sigma!r} is not accepted; at least 0 and at most 2^58 grid steps")
    if sigma == 0.0:
        return total.copy()
    # In place where possible: a release may nearly fill the memory.
    reals = noise.standard_normal(total.shape, stream)
    reals *= sigma
    noised = np.rint(reals, out=reals).astype(np.int64)
    noised += total
    grid = 2.0 ** math.floor(math.log2(sigma / 1024.0))
    if grid > 1.0:
        np.divide(noised, grid, out=reals)
        np.rint(reals, out=reals)
        reals *= grid
        reals[reals >= 2.0**63] -= 2.0**64
        np.copyto(noised, reals, casting="unsafe")
    return noised


_BLOCK = 1 << 13
"""Words that are worked on at a time."""
_OVER = 15
"""Bytes beyond its output that the cipher asks room for."""
_ZEROS = memoryview(bytes(8 * _BLOCK))


def _dimensions(shape: Shape) -> tuple[int, ...]:
    return (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(side) for side in shape)
