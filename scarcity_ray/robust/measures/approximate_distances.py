"""Squared distances from float32 products: nearly twice as fast as `distances.measure`, with an error bound.

Rules that select rows may use them if their choice is the same for all distances within the bound
(`Rule.settle`); otherwise distances are measured in float64. So near ties, bad centres and rows of extreme
norms cost time, but do not change the choice.

The bound is proved where the compiled kernel forms the products. Its g_ij is off by at most R u (1 + o(1))
sum_k |a_k b_k| <= R u (g_ii + g_jj) / 2, with u = 2^-24 and R = `GramKernel.roundings`, so that
g_ii + g_jj - 2 g_ij is off by at most 2 R u (g_ii + g_jj): each float32 rounding on a product's way, its
differences included, multiplies it by 1 + delta, |delta| <= u (Higham 2002, section 3.1), sums over
chunks are float64, and no product that matters has left float32's range (`NORMS`, `LEAST_SQUARE`).

Where BLAS forms them it is a measured one. The error was at most 10 x 2^-24 (g_ii + g_jj) for normal,
heavy-tailed, one-signed and sloping rows; twice that is claimed. Rows of thousands of equal entries, whose
rounding errors all have one sign, were seen to reach 200 x 2^-24: of those, a choice between scores that
agree to 2^-15 may fall either way.

Guarantees:
    Approximate distances are within the bound that comes with them.
    Equal rows have distance zero exactly.
    What has no good bound is not given at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import MapBlocks, Matrix, Rows, num_columns
from scarcity_ray.robust.arrays.threads import one_blas_thread, workspace
from scarcity_ray.robust.measures.distances import (
    centred_points,
    gram_block,
    middle_row,
    ordered_sum,
    squared_distances,
    unite_equal_points,
)
from scarcity_ray.robust.measures.rows import squares_block
from scarcity_ray.robust.native.gram_kernel import GramKernel, gram_kernel
from scarcity_ray.robust.native.loader import worth_a_kernel

BLAS_ROUNDING = 2.0**-20
"""Bound on the error of a squared distance, relative to (g_ii + g_jj), by BLAS in float32."""

FLOAT64_ROUNDING = 2.0**-35
"""The same in float64, over a block of less than 2^16 columns."""

NEAR = 2.0**-8
"""A pair with d_ij <= NEAR (g_ii + g_jj) has too large an error; equal rows are the only ones accepted."""

MOST_ERROR = 2.0**-10
"""Relative error of approximate distances beyond which nobody is asked to settle on them."""

NORMS = (2.0**-20, 2.0**40)
"""Between these norms no square leaves float32's range."""

LEAST_SQUARE = 2.0**-90
"""Least g_ii + g_jj of rows that differ: what products lose below float32's range is nothing beside it."""

HEAD = 1024
"""Columns that tell a row's size well enough to choose the row to centre on."""

FEW = 4
"""Rows up to which the compiled kernel forms their differences from all faster than it forms products."""


class ApproximateGram(NamedTuple):
    """Inner products (n, n) float64, and how far off squared distances are, relative to (g_ii + g_jj)."""

    products: Matrix
    rounding: float


class ApproximateDistances(NamedTuple):
    """Squared distances (n, n) float64, the largest relative error of any of them, and the row centred on."""

    squared: Matrix
    error: float
    centre: int


def approximate_gram_block(block: Rows, centre: int) -> ApproximateGram:
    """Kernel: inner products within the block of the rows less the row `centre`; float32 if it is large."""
    if not worth_a_kernel(len(block), num_columns(block)):
        return ApproximateGram(gram_block(block, centre), FLOAT64_ROUNDING)
    kernel = gram_kernel()
    if kernel is not None:
        return ApproximateGram(kernel.products(block, centre, np.float32), kernel_rounding(kernel))
    points = workspace("approximate", (len(block), len(block[0])), np.float32)
    middle = block[centre]
    with np.errstate(over="ignore", invalid="ignore"):
        for row, out in zip(block, points, strict=True):
            np.subtract(row, middle, out=out)
        with one_blas_thread():
            products: Matrix = (points @ points.T).astype(np.float64)
    return ApproximateGram(products, BLAS_ROUNDING)


def kernel_rounding(kernel: GramKernel) -> float:
    """Bound on the error of a squared distance, relative to (g_ii + g_jj), by the compiled kernel."""
    return (2 * kernel.roundings(np.float32) + 1) * 2.0**-24


def head_norms(rows: Rows) -> NDArray[np.float64]:
    """Norms of the rows' first `HEAD` columns, (n,) float64: at most those of the rows."""
    heads = (np.asarray(row[:HEAD], np.float64) for row in rows)
    return np.array([np.sqrt(np.dot(head, head)) for head in heads])


def equal_block(block: Rows, pairs: NDArray[np.intp]) -> NDArray[np.float64]:
    """Kernel: 1 for each pair of rows that differ within the block, else 0; (p,) float64."""
    return np.array([not np.array_equal(block[i], block[j]) for i, j in pairs.tolist()], np.float64)


def measure_approximately(
    map_blocks: MapBlocks, norms: NDArray[np.float64] | None = None
) -> ApproximateDistances | None:
    """Distances with a bound on their error, or None if there is no good one.

    Rows that are not finite have none.

    Args:
        norms: (n,) float64, the rows' norms, or those of some of their columns (`head_norms`), where they are
            known already (one pass less). Columns that mislead about which row is in the middle cost the
            good bound at worst.
    """
    norms = np.sqrt(ordered_sum(map_blocks(squares_block))) if norms is None else norms
    if not (norms.min() >= NORMS[0] and norms.max() <= NORMS[1]):
        return None
    centre = middle_row(norms)
    roundings = set()

    def products() -> Iterator[Matrix]:
        for part in map_blocks(approximate_gram_block, centre):
            roundings.add(part.rounding)
            yield part.products

    gram = ordered_sum(products())
    if not np.diagonal(gram).max() <= 4.0 * NORMS[1] ** 2:
        return None
    squared = squared_distances(gram)
    scale = np.add.outer(np.diagonal(gram), np.diagonal(gram))
    near = squared <= NEAR * scale
    np.fill_diagonal(near, False)
    if near.any() and not _settle_equal_rows(map_blocks, squared, near):
        return None
    unite_equal_points(squared)
    apart = squared > 0.0
    if scale[apart].min(initial=np.inf) < LEAST_SQUARE:
        return None
    error = max(roundings) * float((scale[apart] / squared[apart]).max(initial=0.0))
    return ApproximateDistances(squared, error, centre)


def rows_block(block: Rows, centre: int, indices: NDArray[np.intp]) -> Matrix:
    """Kernel: float64 squared distances within the block of the rows at `indices` to all, (c, n) float64."""
    kernel = gram_kernel() if worth_a_kernel(len(block), num_columns(block)) else None
    if kernel is not None and len(indices) <= FEW:
        return kernel.squares_from(block, indices)
    if kernel is not None:
        products, norms = kernel.products_of(block, centre, indices)
    else:
        points = centred_points(block, centre)
        norms = np.einsum("ij,ij->i", points, points)
        with one_blas_thread():
            products = points[indices] @ points.T
    squared: Matrix = np.add.outer(norms[indices], norms) - 2.0 * products
    return squared


def exact_rows(map_blocks: MapBlocks, known: ApproximateDistances, indices: NDArray[np.intp]) -> Matrix:
    """The squared distances of the rows at `indices` to all, as good as `distances.measure` gives them.

    That no pair is near, `measure_approximately` has made sure of.
    """
    squared: Matrix = np.maximum(ordered_sum(map_blocks(rows_block, known.centre, indices)), 0.0)
    first_equal = np.argmax(known.squared[np.ix_(indices, indices)] == 0.0, axis=1)
    squared = squared[first_equal]
    squared[known.squared[indices] == 0.0] = 0.0
    return squared


def _settle_equal_rows(map_blocks: MapBlocks, squared: Matrix, near: NDArray[np.bool_]) -> bool:
    """Set the distances of near pairs to zero, in place, if all of them are equal rows."""
    first = np.argmax(near | np.eye(len(near), dtype=np.bool_), axis=1)
    if (near != (np.equal.outer(first, first) & ~np.eye(len(near), dtype=np.bool_))).any():
        return False
    followers = np.flatnonzero(first != np.arange(len(first)))
    pairs = np.stack([first[followers], followers], axis=1)
    if ordered_sum(map_blocks(equal_block, pairs)).any():
        return False
    squared[near] = 0.0
    return True
