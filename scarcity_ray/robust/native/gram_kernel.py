"""The compiled inner products of rows, and squared distances of pairs.

*Inner products.* Columns are taken `CHUNK` at a time: the rows' entries less the centre's go to a scratch
array that stays in the second-level cache, while the next chunk is fetched, and tiles of `TILE_ROWS` by
`TILE_ROWS` inner products are formed from there in registers. A tile's products run along the columns in
the lanes of a vector. After `CHAIN_COLUMNS` columns, summed by fused multiply and add, the lanes are added by
halves; these sums, and all sums of sums, are float64. So the bits do not depend on how many rows there are,
and of the processor only on its vectors' width. BLAS packs rows that were gathered and centred
before, and is made for larger matrices. What the kernel gives agrees with BLAS to rounding, not in every bit.

*Pairs.* Columns are taken as above, so that a row that is in many pairs is read from memory once, and with
each pair the next chunk of one row is fetched. Differences, squares and sums are float64; `PAIR_LANES` sums
run along the columns, and whoever calls adds them up.

The code is `native.products`.

Guarantees:
    Inner products are those of the rows less the centre.
    A float32 inner product is off by at most `roundings` 2^-24 times the sum of its products' magnitudes.
    Equal rows have equal inner products, to the bit.
    Squares of pairs are those of their differences.
    Rows are never written to.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Matrix, Rows, contiguous_rows
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.layout import CHAIN_COLUMNS, CHUNK, PAIR_LANES, TILE_ROWS
from scarcity_ray.robust.native.loader import LINE_BYTES, aligned, checked_kernel, compiled


class GramKernel:
    """The kernel's machine code for this processor; raises what `compiled` does."""

    def __init__(self) -> None:
        code = compiled(
            "products",
            {"gram32": "niifimddi", "gram64": "niidimddi", "squares_of_pairs": "nimd"},
        )
        self._gram = {np.float32: code["gram32"], np.float64: code["gram64"]}
        self._pairs = code["squares_of_pairs"]

    def roundings(self, dtype: type[np.floating]) -> int:
        """Roundings on a product's way into a sum that is float64.

        They are its two differences from the centre, a chain of multiply-adds in one lane, and the halvings
        of the lanes.
        """
        from scarcity_ray.robust.native.vectors import LANES

        lanes = LANES * 4 // np.dtype(dtype).itemsize
        return 2 + CHAIN_COLUMNS // lanes + lanes.bit_length() - 1

    def products(
        self, block: Rows, centre: int | None, dtype: type[np.floating], *, origin: bool = False
    ) -> Matrix:
        """Inner products of the rows within the block, less the row `centre`.

        Args:
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
        """Inner products of some rows with all, (c, n) float64, and each row's with itself, (n,) float64.

        The (c,) indices name no row twice; `centre` is as for `products`.
        """
        num_rows, few = len(block), len(indices)
        order = np.concatenate([indices, np.delete(np.arange(num_rows), indices)])
        width, strip = _filled(num_rows), _filled(few)
        out = np.zeros((strip + TILE_ROWS, width))
        self._run(np.float64, block, order, centre, _strip(strip, width), out)
        products, squares = np.empty((few, num_rows)), np.empty(num_rows)
        products[:, order] = out[:few, :num_rows]
        position = np.arange(num_rows)
        squares[order] = out[strip + position % TILE_ROWS, position]
        return products, squares

    def squares_of_pairs(self, block: Rows, pairs: NDArray[np.intp]) -> NDArray[np.float64]:
        """Squared distances within the block of pairs of rows, (p,) float64, from their differences.

        The (p, 2) pairs are of row indices, p >= 1; n stands for the zero vector.
        """
        rows, addresses = _with_the_zero_vector(block)
        sums = np.zeros(len(pairs) * PAIR_LANES)
        numbers = np.array(pairs, np.int64, order="C")
        self._pairs(addresses, len(rows[0]), numbers, sums)
        squares: NDArray[np.float64] = sums.reshape(-1, PAIR_LANES).sum(axis=1)
        return squares

    def squares_from(self, block: Rows, indices: NDArray[np.intp]) -> Matrix:
        """Squared distances within the block of the rows at (c,) indices to all, (c, n) float64."""
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
        middle = int(addresses[-1 if centre is None else centre])
        tile = aligned("tile", (TILE_ROWS, TILE_ROWS), np.float64)
        self._gram[dtype](
            *(addresses[order], len(block[0]), middle, points.reshape(-1), stride, tiles),
            *(tile.reshape(-1), out.reshape(-1), out.shape[1]),
        )


def _with_the_zero_vector(block: Rows) -> tuple[Rows, NDArray[np.intp]]:
    """What `contiguous_rows` gives, and the address of the zero vector after the others."""
    nothing = workspace("nothing", (len(block[0]),), np.float32)
    nothing[:] = 0.0
    rows, addresses = contiguous_rows(block)
    return rows, np.append(addresses, nothing.ctypes.data)


def _filled(num_points: int) -> int:
    """The number of points in whole tiles."""
    return -(-num_points // TILE_ROWS) * TILE_ROWS


@functools.lru_cache(maxsize=64)
def _triangle(width: int) -> NDArray[np.int64]:
    """The tiles on and above the diagonal of a square of this width; see `products.add_tiles`."""
    starts = range(0, width, TILE_ROWS)
    return np.array([(a, b, a * width + b) for a in starts for b in starts if a <= b], np.int64)


@functools.lru_cache(maxsize=64)
def _strip(height: int, width: int) -> NDArray[np.int64]:
    """The tiles of a strip of this height, and below it in one row those on the diagonal."""
    starts = range(0, width, TILE_ROWS)
    strip = [(a, b, a * width + b) for a in range(0, height, TILE_ROWS) for b in starts]
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
    for dtype in (np.float32, np.float64):
        allowed = kernel.roundings(dtype) * np.finfo(dtype).eps * magnitudes
        if not (np.abs(kernel.products(rows, 2, dtype) - points @ points.T) <= allowed).all():
            return False
    pairs = np.array([[0, 3], [6, 1], [5, len(rows)]])
    wide = np.vstack([rows, np.zeros_like(rows[:1])]).astype(np.float64)
    squares = np.square(wide[pairs[:, 0]] - wide[pairs[:, 1]]).sum(axis=1)
    return bool(np.allclose(kernel.squares_of_pairs(rows, pairs), squares, rtol=1e-12, atol=0.0))
