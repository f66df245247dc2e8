"""Single rows: their norms, clipping, distances from one of them, and the checks of what is given as rows.

Guarantees:
    A norm is exact to float64 rounding for every float32 row, and not finite if and only if the row is not.
    A clipped row has at most the clip norm, to float32 rounding.
    Rows within the clip norm are returned bit by bit.
    Nothing that came in is written to.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import BLOCK_COLUMNS, Rows, Vector, column_blocks, num_columns
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.gram_kernel import gram_kernel
from scarcity_ray.robust.native.loader import worth_a_kernel


def row_norm(row: NDArray[Any]) -> float:
    """Euclidean norm of a float32 row in float64; ``inf`` or ``nan`` if an entry is not finite.

    >>> row_norm(np.array([3.0, 4.0], np.float32))
    5.0
    """
    if len(row) <= BLOCK_COLUMNS:
        wide = row.astype(np.float64)
        return math.sqrt(np.dot(wide, wide))
    total = 0.0
    for columns in column_blocks(len(row)):
        block = workspace("norm", (columns.stop - columns.start,), np.float64)
        np.copyto(block, row[columns])
        total += float(np.dot(block, block))
    return float(np.sqrt(total))


def row_norms(rows: Rows) -> NDArray[np.float64]:
    """`row_norm` of each row, (n,) float64."""
    return np.array([row_norm(row) for row in rows], np.float64)


def norms_from(rows: Rows, least: float) -> NDArray[np.float64]:
    """`row_norms` for those that have a norm of at least `least`, and for others any number below it.

    A float32 product of a block is right to a relative 8192 / 2^24, far better than `_CLEARLY`. What has
    left float32's range is not below `least` by it.
    """
    norms = np.zeros(len(rows))
    for index, row in enumerate(rows):
        with np.errstate(over="ignore", invalid="ignore"):
            square = sum(float(np.dot(row[c], row[c])) for c in column_blocks(len(row)))
        if not square < (_CLEARLY * least) ** 2 or least < _SMALL:
            norms[index] = row_norm(row)
    return norms


_CLEARLY = 0.999
"""A norm below this share of a bound lies below the bound, however its square was rounded."""
_SMALL = 1e-12
"""Bounds from which squares do not underflow."""


def squares_block(block: Rows) -> NDArray[np.float64]:
    """Kernel: each row's sum of squares within the block, (n,) float64."""
    squares = np.empty(len(block), np.float64)
    scratch = workspace("norm", (len(block[0]),), np.float64)
    for index, row in enumerate(block):
        np.copyto(scratch, row)
        squares[index] = np.dot(scratch, scratch)
    return squares


def squares_from_block(block: Rows, pivot: int) -> NDArray[np.float64]:
    """Kernel: each row's squared distance within the block from the row `pivot`, (n,) float64.

    Differences and sums are float64, and equal rows have equal distances.
    """
    kernel = gram_kernel() if worth_a_kernel(len(block), num_columns(block)) else None
    if kernel is not None:
        return kernel.squares_from(block, np.array([pivot])).reshape(-1)
    middle = workspace("pivot", (len(block[0]),), np.float64)
    np.copyto(middle, block[pivot])
    apart = workspace("norm", middle.shape, np.float64)
    squares = np.empty(len(block), np.float64)
    for index, row in enumerate(block):
        np.copyto(apart, row)
        np.subtract(apart, middle, out=apart)
        squares[index] = np.dot(apart, apart)
    return squares


def clip_vector(vector: NDArray[Any], clip_norm: float, norm: float | None = None) -> Vector:
    """The finite vector scaled by min(1, clip_norm / norm), as a new float32 array; `clip_norm` is positive.

    `norm` is what `row_norm` gives for it, where that is known.

    >>> clip_vector(np.array([3.0, 4.0], np.float32), 1.0)
    array([0.6, 0.8], dtype=float32)
    """
    return _scaled(vector, row_norm(vector) if norm is None else norm, clip_norm)


def clip_rows(matrix: Rows, norms: NDArray[np.float64], clip_norm: float) -> NDArray[np.float32]:
    """Each finite row scaled by min(1, clip_norm / its norm), as a new (n, d) float32 array.

    The norms are what `row_norm` gives for each, and `clip_norm` is positive.
    """
    clipped = np.empty((len(matrix), len(matrix[0])), np.float32)
    for row, norm, out in zip(matrix, norms, clipped, strict=True):
        _scaled(row, float(norm), clip_norm, out)
    return clipped


def _scaled(row: NDArray[Any], norm: float, clip_norm: float, out: Vector | None = None) -> Vector:
    out = np.empty(len(row), np.float32) if out is None else out
    if norm <= clip_norm:
        np.copyto(out, row)
        return out
    np.multiply(row, clip_norm / norm, out=out, dtype=np.float64, casting="same_kind")
    return out


def as_rows(updates: ArrayLike | Sequence[ArrayLike]) -> Rows:
    """Check that `updates` are n rows of d >= 1 real numbers each, and give them as float32.

    Args:
        updates: (n, d) array or a sequence of n 1-D rows; what is float32 already is not copied.

    Raises:
        UsageError: For another shape or type, or rows of different lengths.
    """
    if isinstance(updates, np.ndarray) and updates.dtype != object:
        if updates.ndim != 2:
            raise UsageError(f"updates must be rows of a 2-D array, got shape {updates.shape}")
        rows: Rows = _as_float32(updates, "updates")
    else:
        try:
            given = list(updates)  # type: ignore[arg-type]
        except TypeError:
            raise UsageError(f"updates must be a sequence of rows, got {type(updates).__name__}") from None
        rows = [_as_float32(_as_array(row, index), f"row {index}") for index, row in enumerate(given)]
        for index, row in enumerate(rows):
            if row.ndim != 1:
                raise UsageError(f"row {index} must be 1-D, got shape {row.shape}")
            if len(row) != len(rows[0]):
                raise UsageError(f"row {index} has {len(row)} entries, row 0 has {len(rows[0])}")
    if len(rows) > 0 and len(rows[0]) == 0:
        raise UsageError("rows must have at least one entry")
    return rows


def as_integer(value: object, name: str, least: int) -> int:
    """`value` as an int of at least `least`; NumPy's integers are welcome.

    Raises:
        UsageError: For anything else.
    """
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise UsageError(f"{name} must be an integer, got {value!r}")
    number = operator.index(value)
    if number < least:
        raise UsageError(f"{name} must be at least {least}, got {number}")
    return number


def as_weights(weights: ArrayLike, num_rows: int) -> NDArray[np.float64]:
    """`weights` as (n,) float64.

    Raises:
        UsageError: For another shape or type.
    """
    try:
        checked = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise UsageError("weights must be real numbers") from None
    if checked.shape != (num_rows,):
        raise UsageError(f"weights must have shape ({num_rows},), one for each row, got {checked.shape}")
    return checked


def is_finite(row: NDArray[Any]) -> bool:
    """Whether every entry of a float32 row is finite, at the memory's speed unless squares overflow."""
    with np.errstate(over="ignore"):
        square = np.dot(row, row)
    return bool(np.isfinite(square) or np.isfinite(row_norm(row)))


def finite_rows(rows: Rows, norms: NDArray[np.float64] | None = None) -> tuple[Rows, list[int]]:
    """The rows whose entries are all finite, and their indices; the rows themselves if all are.

    `norms`, (n,), is what `row_norm` gives for each, where that is known.
    """
    finite = [is_finite(row) for row in rows] if norms is None else np.isfinite(norms)
    kept = np.flatnonzero(finite).tolist()
    if len(kept) == len(rows):
        return rows, kept
    return [rows[index] for index in kept], kept


def _as_array(row: ArrayLike, index: int) -> NDArray[Any]:
    try:
        return np.asarray(row)
    except ValueError:
        raise UsageError(f"row {index} must be a 1-D row of real numbers") from None


def _as_float32(values: NDArray[Any], what: str) -> NDArray[np.float32]:
    if values.dtype == np.float32 and values.dtype.isnative:
        return values
    if values.dtype.kind not in "fiu":
        raise UsageError(f"{what} must hold real numbers, got dtype {values.dtype}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
