"""Mixed rows, formed block by block when somebody asks for them: no mixed copy of all rows.

Nearest-neighbour mixing and bucketing make *means*: a mixed row is the sum of some rows, times a share. Rows
are taken in groups of `GROUP`; all sums within a group are formed once, and each mixed row adds up one of
them a group ("Four Russians": Arlazarov, Dinic, Kronrod, Faradžev 1970), a quarter of the additions. Nothing
is ever subtracted, so that a row of any size disturbs only those that it enters. Other combinations are a
float64 matrix product.

*Guarantees*
    - A mixed row is that of float64 sums, rounded once; a row that does not enter it changes no bit of it.
    - Means have the same bits on every processor: their additions have one order.
    - Only the mixed rows that somebody asks for are formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.blocks import Matrix, Rows, one_blas_thread, workspace

GROUP = 4
"""Rows whose sums are formed once: more of them mean fewer additions, and sums that leave the first cache."""

PATTERNS = 2**GROUP
"""Sums that a group has, the empty one included."""


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

        A sum within a group runs in the order of the rows, and a mixed row is 0 plus one of them a group, in
        order. The compiled kernel (`kernel_mixing`) does the same.
        """
        length = len(rows[0])
        sums: Matrix = workspace("mixed exactly", (len(self), length), np.float64)
        sums[:] = 0.0
        within = list(workspace("sums in a group", (PATTERNS, length), np.float64))
        for group, patterns in enumerate(self.patterns.T.tolist()):
            for place, index in enumerate(range(GROUP * group, min(GROUP * (group + 1), len(rows)))):
                alone = 1 << place
                np.copyto(within[alone], rows[index])
                for earlier in range(1, alone):
                    np.add(within[earlier], within[alone], out=within[alone | earlier])
            for total, pattern in zip(sums, patterns, strict=True):
                if pattern:
                    np.add(total, within[pattern], out=total)
        for total, share in zip(sums, self.shares.tolist(), strict=True):
            np.multiply(total, share, out=total)
        return sums


@dataclass(frozen=True, eq=False)
class Combinations:
    """Mixed rows with any coefficients.

    Attributes:
        coefficients: (m, n) float64.
    """

    coefficients: Matrix

    def __len__(self) -> int:
        return len(self.coefficients)

    def only(self, indices: Sequence[int]) -> Combinations:
        """The mixed rows of these numbers."""
        return Combinations(self.coefficients[list(indices)])

    def sums(self, rows: Rows) -> Matrix:
        """The combinations, (m, b) float64 scratch memory."""
        exact = workspace("rows", (len(rows), len(rows[0])), np.float64)
        for row, out in zip(rows, exact, strict=True):
            np.copyto(out, row)
        sums: Matrix = workspace("mixed exactly", (len(self), len(rows[0])), np.float64)
        with one_blas_thread():
            np.matmul(self.coefficients, exact, out=sums)
        return sums


Mixture: TypeAlias = Means | Combinations


def mixture_of(coefficients: Matrix) -> Mixture:
    """The mixed rows `coefficients` @ rows.

    Args:
        coefficients: (m, n) float64.
    """
    counts = np.count_nonzero(coefficients, axis=1)
    shares = 1.0 / np.maximum(counts, 1)
    entering = coefficients != 0.0
    if not np.array_equal(coefficients, entering * shares[:, np.newaxis]):
        return Combinations(coefficients)
    packed = np.packbits(entering, axis=1, bitorder="little")
    halves = np.stack([packed % PATTERNS, packed // PATTERNS], axis=2).reshape(len(packed), -1)
    return Means(np.ascontiguousarray(halves[:, : -(-coefficients.shape[1] // GROUP)]), shares)


class MixedRows(Sequence[NDArray[Any]]):
    """The mixed rows of one block, formed in scratch memory of this thread when one is first read.

    Args:
        rows: n float32 rows of length b, never written to.
        mixture: What is made of them.
    """

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
