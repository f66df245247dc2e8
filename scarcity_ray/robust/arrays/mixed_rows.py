"""Mixed rows, formed block by block on demand, without a mixed copy of all rows.

Nearest-neighbour mixing and bucketing make *means*: a mixed row is the sum of some rows, times a share. Rows
are taken in groups of `GROUP`; all sums within a group are formed once, and each mixed row adds up one of
them a group ("Four Russians": Arlazarov, Dinic, Kronrod, Faradžev 1970), a quarter of the additions. Nothing
is subtracted, so a row of any size affects only the mixed rows that it enters. Other combinations are a
float64 matrix product.

Guarantees:
    A mixed row is that of float64 sums, rounded once; a row that does not enter it changes no bit of it.
    Means have the same bits on every processor: their additions have one order, or need none.
    Sums that are left to BLAS round nothing.
    Only the mixed rows that somebody asks for are formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Matrix, Rows
from scarcity_ray.robust.arrays.threads import one_blas_thread, workspace

GROUP = 4
"""Rows whose sums are formed once: more of them mean fewer additions, and sums that leave the first cache."""

PATTERNS = 2**GROUP
"""Sums that a group has, the empty one included."""

MOST_INEXACT = 8
"""Of so many columns, more than one that rounds, and NumPy adds up all of them in order."""

FEW_COLUMNS = 256
"""Up to so many, NumPy gathers the sums of a group at once."""

SIGNLESS, MANTISSA, NO_VALUE = np.uint32(0x7FFFFFFF), np.uint32(23), np.uint32(0xFFFFFFFF)
"""Of a float32's bits: all but the sign, those below the exponent, and one less than those of zero."""


@dataclass(frozen=True, eq=False)
class Means:
    """Mixed rows each of which is a sum of rows times a share.

    Attributes:
        patterns: (m, groups) uint8; bit k of entry (i, g) is set where row `GROUP` g + k enters mixed row i.
        shares: (m,) float64.
    """

    patterns: NDArray[np.uint8]
    shares: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.shares)

    def only(self, indices: Sequence[int]) -> Means:
        """The mixed rows of these numbers."""
        taken = list(indices)
        return Means(self.patterns[taken], self.shares[taken])

    def sums(self, rows: Rows) -> Matrix:
        """The sums times the shares, (m, b) float64 scratch memory.

        A sum is 0 plus a sum within each group, in order, and a sum within a group runs in the order of its
        rows. The compiled kernel (`order_statistics_kernel`) adds in that order; so does NumPy where the
        order matters, and where it does not (`exactly_summed`) it leaves the sums to BLAS, whose order is its
        own.
        """
        inexact = np.flatnonzero(~exactly_summed(rows))
        if len(inexact) > len(rows[0]) // MOST_INEXACT:
            sums = self._sums_in_order(rows)
        else:
            sums = product(self.entering(len(rows)), rows)
            np.add(sums, 0.0, out=sums)
            if len(inexact):
                sums[:, inexact] = self._sums_in_order([row[inexact] for row in rows])
        return np.multiply(sums, self.shares[:, np.newaxis], out=sums)

    def entering(self, num_rows: int) -> Matrix:
        """1 where a row enters a mixed row, else 0; (m, num_rows) float64."""
        bits = np.unpackbits(self.patterns[:, :, np.newaxis], axis=2, count=GROUP, bitorder="little")
        return bits.reshape(len(self), -1)[:, :num_rows].astype(np.float64)

    def _sums_in_order(self, rows: Rows) -> Matrix:
        length = len(rows[0])
        sums: Matrix = workspace("sums in order", (len(self), length), np.float64)
        sums[:] = 0.0
        within = workspace("sums in a group", (PATTERNS, length), np.float64)
        within[0] = 0.0
        for group, patterns in enumerate(self.patterns.T):
            for place, index in enumerate(range(GROUP * group, min(GROUP * (group + 1), len(rows)))):
                alone = 1 << place
                np.copyto(within[alone], rows[index])
                np.add(within[1:alone], within[alone], out=within[alone + 1 : 2 * alone])
            if length <= FEW_COLUMNS:
                np.add(sums, within[patterns], out=sums)
                continue
            for total, pattern in zip(sums, patterns.tolist(), strict=True):
                np.add(total, within[pattern], out=total)
        return sums


@dataclass(frozen=True, eq=False)
class Combinations:
    """Mixed rows with any (m, n) float64 coefficients."""

    coefficients: Matrix

    def __len__(self) -> int:
        return len(self.coefficients)

    def only(self, indices: Sequence[int]) -> Combinations:
        """The mixed rows of these numbers."""
        return Combinations(self.coefficients[list(indices)])

    def sums(self, rows: Rows) -> Matrix:
        """The combinations, (m, b) float64 scratch memory."""
        return product(self.coefficients, rows)


Mixture: TypeAlias = Means | Combinations


def mixture_of(coefficients: Matrix) -> Mixture:
    """The mixed rows `coefficients` @ rows, of (m, n) float64 coefficients."""
    counts = np.count_nonzero(coefficients, axis=1)
    shares = 1.0 / np.maximum(counts, 1)
    entering = coefficients != 0.0
    if not np.array_equal(coefficients, entering * shares[:, np.newaxis]):
        return Combinations(coefficients)
    packed = np.packbits(entering, axis=1, bitorder="little")
    halves = np.stack([packed % PATTERNS, packed // PATTERNS], axis=2).reshape(len(packed), -1)
    return Means(np.ascontiguousarray(halves[:, : -(-coefficients.shape[1] // GROUP)]), shares)


def product(coefficients: Matrix, rows: Rows) -> Matrix:
    """`coefficients` @ rows by BLAS, (m, b) float64 scratch memory."""
    exact = workspace("rows", (len(rows), len(rows[0])), np.float64)
    for row, out in zip(rows, exact, strict=True):
        np.copyto(out, row)
    combined: Matrix = workspace("mixed exactly", (len(coefficients), len(rows[0])), np.float64)
    with one_blas_thread():
        np.matmul(coefficients, exact, out=combined)
    return combined


def exactly_summed(rows: Rows) -> NDArray[np.bool_]:
    """The columns whose values add up in float64 without rounding, in any order; (b,) bool.

    With biased exponents from e to E, n values are multiples of 2^(e - 150), where subnormal ones count as
    e = 1, and no sum of them exceeds n 2^(E - 126). If that is at most 2^53 times the former, float64 has it.
    """
    length = len(rows[0])
    magnitudes = workspace("magnitudes", (length,), np.uint32)
    largest, least = np.zeros(length, np.uint32), np.full(length, NO_VALUE, np.uint32)
    for row in rows:
        np.bitwise_and(row.view(np.uint32), SIGNLESS, out=magnitudes)
        np.maximum(largest, magnitudes, out=largest)
        np.subtract(magnitudes, np.uint32(1), out=magnitudes)
        np.minimum(least, magnitudes, out=least)
    spread = (largest >> MANTISSA).astype(np.int64) - np.maximum((least + np.uint32(1)) >> MANTISSA, 1)
    exact: NDArray[np.bool_] = (spread + (len(rows) - 1).bit_length() <= 29) | (least == NO_VALUE)
    return exact


class MixedRows(Sequence[NDArray[Any]]):
    """The mixed rows of one block, formed in scratch memory of this thread when one is first read."""

    def __init__(self, rows: Rows, mixture: Mixture) -> None:
        self.rows = rows
        self.mixture = mixture
        self._formed: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: Any) -> Any:
        if self._formed is None:
            exact = self.mixture.sums(self.rows)
            self._formed = workspace("mixed", exact.shape, np.float32)
            np.copyto(self._formed, exact, casting="same_kind")
        return self._formed[index]

    def only(self, indices: Sequence[int]) -> MixedRows:
        """The mixed rows of these numbers, which ascend."""
        return self if len(indices) == len(self) else MixedRows(self.rows, self.mixture.only(indices))
