"""The compiled inner products of rows, where LLVM is installed and the processor has 512-bit vectors.

BLAS packs the rows of a block that were gathered and centred before, and is made for larger matrices; the
kernel centres each chunk of columns on the way to its registers and fetches the next one meanwhile. It takes
a half to two thirds of the time. What it gives agrees with BLAS to rounding, not in every bit.

*Guarantees*
    - Inner products are those of the rows less the centre, within the rounding that `gram_code` states.
    - Equal rows have equal inner products, to the bit.
    - Rows are never written to.
"""

from __future__ import annotations

import functools
from functools import partial

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Matrix, Rows, contiguous_rows
from scarcity_ray.robust.arrays.scratch import workspace
from scarcity_ray.robust.native.gram_kernel import (
    CHUNK,
    DOUBLE,
    ROUNDINGS,
    SINGLE,
    TILE,
    Precision,
    gram_code,
)
from scarcity_ray.robust.native.loader import (
    LINE_BYTES,
    MachineCode,
    UnsuitedProcessor,
    aligned,
    checked_kernel,
)
from scarcity_ray.robust.native.pairs_code import LANES, pairs_code

PRECISIONS: dict[type[np.floating], Precision] = {np.float32: SINGLE, np.float64: DOUBLE}


class GramKernel:
    """The kernel's machine code for this processor.

    Raises:
        UnsuitedProcessor: If the processor has no 512-bit vectors.
        Exception: What `MachineCode` does.
    """

    def __init__(self) -> None:
        self._code = {
            dtype: MachineCode(partial(_assembly, precision), {"gram": "piippipipi"})
            for dtype, precision in PRECISIONS.items()
        }
        self._pairs = MachineCode(_pairs_assembly, {"pairs": "piipip"})

    def products(
        self, block: Rows, centre: int | None, dtype: type[np.floating], *, origin: bool = False
    ) -> Matrix:
        """Inner products of the rows within the block, less the row `centre`.

        Args:
            block: n float32 rows of length b.
            centre: Index of the row to subtract from all; None: nothing is subtracted.
            dtype: What differences and products are formed in.
            origin: Whether the zero vector is one more point, the last.

        Returns:
            (n, n) float64, symmetric; (n + 1, n + 1) with the origin.
        """
        num_points = len(block) + origin
        width = _filled(num_points)
        out = np.zeros((width, width))
        order = np.arange(num_points)
        self._run(dtype, block, order, centre, _triangle(width), out)
        np.copyto(out, out.T, where=_below(width))
        return out[:num_points, :num_points]

    def products_of(
        self, block: Rows, centre: int | None, indices: NDArray[np.intp]
    ) -> tuple[Matrix, NDArray[np.float64]]:
        """Inner products of some rows with all, in float64, and each row's with itself; less the `centre`.

        Args:
            block: n float32 rows of length b.
            centre: As for `products`.
            indices: (c,) rows, no row twice.

        Returns:
            (c, n) and (n,) float64.
        """
        num_rows, few = len(block), len(indices)
        order = np.concatenate([indices, np.delete(np.arange(num_rows), indices)])
        width, strip = _filled(num_rows), _filled(few)
        out = np.zeros((strip + TILE, width))
        self._run(np.float64, block, order, centre, _strip(strip, width), out)
        products, squares = np.empty((few, num_rows)), np.empty(num_rows)
        products[:, order] = out[:few, :num_rows]
        position = np.arange(num_rows)
        squares[order] = out[strip + position % TILE, position]
        return products, squares

    def squares_of_pairs(self, block: Rows, pairs: NDArray[np.intp]) -> NDArray[np.float64]:
        """Squared distances within the block of pairs of rows, from their differences in float64.

        Args:
            block: n float32 rows of length b.
            pairs: (p, 2) row indices, p >= 1; n stands for the zero vector.

        Returns:
            (p,) float64.
        """
        rows, addresses = _with_the_zero_vector(block)
        sums = np.zeros((len(pairs), LANES))
        numbers = np.ascontiguousarray(pairs, np.int64)
        self._pairs(
            "pairs",
            addresses.ctypes.data,
            len(addresses),
            len(rows[0]),
            numbers.ctypes.data,
            len(numbers),
            sums.ctypes.data,
        )
        squares: NDArray[np.float64] = sums.sum(axis=1)
        return squares

    def squares_from(self, block: Rows, indices: NDArray[np.intp]) -> Matrix:
        """Squared distances within the block of some rows to all, as `squares_of_pairs` gives them.

        Args:
            block: n float32 rows of length b.
            indices: (c,) rows, c >= 1.

        Returns:
            (c, n) float64.
        """
        num_rows, few = len(block), len(indices)
        pairs = np.stack([np.repeat(indices, num_rows), np.tile(np.arange(num_rows), few)], axis=1)
        return self.squares_of_pairs(block, pairs).reshape(few, num_rows)

    def _run(
        self,
        dtype: type[np.floating],
        block: Rows,
        order: NDArray[np.intp],
        centre: int | None,
        tiles: NDArray[np.int64],
        out: Matrix,
    ) -> None:
        """Adds the products of the points in this order to `out`; the point n is the zero vector."""
        block, addresses = _with_the_zero_vector(block)
        stride = CHUNK + LINE_BYTES // np.dtype(dtype).itemsize
        points = aligned(f"points {np.dtype(dtype)}", (_filled(len(order)), stride), dtype)
        points[len(order) :] = 0.0
        begins = addresses[order]
        self._code[dtype](
            "gram",
            begins.ctypes.data,
            len(order),
            len(block[0]),
            int(addresses[-1 if centre is None else centre]),
            points.ctypes.data,
            stride,
            tiles.ctypes.data,
            len(tiles),
            out.ctypes.data,
            out.shape[1],
        )


def _assembly(precision: Precision, has_wide_vectors: bool) -> str:
    if not has_wide_vectors:
        raise UnsuitedProcessor("the kernel for inner products needs a processor with 512-bit vectors")
    return gram_code(precision)


def _pairs_assembly(has_wide_vectors: bool) -> str:
    return pairs_code()


def _with_the_zero_vector(block: Rows) -> tuple[Rows, NDArray[np.intp]]:
    """What `contiguous_rows` gives, and the address of the zero vector after the others."""
    nothing = workspace("nothing", (len(block[0]),), np.float32)
    nothing[:] = 0.0
    rows, addresses = contiguous_rows(block)
    return rows, np.append(addresses, nothing.ctypes.data)


def _filled(num_points: int) -> int:
    """The number of points in whole tiles."""
    return -(-num_points // TILE) * TILE


@functools.lru_cache(maxsize=64)
def _triangle(width: int) -> NDArray[np.int64]:
    """The tiles on and above the diagonal of a square of this width; see `gram_code.gram_code`."""
    starts = range(0, width, TILE)
    return np.array([(a, b, a * width + b) for a in starts for b in starts if a <= b], np.int64)


@functools.lru_cache(maxsize=64)
def _strip(height: int, width: int) -> NDArray[np.int64]:
    """The tiles of a strip of this height, and below it in one row those on the diagonal."""
    starts = range(0, width, TILE)
    strip = [(a, b, a * width + b) for a in range(0, height, TILE) for b in starts]
    return np.array([*strip, *((a, a, height * width + a) for a in starts)], np.int64)


@functools.lru_cache(maxsize=64)
def _below(width: int) -> NDArray[np.bool_]:
    return np.tri(width, k=-1, dtype=np.bool_)


@functools.cache
def gram_kernel() -> GramKernel | None:
    """The kernel, unless it cannot be had here or does not give the products."""
    return checked_kernel(GramKernel, _gives_the_products, "inner products are left to BLAS")


def _gives_the_products(kernel: GramKernel) -> bool:
    entries = np.arange(7 * 1300)
    rows = (np.sin(entries) * 2.0 ** (entries % 13 - 6)).astype(np.float32).reshape(7, 1300)
    points = np.subtract(rows, rows[2], dtype=np.float64)
    magnitudes = np.abs(points) @ np.abs(points).T
    for dtype in PRECISIONS:
        allowed = ROUNDINGS * np.finfo(dtype).eps * magnitudes
        if not (np.abs(kernel.products(rows, 2, dtype) - points @ points.T) <= allowed).all():
            return False
    pairs = np.array([[0, 3], [6, 1], [5, len(rows)]])
    wide = np.vstack([rows, np.zeros_like(rows[:1])]).astype(np.float64)
    squares = np.square(wide[pairs[:, 0]] - wide[pairs[:, 1]]).sum(axis=1)
    return bool(np.allclose(kernel.squares_of_pairs(rows, pairs), squares, rtol=1e-12, atol=0.0))
