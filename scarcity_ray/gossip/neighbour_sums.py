"""Distances to, and weighted sums of, the vectors that each client received.

Short rows are gathered, so that a basket's n x K receipts cost a few array operations for each block of
columns. Rows of `LONG` entries and more are processed one by one, without gathering. Both ways need the
memory of a few blocks.

Guarantees:
    distances_and_sums_are_those_of_the_definition: To float32 rounding.
    A state may be overwritten by its own sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Rows, column_blocks
from scarcity_ray.robust.arrays.threads import workspace

Scales = NDArray[np.float64]

BLOCK_ENTRIES = 1 << 19
"""Entries of the wider of the two matrices in a column block."""

LONG = 2048
"""Length from which rows are worked on one by one."""

ROWS_AT_HAND = 16
"""Rows that share the cache while one long state is summed."""


@dataclass(frozen=True, eq=False)
class Received:
    """What the receivers of one gossip round got.

    Attributes:
        vectors: m distinct released vectors, float32 (d,) each; a sender that tells different peers different
            things has several.
        index: intp (n, K): row i names in its first ``counts[i]`` entries the vectors that receiver i got.
        counts: intp (n,), each at least 1.
    """

    vectors: Sequence[NDArray[np.float32]]
    index: NDArray[np.intp]
    counts: NDArray[np.intp]

    @classmethod
    def of(cls, vectors: Sequence[NDArray[np.float32]], index: Sequence[Sequence[int]]) -> Received:
        """From a list of vector indices for each receiver."""
        counts = np.array([len(row) for row in index], np.intp)
        padded = np.zeros((len(index), int(counts.max(initial=0))), np.intp)
        for row, out in zip(index, padded, strict=True):
            out[: len(row)] = row
        return cls(vectors, padded, counts)

    @property
    def present(self) -> NDArray[np.bool_]:
        """(n, K): which entries of `index` are meant."""
        present: NDArray[np.bool_] = np.arange(self.index.shape[1]) < self.counts[:, np.newaxis]
        return present

    def distances(self, states: Rows, state_scales: Scales, vector_scales: Scales) -> NDArray[np.float64]:
        """Squared distances of each state to what it received, after scaling both.

        Args:
            states: n float32 rows of length d.
            state_scales: (n,) factors of the states.
            vector_scales: (m,) factors of the vectors.

        Returns:
            (n, K) float64; inf where `present` is false.
        """
        squared = np.zeros(self.index.shape)
        if len(self.vectors[0]) >= LONG:
            self._long_distances(states, state_scales, vector_scales, squared)
        else:
            self._short_distances(states, state_scales, vector_scales, squared)
        squared[~self.present] = np.inf
        return squared

    def combine(self, states: Rows, own: Scales, shares: NDArray[np.float64], out: Rows) -> None:
        """Write own_i states_i + sum_k shares_ik vectors_index_ik to `out`, in float32.

        Args:
            states: n float32 rows of length d.
            own: (n,).
            shares: (n, K); what stands where `present` is false is ignored.
            out: n float32 rows; may be `states`.
        """
        factors = own.astype(np.float32)
        weights = np.where(self.present, shares, 0.0).astype(np.float32)
        if len(self.vectors[0]) >= LONG:
            self._long_sums(states, factors, weights, out)
        else:
            self._short_sums(states, factors, weights, out)

    def _short_distances(
        self, states: Rows, state_scales: Scales, vector_scales: Scales, squared: NDArray[np.float64]
    ) -> None:
        for columns in column_steps(len(self.vectors[0]), len(self.vectors), len(states)):
            points = scaled_block("points", states, columns, state_scales)
            vectors = scaled_block("vectors", self.vectors, columns, vector_scales)
            gathered = workspace("gathered", points.shape, np.float32)
            for k in range(self.index.shape[1]):
                np.take(vectors, self.index[:, k], axis=0, out=gathered, mode="clip")
                np.subtract(gathered, points, out=gathered)
                squared[:, k] += np.einsum("ij,ij->i", gathered, gathered)

    def _long_distances(
        self, states: Rows, state_scales: Scales, vector_scales: Scales, squared: NDArray[np.float64]
    ) -> None:
        own = state_scales.astype(np.float32)
        heard = [row[:count] for row, count in zip(self.index.tolist(), self.counts.tolist(), strict=True)]
        for columns in column_blocks(len(self.vectors[0])):
            vectors = scaled_block("vectors", self.vectors, columns, vector_scales)
            point = workspace("points", (columns.stop - columns.start,), np.float32)
            apart = workspace("gathered", point.shape, np.float32)
            for i, senders in enumerate(heard):
                np.multiply(states[i][columns], own[i], out=point)
                for k, sender in enumerate(senders):
                    np.subtract(vectors[sender], point, out=apart)
                    squared[i, k] += np.dot(apart, apart)

    def _short_sums(
        self, states: Rows, factors: NDArray[np.float32], shares: NDArray[np.float32], out: Rows
    ) -> None:
        for columns in column_steps(len(self.vectors[0]), len(self.vectors), len(states)):
            vectors = scaled_block("vectors", self.vectors, columns, None)
            points = scaled_block("points", states, columns, None)
            gathered = workspace("gathered", points.shape, np.float32)
            np.multiply(points, factors[:, np.newaxis], out=points)
            for k in range(self.index.shape[1]):
                np.take(vectors, self.index[:, k], axis=0, out=gathered, mode="clip")
                np.multiply(gathered, shares[:, k, np.newaxis], out=gathered)
                np.add(points, gathered, out=points)
            for row, sums in zip(out, points, strict=True):
                row[columns] = sums

    def _long_sums(
        self, states: Rows, factors: NDArray[np.float32], shares: NDArray[np.float32], out: Rows
    ) -> None:
        steps = column_steps(len(self.vectors[0]), ROWS_AT_HAND)
        for columns, i in itertools.product(steps, range(len(states))):
            total = workspace("points", (columns.stop - columns.start,), np.float32)
            term = workspace("gathered", total.shape, np.float32)
            heard = [self.vectors[sender][columns] for sender in self.index[i, : self.counts[i]].tolist()]
            if len(heard) > 1 and (shares[i, 1 : len(heard)] == shares[i, 0]).all():
                np.add(heard[0], heard[1], out=term)
                for vector in heard[2:]:
                    np.add(term, vector, out=term)
                np.multiply(term, shares[i, 0], out=term)
                np.multiply(states[i][columns], factors[i], out=total)
                np.add(total, term, out=out[i][columns])
                continue
            np.multiply(states[i][columns], factors[i], out=total)
            for vector, share in zip(heard, shares[i], strict=False):
                if share:
                    np.multiply(vector, share, out=term)
                    np.add(total, term, out=total)
            out[i][columns] = total


def scaled_block(name: str, rows: Rows, columns: slice, scales: Scales | None) -> NDArray[np.float32]:
    """The rows' entries in `columns`, each row times its scale, in a scratch array of that name."""
    block = workspace(name, (len(rows), columns.stop - columns.start), np.float32)
    if scales is None:
        for index, row in enumerate(rows):
            block[index] = row[columns]
    else:
        for index, (row, scale) in enumerate(zip(rows, scales.astype(np.float32), strict=True)):
            np.multiply(row[columns], scale, out=block[index])
    return block


def column_steps(dimension: int, *num_rows: int) -> Iterator[slice]:
    """Column ranges in which that many rows make a block of about `BLOCK_ENTRIES` entries."""
    width = max(64, BLOCK_ENTRIES // max(num_rows))
    for start in range(0, dimension, width):
        yield slice(start, min(start + width, dimension))
