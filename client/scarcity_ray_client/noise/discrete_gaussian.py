"""The discrete Gaussian: integers x with probability proportional to exp(-x^2 / (2 sigma^2)), exactly.

Adding it to integers of L2 sensitivity Delta is Delta^2 / (2 sigma^2)-concentrated differentially private, as
the continuous Gaussian is, with no rounding to argue about (Canonne, Kamath, Steinke 2020, theorem 14).

Their sampler draws one value at a time in rational arithmetic; this one has the same law and works on arrays.
The half-line is cut into buckets of a power of two, at most sigma / 128 wide. A random word picks a bucket a
with probability proportional to exp(-(a s)^2 / (2 sigma^2)) from a table; a uniform offset b < s is accepted
with probability exp(-(2 a s b + b^2) / (2 sigma^2)), nearly 1; a random sign, and minus zero is drawn again.
Below sigma = 256 the buckets have width 1 and the table alone decides.

Both decisions compare the first 64 bits of a uniform number with a bound. Where these bits do not decide
(2^-40 of the draws, or fewer) they are followed by 192 more, and the bound is computed to as many digits. So
the law is exact up to a total variation of 2^-180 a sample; floats, with room for errors of 2^-44, only say
which draws are looked at closer. With d coordinates and T releases that adds at most (1 + e^epsilon) d T
2^-180 to delta, below 1e-30 in any use.

Guarantees:
    the_discrete_gaussian_has_its_law: Against exact probabilities and the scalar sampler, two-sided; a
        scale off by 3/2 and a continuous Gaussian cut off at integers are rejected.
    undecided_words_are_decided_exactly: The long comparison is tested by itself.
    the_sampled_law_is_concentrated_as_claimed: Its Renyi divergences of many orders, summed to 60 digits, are
        at most alpha Delta^2 / (2 sigma^2), and meet it at integer orders.
"""

from __future__ import annotations

import bisect
import decimal
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from scarcity_ray_client.errors import UsageError
from scarcity_ray_client.noise.source import NoiseSource, random_words
from scarcity_ray_client.noise.ziggurat import Words

_LONG = 192
"""Bits that follow the first 64 where those do not decide."""
_WHOLE = 1 << (64 + _LONG)
_CONTEXT = decimal.Context(prec=110, Emin=-(10**6), Emax=10**6)


def discrete_gaussian(
    total: NDArray[np.int64], sigma: float, noise: NoiseSource, stream: str
) -> NDArray[np.int64]:
    """Add discrete Gaussian noise to integers.

    Args:
        total: int64, any shape: sums on the integer grid, whose L2 sensitivity Delta is in grid steps.
        sigma: Scale in grid steps, >= 0 and at most 2^50; 0 adds nothing.
        stream: Name of the noise, unique to this release.

    Returns:
        A new int64 array of the same shape, rho-zCDP with rho = Delta^2 / (2 sigma^2).
    """
    if sigma == 0.0:
        return total.copy()
    noised = _sampler(sigma).sample(total.shape, noise.uniform_words(stream))
    noised += total
    return noised


class DiscreteGaussian:
    """A discrete Gaussian of scale `sigma`, a number taken exactly as the float that it is.

    Attributes:
        sigma: The scale, in integer steps; the standard deviation is at most that (theirs, corollary 9).

    >>> DiscreteGaussian(3.0).sample((2, 5)).shape
    (2, 5)
    """

    def __init__(self, sigma: float) -> None:
        if not 0.0 < sigma <= 2.0**50:
            raise UsageError(f"sigma: {sigma!r} is not accepted; above 0 and at most 2^50")
        self.sigma = sigma
        self._width = 2 ** max(0, math.floor(math.log2(sigma)) - 7)
        self._bounds = _bucket_bounds(Fraction(sigma), self._width)
        self._firsts = np.array([bound >> _LONG for bound in self._bounds[:-1]], dtype=np.uint64)
        cells = np.arange(1 << _GUIDE_BITS, dtype=np.uint64) << _CELL
        self._guide = np.searchsorted(self._firsts, cells, side="right").astype(np.int16)
        # In a cell that a bound lies in, each word is looked for by itself.
        self._guide[(self._firsts >> _CELL).astype(np.int64)] = -1

    def sample(self, shape: int | Sequence[int], words: Words = random_words) -> NDArray[np.int64]:
        """Draw independent int64 values, by default from the operating system's entropy."""
        dimensions = (shape,) if isinstance(shape, int) else tuple(shape)
        result = np.empty(math.prod(dimensions), dtype=np.int64)
        filled = 0
        while filled < result.size:
            wanted = min(_BLOCK, result.size - filled)
            drawn = self._draw(wanted, words)[: result.size - filled]
            result[filled : filled + drawn.size] = drawn
            filled += drawn.size
        return result.reshape(dimensions)

    def _draw(self, count: int, words: Words) -> NDArray[np.int64]:
        """Values that were accepted out of `count` tries, in order."""
        places = self._buckets(words(count), words)
        choice = words(count)
        negative = (choice & np.uint64(1)).astype(np.bool_)
        if self._width > 1:
            shift = np.uint64(64 - (self._width.bit_length() - 1))
            offset = (choice >> shift).astype(np.int64)
            places *= self._width
            kept = self._accepted(places, offset, words(count), words)
            places += offset
        else:
            kept = np.ones(count, dtype=np.bool_)
        kept &= (places != 0) | ~negative
        np.negative(places, out=places, where=negative)
        return places[kept]

    def _buckets(self, drawn: NDArray[np.uint64], words: Words = random_words) -> NDArray[np.int64]:
        """The bucket that each uniform word falls into."""
        places: NDArray[np.int64] = self._guide[drawn >> _CELL].astype(np.int64)
        mixed = np.flatnonzero(places < 0)
        if mixed.size:
            firsts, among = self._firsts, drawn[mixed]
            found = np.searchsorted(firsts, among, side="right")
            places[mixed] = found
            for i in mixed[firsts.take(found - 1, mode="clip") == among].tolist():
                places[i] = self.bucket_of((int(drawn[i]) << _LONG) | _more_bits(words))
        return places

    def bucket_of(self, point: int) -> int:
        """The bucket of a uniform number given by all its 256 bits."""
        return bisect.bisect_right(self._bounds, point, hi=len(self._bounds) - 1)

    def _accepted(
        self,
        starts: NDArray[np.int64],
        offset: NDArray[np.int64],
        drawn: NDArray[np.uint64],
        words: Words = random_words,
    ) -> NDArray[np.bool_]:
        """Whether each offset into its bucket is accepted, by a uniform word each."""
        b = offset.astype(np.float64)
        exponent = starts * 2.0
        exponent += b
        exponent *= b
        exponent *= -0.5 / self.sigma / self.sigma
        uniform = drawn * 2.0**-64
        # All of this is right to within 2^-48, so only what is closer than 2^-44 is looked at again. Most are
        # below 1 + x <= exp(x) already.
        accepted = exponent + (1.0 - 2.0**-44) > uniform
        close = np.flatnonzero(~accepted)
        margin = np.exp(exponent[close]) - uniform[close]
        accepted[close] = margin > 0.0
        for i in close[np.abs(margin) < 2.0**-44].tolist():
            point = (int(drawn[i]) << _LONG) | _more_bits(words)
            accepted[i] = point < self.acceptance(int(starts[i]), int(offset[i]))
        return accepted

    def acceptance(self, start: int, offset: int) -> int:
        """The probability of accepting an offset, as a 256-bit fraction."""
        exponent = Fraction((2 * start + offset) * offset) / (2 * Fraction(self.sigma) ** 2)
        return _fixed(_exp(-exponent))


_BLOCK = 1 << 15
_GUIDE_BITS = 16
_CELL = np.uint64(64 - _GUIDE_BITS)
"""Bits of a word below those that name its cell of the guide."""


@functools.lru_cache(maxsize=64)
def _sampler(sigma: float) -> DiscreteGaussian:
    """The sampler of a scale, which remembers no draw; kept for the sites that one process noises rows of."""
    return DiscreteGaussian(sigma)


@functools.lru_cache(maxsize=8)
def _bucket_bounds(sigma: Fraction, width: int) -> tuple[int, ...]:
    """Cumulative bucket probabilities as 256-bit fractions; what they leave out weighs below 2^-200.

    Kept for the baskets of one actor, whose shares of a release all have one scale.
    """
    # 32 sigma^2 > 2 * 200 log 2 * sigma^2, so the density at 17 sigma is below 2^-200.
    count = int(17 * sigma / width) + 2
    # exp(-(a + 1)^2 h) = exp(-a^2 h) exp(-(2 a + 1) h); all steps together lose fewer than 20 of 110 digits.
    step = Fraction(width) ** 2 / (2 * sigma * sigma)
    weight, factor, shrink = decimal.Decimal(1), _exp(-step), _exp(-2 * step)
    sums = [weight]
    for _ in range(count - 1):
        weight = _CONTEXT.multiply(weight, factor)
        factor = _CONTEXT.multiply(factor, shrink)
        sums.append(_CONTEXT.add(sums[-1], weight))
    return tuple(_fixed(_CONTEXT.divide(reached, sums[-1])) for reached in sums)


def _exp(exponent: Fraction) -> decimal.Decimal:
    ratio = _CONTEXT.divide(decimal.Decimal(exponent.numerator), decimal.Decimal(exponent.denominator))
    return _CONTEXT.exp(ratio)


def _fixed(value: decimal.Decimal) -> int:
    # Where the tail is below 2^-256, its cell is one wide rather than none.
    return min(int(_CONTEXT.multiply(value, decimal.Decimal(_WHOLE))), _WHOLE - 1)


def _more_bits(words: Words) -> int:
    return int.from_bytes(words(_LONG // 64).tobytes(), "little")
