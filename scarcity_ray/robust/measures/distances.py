"""All pairwise squared distances of n rows, from Gram matrices of column blocks.

The rows are centred on one of them, so that d_ij = g_ii + g_jj - 2 g_ij loses few digits to cancellation. The
loss is bounded by (g_ii + g_jj), and a pair whose distance is not well above that bound is *near*. Many near
pairs mean a bad centre (raw weights around a large mean, a Byzantine row): the rows are centred once more, on
the row with the most near pairs. The few that remain (duplicates, colluders far away) are computed from their
differences. A row of norm 1e25 therefore spoils no distance but its own.

A `Geometry` holds the distances and inner products of n rows, without the rows. Rules and pre-aggregation
that work on whole rows need no more. A point is a row or, on request, the zero vector (the *origin*, the last
point), and every result is an affine combination of points. So norms are distances to the origin, and the
mixed rows of a pre-aggregation have a geometry again.

Guarantees:
    Distances equal the float64 definition to a relative 1e-9, for any finite float32 rows.
    Equal rows have distance zero and equal distances to all others.
    Distances are symmetric with a zero diagonal.
    Distances are bitwise the same for any grouping of blocks into tasks.
    A mixed geometry is that of the mixed rows.
    Rows that are mixed alike are equal: their distance is zero.
    Squares to a combination are those of the rows' differences from it, or are not given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import MapBlocks, Matrix, Rows, num_columns
from scarcity_ray.robust.arrays.threads import one_blas_thread, workspace
from scarcity_ray.robust.measures.rows import squares_block
from scarcity_ray.robust.native.gram_kernel import gram_kernel
from scarcity_ray.robust.native.loader import worth_a_kernel

NEAR = 2.0**-16
"""A pair is near if d_ij < NEAR (g_ii + g_jj): above it, float64 rounding leaves a relative 2^-31 at most."""

PASSES = 3
"""Gram passes at most; each costs about as much as computing `3 n` near pairs from their differences."""

CANCELLATION = 16.0
"""What a distance to a combination of points may lose against the distances it is made of."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """Distances and inner products of p points, the first `num_rows` of which are rows.

    Attributes:
        squared: (p, p) float64 squared distances, symmetric, zero on the diagonal.
        gram: (p, p) float64 inner products of the points less a common centre close to most of them.
        num_rows: n; p is n, or n + 1 with the origin.
    """

    squared: Matrix
    gram: Matrix
    num_rows: int

    @property
    def distances(self) -> Matrix:
        """(n, n) squared distances of the rows."""
        return self.squared[: self.num_rows, : self.num_rows]

    @property
    def norms(self) -> NDArray[np.float64]:
        """(n,) norms of the rows; needs the origin."""
        norms: NDArray[np.float64] = np.sqrt(self.squared[-1, : self.num_rows])
        return norms

    def distances_to(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """(p,) distances of the points to the combination with these (p,) coefficients, which sum to 1."""
        inner = self.gram @ coefficients
        squared = np.diagonal(self.gram) - 2.0 * inner + coefficients @ inner
        return np.sqrt(np.maximum(squared, 0.0))

    def mixed(self, coefficients: Matrix) -> Geometry:
        """The geometry of the rows `coefficients` @ points, of (m, p) float64 whose rows sum to 1."""
        has_origin = len(self.squared) > self.num_rows
        if has_origin:
            coefficients = with_origin(coefficients)
        gram = coefficients @ self.gram @ coefficients.T
        gram = 0.5 * (gram + gram.T)
        squared = squared_distances(gram)
        _, kind = np.unique(coefficients, axis=0, return_inverse=True)
        squared[np.equal.outer(kind.ravel(), kind.ravel())] = 0.0
        unite_equal_points(squared)
        return Geometry(squared, gram, len(coefficients) - has_origin)


def with_origin(coefficients: Matrix) -> Matrix:
    """The mixed rows' coefficients and those of the origin, which is the last point and stays what it is."""
    last = np.zeros((1, coefficients.shape[1]))
    last[0, -1] = 1.0
    return np.concatenate([coefficients, last])


def squared_distances(gram: Matrix) -> Matrix:
    """Squared distances from (p, p) inner products: g_ii + g_jj - 2 g_ij, never negative."""
    norms = np.diagonal(gram)
    squared = np.maximum(np.add.outer(norms, norms) - 2.0 * gram, 0.0)
    np.fill_diagonal(squared, 0.0)
    return squared


def squares_to(squared: Matrix, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Squared distances of all points to a combination of them; None where cancellation would spoil one.

    |x_j - sum w_i x_i|^2 = sum w_i d_ij - (1/2) sum w_i w_k d_ik for weights that sum to 1. An error in the
    distances grows by less than twice `CANCELLATION`.

    Args:
        squared: (p, p) float64 squared distances.
        weights: (p,) float64, nonnegative, which sum to 1.

    Returns:
        (p,) float64.
    """
    means = squared @ weights
    squares = means - 0.5 * float(weights @ means)
    squares[means == 0.0] = 0.0
    return squares if bool((squares * CANCELLATION >= means).all()) else None


def unite_equal_points(squared: Matrix) -> None:
    """Give points at distance zero the same distances to all others, in place."""
    equal = np.argwhere(np.tril(squared == 0.0, -1))
    for later, earlier in equal.tolist():
        squared[later, :] = squared[earlier, :]
        squared[:, later] = squared[:, earlier]
        squared[later, later] = 0.0


def gram_block(block: Rows, centre: int | None = None, origin: bool = False) -> Matrix:
    """Kernel: inner products of the rows within the block, less the row `centre`.

    Args:
        centre: Index of the row to subtract from all; None: nothing is subtracted.
        origin: Whether the zero vector is one more point, the last.

    Returns:
        (n, n) float64, symmetric; (n + 1, n + 1) with the origin.
    """
    kernel = gram_kernel() if worth_a_kernel(len(block), num_columns(block)) else None
    if kernel is not None:
        return kernel.products(block, centre, np.float64, origin=origin)
    points = centred_points(block, centre, origin)
    with one_blas_thread():
        product: Matrix = points @ points.T
    return product


def centred_points(block: Rows, centre: int | None, origin: bool = False) -> Matrix:
    """The rows less the row `centre`, in float64 scratch memory; the zero vector may be one more."""
    shape = (len(block) + origin, len(block[0]))
    points: Matrix = workspace("points", shape, np.float64)
    for row, out in zip(block, points, strict=False):
        np.copyto(out, row)
    if origin:
        points[-1] = 0.0
    if centre is not None:
        middle = workspace("centre", shape[1:], np.float64)
        np.copyto(middle, points[centre])
        np.subtract(points, middle, out=points)
    return points


def pair_block(block: Rows, pairs: NDArray[np.intp]) -> NDArray[np.float64]:
    """Kernel: squared distances within the block of the given pairs of rows, from their differences.

    The (p, 2) pairs are of row indices, where n stands for the zero vector; the result is (p,) float64.
    """
    kernel = gram_kernel() if worth_a_kernel(len(block), num_columns(block)) else None
    if kernel is not None:
        return kernel.squares_of_pairs(block, pairs)
    first = workspace("first", (len(block[0]),), np.float64)
    second = workspace("second", (len(block[0]),), np.float64)
    squared = np.empty(len(pairs), np.float64)
    for index, (i, j) in enumerate(pairs.tolist()):
        for point, values in ((i, first), (j, second)):
            if point < len(block):
                np.copyto(values, block[point])
            else:
                values[:] = 0.0
        np.subtract(first, second, out=first)
        squared[index] = np.dot(first, first)
    return squared


def measure(
    map_blocks: MapBlocks, norms: NDArray[np.float64] | None = None, *, origin: bool = False
) -> Geometry:
    """Distances and inner products of the finite rows behind `map_blocks`.

    Args:
        norms: (n,) float64, the rows' norms where they are known already (one pass less).
    """
    squares = ordered_sum(map_blocks(squares_block)) if norms is None else np.square(norms)
    num_rows = len(squares)
    centre = middle_row(squares)
    gram, squared, scale = _one_pass(map_blocks, centre, origin)
    for _ in range(PASSES - 1):
        near = squared < NEAR * scale
        if np.count_nonzero(near) <= 6 * num_rows:
            break
        centre = int(np.argmax(near[:num_rows].sum(axis=1)))
        gram, again, again_scale = _one_pass(map_blocks, centre, origin)
        better = again_scale < scale
        squared = np.where(better, again, squared)
        scale = np.where(better, again_scale, scale)
    pairs = np.argwhere(np.triu(squared < NEAR * scale, 1))
    if len(pairs):
        squared[pairs[:, 0], pairs[:, 1]] = squared[pairs[:, 1], pairs[:, 0]] = exact_pairs(map_blocks, pairs)
    unite_equal_points(squared)
    return Geometry(squared, gram, num_rows)


def pairwise(map_blocks: MapBlocks, norms: NDArray[np.float64] | None = None) -> Matrix:
    """All squared distances of the rows behind `map_blocks`, (n, n) float64; see `measure`."""
    return measure(map_blocks, norms).distances


def exact_pairs(map_blocks: MapBlocks, pairs: NDArray[np.intp]) -> NDArray[np.float64]:
    """Squared distances (p,) float64 of the (p, 2) pairs of rows, from their differences."""
    return ordered_sum(map_blocks(pair_block, pairs))


def middle_row(norms: NDArray[np.float64]) -> int:
    """Index of the row of median norm: with fewer than half Byzantine, as long as some honest row."""
    return int(np.argsort(norms, kind="stable")[(len(norms) - 1) // 2])


def ordered_sum(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """Sum of float64 arrays in the order given."""
    iterator = iter(parts)
    total = np.array(next(iterator), np.float64)
    for part in iterator:
        total += part
    return total


def _one_pass(map_blocks: MapBlocks, centre: int, origin: bool) -> tuple[Matrix, Matrix, Matrix]:
    gram = ordered_sum(map_blocks(gram_block, centre, origin))
    norms = np.diagonal(gram)
    scale = np.add.outer(norms, norms)
    np.fill_diagonal(scale, 0.0)
    return gram, squared_distances(gram), scale
