"""All pairwise squared distances of n rows, from Gram matrices of column blocks.

The rows are centred on one of them, so that d_ij = g_ii + g_jj - 2 g_ij loses little; what a pair loses all
the same is bounded by its (g_ii + g_jj), and a pair whose distance is not well above that bound is *near*.
Many near pairs mean a bad centre (raw weights around a large mean, a Byzantine row): the rows are centred
once more, on the row with the most near pairs. The few that remain (duplicates, colluders far away) are
computed from their differences. A row of norm 1e25 therefore disturbs no distance but its own.

*Guarantees*
    - Distances equal the float64 definition to a relative 1e-9, for any finite float32 rows.
    - Equal rows have distance zero and equal distances to all others.
    - Distances are symmetric with a zero diagonal.
    - Distances are bitwise the same for any grouping of blocks into tasks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import MapBlocks, Matrix, Rows
from scarcity_ray.robust.arrays.threads import one_blas_thread, workspace
from scarcity_ray.robust.measures.geometry import Geometry, squared_distances, unite_equal_points
from scarcity_ray.robust.measures.rows import squares_block
from scarcity_ray.robust.native.gram_kernel import gram_kernel

NEAR = 2.0**-16
"""A pair is near if d_ij < NEAR (g_ii + g_jj): above it, float64 rounding leaves a relative 2^-31 at most."""

PASSES = 3
"""Gram passes at most; each costs about as much as computing `3 n` near pairs from their differences."""


def gram_block(block: Rows, centre: int | None = None, origin: bool = False) -> Matrix:
    """Kernel: inner products of the rows within the block, less the row `centre`.

    Args:
        block: n float32 rows of length b.
        centre: Index of the row to subtract from all; None: nothing is subtracted.
        origin: Whether the zero vector is one more point, the last.

    Returns:
        (n, n) float64, symmetric; (n + 1, n + 1) with the origin.
    """
    kernel = gram_kernel()
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

    Args:
        block: n float32 rows of length b.
        pairs: (p, 2) row indices; n stands for the zero vector.

    Returns:
        (p,) float64.
    """
    kernel = gram_kernel()
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
    """Distances and inner products of the rows behind `map_blocks`.

    Args:
        map_blocks: Driver over the rows' column blocks; the rows are finite.
        norms: (n,) float64, the rows' norms where they are known already (one pass less).
        origin: Whether the zero vector is one more point.
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
        exact = ordered_sum(map_blocks(pair_block, pairs))
        squared[pairs[:, 0], pairs[:, 1]] = squared[pairs[:, 1], pairs[:, 0]] = exact
    unite_equal_points(squared)
    return Geometry(squared, gram, num_rows)


def pairwise(map_blocks: MapBlocks, norms: NDArray[np.float64] | None = None) -> Matrix:
    """All squared distances of the rows behind `map_blocks`; see `measure`.

    Returns:
        (n, n) float64, symmetric, zero on the diagonal.
    """
    return measure(map_blocks, norms).distances


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
