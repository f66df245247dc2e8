"""Column blocks: the unit in which all work on rows is done, in this thread or as tasks.

A block is what the n rows hold in a fixed range of columns. A kernel is a module-level function of one block
and small arguments. A driver (`MapBlocks`) applies a kernel to every block in order. Blocks never depend on
who computes them, so that a result is bitwise the same for any number of tasks and workers.

Guarantees:
    Blocks cover every column once.
    Blocks are the same for every grouping into tasks.
    Scaled rows are those that scaling first gives, bit by bit; only those asked for are formed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.threads import workspace

BLOCK_COLUMNS = 8192
"""Columns in a block: a hundred float64 rows of it fill 6.5 MB, and BLAS is at its best."""

Vector: TypeAlias = NDArray[np.float32]
Matrix: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[Any] | Sequence[NDArray[Any]]
"""n rows: an (n, b) float32 array, or a sequence of n float32 arrays of length b; never written to."""

T = TypeVar("T")


class MapBlocks(Protocol):
    """Applies a kernel to every column block.

    The kernel and its arguments are picklable, so that an implementation may ship them to tasks.
    """

    def __call__(self, kernel: Callable[..., T], /, *args: Any) -> Iterable[T]:
        """``kernel(block, *args)`` for each block of `column_blocks`, in that order."""


def column_blocks(num_columns: int) -> list[slice]:
    """The fixed blocks of a row of `num_columns` entries.

    >>> column_blocks(10000)
    [slice(0, 8192, None), slice(8192, 10000, None)]
    """
    return [
        slice(start, min(start + BLOCK_COLUMNS, num_columns))
        for start in range(0, num_columns, BLOCK_COLUMNS)
    ]


def inline_blocks(rows: Rows) -> MapBlocks:
    """A driver that runs every block in this thread, one after another."""
    blocks = column_blocks(num_columns(rows))
    sliced = sliced_rows(rows)

    def map_blocks(kernel: Callable[..., T], /, *args: Any) -> Iterable[T]:
        return (kernel(take_block(sliced, columns), *args) for columns in blocks)

    return map_blocks


def sliced_rows(rows: Rows) -> Rows:
    """The same rows, of which `take_block` looks up addresses once for all blocks."""
    return rows if isinstance(rows, np.ndarray | ScaledRows | RowSlices) else RowSlices(rows)


def take_block(rows: Rows, columns: slice) -> Rows:
    """The rows' entries in `columns`, as views."""
    if isinstance(rows, ScaledRows):
        return ScaledRows(take_block(rows.rows, columns), rows.factors)
    if isinstance(rows, RowSlices):
        return rows.columns(columns)
    if isinstance(rows, np.ndarray):
        return rows[:, columns]
    return [row[columns] for row in rows]


def joined(parts: Sequence[Vector]) -> Vector:
    """The blocks' parts of a result, one after another; of tensors there is one, which it is."""
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else parts[0]


def num_columns(rows: Rows) -> int:
    """The length d of the rows."""
    return len(rows.rows[0] if isinstance(rows, ScaledRows) else rows[0])


def row_addresses(rows: Rows) -> NDArray[np.intp] | None:
    """Where each row begins in memory, (n,); None if some row does not hold float32 entries side by side.

    Raises:
        UsageError: If the rows are not of one length.
    """
    if isinstance(rows, RowSlices):
        return rows.addresses
    if isinstance(rows, np.ndarray):
        if rows.dtype != np.float32 or rows.strides[1] != rows.itemsize or not rows.flags.aligned:
            return None
        return rows.ctypes.data + rows.strides[0] * np.arange(len(rows))
    rows = list(rows)
    if any(row.shape != rows[0].shape for row in rows):
        raise UsageError("rows must be of one length")
    if not all(row.dtype == np.float32 and row.flags.c_contiguous and row.flags.aligned for row in rows):
        return None
    return np.array([row.ctypes.data for row in rows])


def contiguous_rows(rows: Rows) -> tuple[Rows, NDArray[np.intp]]:
    """The rows, copied if some do not hold float32 entries side by side, and where each begins, (n,)."""
    addresses = row_addresses(rows)
    if addresses is None:
        rows = [np.require(row, np.float32, ["C", "ALIGNED"]) for row in rows]
        addresses = np.array([row.ctypes.data for row in rows])
    return rows, addresses


class RowSlices(Sequence[NDArray[Any]]):
    """A range of columns of rows that lie apart, whose addresses are looked up once for all ranges.

    The rows are of one length and type, and `stop` is one past the last column. Pickled, it is the list of
    its slices.
    """

    def __init__(self, rows: Sequence[NDArray[Any]], start: int = 0, stop: int | None = None) -> None:
        self._rows, self._start = rows, start
        self._stop = len(rows[0]) if stop is None else stop
        self._whole: RowSlices | None = None

    def columns(self, columns: slice) -> RowSlices:
        """The columns of these that `columns` says."""
        start, stop, _ = columns.indices(self._stop - self._start)
        part = RowSlices(self._rows, self._start + start, self._start + stop)
        part._whole = self._whole or self
        return part

    def chosen(self, indices: Sequence[int]) -> RowSlices:
        """The rows at `indices`, in this order."""
        some = RowSlices([self._rows[index] for index in indices], self._start, self._stop)
        addresses = (self._whole or self)._row_addresses
        if addresses is not None:
            some._row_addresses = addresses[list(indices)]
        return some

    @property
    def addresses(self) -> NDArray[np.intp] | None:
        """See `row_addresses`."""
        addresses = (self._whole or self)._row_addresses
        return None if addresses is None else addresses + self._start * self._rows[0].itemsize

    @functools.cached_property
    def _row_addresses(self) -> NDArray[np.intp] | None:
        return row_addresses(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index][self._start : self._stop]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (row[self._start : self._stop] for row in self._rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


class ScaledRows(Sequence[NDArray[Any]]):
    """Rows times factors, formed block by block on demand, without a scaled copy of all rows.

    The factors are (n,) float64; a row whose factor is 1 stands as it is. Another is formed once, in float64
    and rounded to float32, in scratch memory: of all blocks, one at a time is valid in a thread.
    """

    def __init__(self, rows: Rows, factors: NDArray[np.float64]) -> None:
        self.rows = rows
        self.factors = factors
        self._formed: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        row, factor = self.rows[index], float(self.factors[index])
        if factor == 1.0:
            return row
        if index not in self._formed:
            scaled = workspace("scaled", (len(self), len(row)), np.float32)[index]
            exact = workspace("exact", (len(row),), np.float64)
            np.multiply(row, factor, out=exact, dtype=np.float64)
            np.copyto(scaled, exact, casting="same_kind")
            self._formed[index] = scaled
        return self._formed[index]
