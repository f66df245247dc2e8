"""Standard normal noise: from the operating system's entropy for privacy, from a seed for tests.

Whoever can predict the noise can subtract it, so privacy noise comes from AES-256 in counter mode under a key
drawn from `os.urandom` for each call and forgotten after it. Nothing is kept between calls: a fork, a pickle
or a restored snapshot of the process cannot repeat what was drawn before.

A sample is a random sign times the inverse normal of a uniform in (0, 1/2) (Wichura 1988, algorithm AS 241,
relative error about 1e-15). The uniform has 63 bits, and 53 more where fewer than 53 of these are
significant, so that out in the tail, too, values lie dense: with 53 bits in all, past 6.5 standard deviations
they would lie further apart than the integers of a release, and which integers can occur would betray what
the noise was added to, in one coordinate of 2e10. The tails reach 12 standard deviations.

Who sees noised values rounded to a grid of sigma/2048 or more (`rounded_gaussian`, `mechanisms.on_grid`) sees
each with its Gaussian probability to within a relative 4e-12 times its distance in standard deviations: a
cell's ends are off by 2^-52 of the tail's mass and 1e-15 of their place, and its mass is at least 2^-11 of
the density. In d = 1e7 coordinates that shifts a privacy loss by 1e-4 at the very most, and by 3e-8 if the
errors are as good as independent.

Guarantees:
    system_noise_is_standard_normal: Two-sided tests of distribution, scale and independence.
    the_tail_has_no_holes: Values that share a word's 63 bits are spread over its cell.
    two_calls_never_give_the_same_noise: Also across fork, pickle and copies.
    a_pickled_source_carries_no_key: There is none to carry.
    seeded_noise_depends_on_seed_stream_and_shape_alone: In every process and on every machine; and so do
        seeded words.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from scarcity_ray.errors import UsageError

Float64 = NDArray[np.float64]
Shape = int | Sequence[int]
Words = Callable[[int], NDArray[np.uint64]]
"""Gives as many uniform 64-bit words as it is asked for, new ones at each call."""


class NoiseSource(Protocol):
    """Where noise comes from."""

    def standard_normal(self, shape: Shape, stream: str) -> Float64:
        """Draw standard normal noise.

        Args:
            shape: Of the result.
            stream: What the noise is for, e.g. ``layer2/3``; sources of true randomness ignore it.

        Returns:
            float64 array of the shape.
        """
        ...

    def uniform_words(self, stream: str) -> Words:
        """Where the uniform words of one drawing come from, for noise that is not normal.

        Args:
            stream: What the noise is for; sources of true randomness ignore it.
        """
        ...


class SystemNoise:
    """Noise for privacy, from the operating system's entropy; holds no state."""

    def standard_normal(self, shape: Shape, stream: str = "") -> Float64:
        """Draw fresh standard normal noise; `stream` is ignored."""
        dimensions = _dimensions(shape)
        result = np.empty(math.prod(dimensions))
        start = 0
        for words in word_blocks(result.size):
            result[start : start + words.size] = normal_of_words(words)
            start += words.size
        return result.reshape(dimensions)

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


def random_words(count: int) -> NDArray[np.uint64]:
    """Uniform 64-bit words: the AES-256-CTR keystream under a fresh key from `os.urandom`.

    Args:
        count: How many.

    Returns:
        uint64 array, shape (count,).
    """
    return np.concatenate([np.zeros(0, dtype=np.uint64), *word_blocks(count)])


def word_blocks(count: int) -> Iterator[NDArray[np.uint64]]:
    """As `random_words`, in pieces that stay in the processor's cache."""
    keystream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(os.urandom(16))).encryptor()
    zeros = bytes(8 * min(count, _BLOCK))
    for start in range(0, count, _BLOCK):
        drawn = keystream.update(zeros[: 8 * (count - start)])
        yield np.frombuffer(drawn, dtype="<u8").astype(np.uint64, copy=False)


def rounded_gaussian(
    total: NDArray[np.int64], sigma: float, noise: NoiseSource, stream: str
) -> NDArray[np.int64]:
    """Add Gaussian noise to integers and round, to multiples of g = 2^floor(log2(sigma / 1024)) if above 1.

    Rounding is post-processing of the Gaussian mechanism, so mu = sensitivity / sigma stands exactly; and the
    result, an integer, has no low-order bits that betray `total` (Mironov 2012). The coarser grid adds a
    variance of at most g^2 / 12, less than 1e-7 sigma^2, and has so wide cells that the sampler's own
    granularity is lost in them (see above).

    Args:
        total: int64, any shape: sums on the integer grid.
        sigma: Standard deviation in grid steps, >= 0; 0 adds nothing.
        noise: Where the noise comes from.
        stream: Name of the noise, unique to this release.

    Returns:
        A new int64 array of the same shape.

    Raises:
        UsageError: If `sigma` is negative, or so large that noise could pass 2^62.
    """
    if not 0.0 <= sigma <= 2.0**58:
        raise UsageError(f"sigma: {sigma!r} is not accepted; at least 0 and at most 2^58 grid steps")
    if sigma == 0.0:
        return total.copy()
    noised = total + np.rint(sigma * noise.standard_normal(total.shape, stream)).astype(np.int64)
    grid = 2.0 ** math.floor(math.log2(sigma / 1024.0))
    return noised if grid <= 1.0 else (np.rint(noised / grid) * grid).astype(np.int64)


def normal_of_words(words: NDArray[np.uint64], more: Words = random_words) -> Float64:
    """Map uniform 64-bit words to normal values: the low bit is the sign, the others are the tail's mass.

    Args:
        words: uint64, shape (n,).
        more: Where further bits come from, for one word in 2048.

    Returns:
        float64, shape (n,).
    """
    tail = (words >> np.uint64(1)).astype(np.float64)
    few = np.flatnonzero(words < np.uint64(1 << 53))
    further = (more(few.size) >> np.uint64(11)).astype(np.float64)
    tail += 0.5
    tail[few] += (further + 0.5) * 2.0**-53 - 0.5
    tail *= 2.0**-64
    value = _upper_quantile(tail)
    return np.where(words & np.uint64(1), value, -value)


_BLOCK = 1 << 14
"""Words that are worked on at a time."""

# Wichura (1988), AS 241, PPND16: numerator and denominator, highest power first.
# fmt: off
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)
_SHOULDER = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258,
     3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
     1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940, 2.05319162663775882187, 1.0),
)
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
     2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
     7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)
# fmt: on


def _upper_quantile(tail: Float64) -> Float64:
    """Phi^-1(1 - tail) for tail in (0, 1/2)."""
    q = 0.5 - tail
    value = _ratio(_CENTRE, 0.180625 - q * q)
    value *= q
    outer = np.flatnonzero(q > 0.425)
    r = np.sqrt(-np.log(tail[outer]))
    far = r > 5.0
    shoulder = _ratio(_SHOULDER, r - 1.6)
    if far.any():
        shoulder[far] = _ratio(_FAR, r[far] - 5.0)
    value[outer] = shoulder
    return value


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Float64) -> Float64:
    above, below = (_polynomial(one, x) for one in coefficients)
    above /= below
    return above


def _polynomial(coefficients: tuple[float, ...], x: Float64) -> Float64:
    result = coefficients[0] * x
    for coefficient in coefficients[1:-1]:
        result += coefficient
        result *= x
    result += coefficients[-1]
    return result


def _dimensions(shape: Shape) -> tuple[int, ...]:
    return (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(side) for side in shape)


__all__ = [
    "NoiseSource",
    "SeededNoise",
    "SystemNoise",
    "Words",
    "normal_of_words",
    "random_words",
    "rounded_gaussian",
    "word_blocks",
]
