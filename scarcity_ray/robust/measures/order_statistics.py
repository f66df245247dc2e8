"""Order statistics of the columns of a block, and the mean of a window of them.

A rule says which `Window` of each sorted column it averages. The compiled kernel
(`native.order_statistics_kernel`), where there is one, does all of it; else few rows go through a sorting
network, and more are transposed, so that each column is contiguous, sorted, and transposed back. The bits are
the same whichever way was taken: sorted values are equal, sums run in the order of the ranks, and no zero in
a mean has a sign.

Guarantees:
    Order statistics are those of each column, sorted.
    The values closest to the median are kept, a tie going to the lower values.
    Sums are formed in float64 and rounded once.
    The bits do not depend on how the columns were sorted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Vector, num_columns
from scarcity_ray.robust.arrays.mixed_rows import MixedRows, mixture_of
from scarcity_ray.robust.arrays.sorting_networks import apply_network, sorting_network
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.loader import checked_kernel, worth_a_kernel
from scarcity_ray.robust.native.order_statistics_kernel import OrderStatisticsKernel

NETWORK_ROWS = 32
"""Rows up to which a network is faster than sorting transposed columns."""

PADDING = 16
"""Extra float32 entries that keep a stride from being a power of two: transposing is 6 times slower then."""


class Window(NamedTuple):
    """The values of each sorted column that a rule averages.

    Attributes:
        start: First rank, from 0.
        stop: One past the last.
        around_median: Whether it is the stop - start values closest to the median instead.
    """

    start: int
    stop: int
    around_median: bool = False


class WindowSummary(NamedTuple):
    """The mean, the least and the largest of the values averaged in each column, (b,) float32 each."""

    mean: Vector
    least: Vector
    largest: Vector


def window_mean(rows: Sequence[NDArray[np.float32]], window: Window) -> Vector:
    """Mean of a window of each column, summed in float64 in rank order and rounded once; (b,) float32.

    Rows are without NaN and never written to; the window is not empty. Around the median, the sum runs over
    the ranks' residues modulo the count (`closest_to_median`).
    """
    kernel = _kernel_for(rows)
    if kernel is not None:
        mean: Vector = kernel(rows, window.start, window.stop, around_median=window.around_median)[0].copy()
        return mean
    return mean_of(window_values(rows, window))


def window_summary(rows: Sequence[NDArray[np.float32]], window: Window) -> WindowSummary:
    """What `window_mean` gives, with the least and the largest of the values; arguments as there."""
    kernel = _kernel_for(rows)
    if kernel is not None:
        summary = kernel(rows, window.start, window.stop, around_median=window.around_median)
        return WindowSummary(*summary.copy())
    values = window_values(rows, window)
    least, largest = values[0].copy(), values[-1].copy()
    if window.around_median:
        for value in values:
            np.minimum(least, value, out=least)
            np.maximum(largest, value, out=largest)
    return WindowSummary(mean_of(values), least, largest)


def window_values(rows: Sequence[NDArray[np.float32]], window: Window) -> list[NDArray[np.float32]]:
    """The values themselves, in scratch memory of this thread that is valid until the next call."""
    if window.around_median:
        return closest_to_median(order_statistics(rows, 0, len(rows)), window.stop - window.start)
    return order_statistics(rows, window.start, window.stop)


def _kernel_for(rows: Sequence[NDArray[np.float32]]) -> OrderStatisticsKernel | None:
    given = rows.rows if isinstance(rows, MixedRows) else rows
    return order_statistics_kernel() if worth_a_kernel(len(rows), num_columns(given)) else None


@functools.cache
def order_statistics_kernel() -> OrderStatisticsKernel | None:
    """The compiled kernel, unless it cannot be had here or does not give NumPy's bits."""
    return checked_kernel(OrderStatisticsKernel, _gives_numpys_bits, "columns are sorted by NumPy")


def _gives_numpys_bits(kernel: OrderStatisticsKernel) -> bool:
    entries = np.arange(5700)
    sample = np.sin(entries) * 2.0 ** (entries % 61 - 30)
    rows = list(sample.astype(np.float32).reshape(19, 300))
    entering = np.arange(14 * 19).reshape(14, 19) % 9 > 2
    mixed = MixedRows(rows, mixture_of(entering / entering.sum(axis=1, keepdims=True)))
    for given, window in product((rows, mixed), (Window(3, 11), Window(0, 7, around_median=True))):
        mean = kernel(given, window.start, window.stop, around_median=window.around_median)[0]
        if mean.tobytes() != mean_of(window_values(given, window)).tobytes():
            return False
    return True


def order_statistics(rows: Sequence[NDArray[np.float32]], start: int, stop: int) -> list[NDArray[np.float32]]:
    """The order statistics start, ..., stop - 1 of each column of rows without NaN.

    Returns:
        stop - start rows, ascending, in scratch memory of this thread that the caller may write to and that
        is valid until the next call.
    """
    if len(rows) == 1:
        scratch = workspace("columns", (1, len(rows[0])), np.float32)
        np.copyto(scratch[0], rows[0])
        return list(scratch[start:stop])
    if len(rows) <= NETWORK_ROWS:
        return apply_network(rows, sorting_network(len(rows), start, stop))[start:stop]
    return _sort_transposed(rows, start, stop)


def middle_of(ascending: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Median of each column whose values are in ascending order, (b,) float64."""
    total: NDArray[np.float64] = ascending[(len(ascending) - 1) // 2].astype(np.float64)
    total += ascending[len(ascending) // 2]
    total *= 0.5
    return total


def mean_of(rows: Sequence[NDArray[np.float32]]) -> Vector:
    """Mean of each column, summed in float64 in the order of the rows and rounded once, (b,) float32."""
    total = workspace("total", rows[0].shape, np.float64)
    np.add(rows[0], 0.0, out=total)
    for row in rows[1:]:
        np.add(total, row, out=total)
    np.divide(total, float(len(rows)), out=total)
    return total.astype(np.float32)


def closest_to_median(ascending: Sequence[NDArray[np.float32]], count: int) -> list[NDArray[np.float32]]:
    """The `count` values of each column that are closest to its median, in no order.

    They are a window of consecutive ranks, and a window of `count` ranks holds one rank of each residue
    modulo `count`. Of the ranks i and i + count it holds the upper one if and only if that is strictly closer
    to the median m, that is x_i + x_(i + count) < 2 m.

    The rows, whose columns ascend, are overwritten; `count` of them are returned.
    """
    twice_median = middle_of(ascending)
    twice_median *= 2.0
    both = workspace("both", twice_median.shape, np.float64)
    upper_is_closer = workspace("closer", twice_median.shape, np.bool_)
    window = list(ascending[:count])
    for rank in range(count, len(ascending)):
        kept = window[rank % count]
        np.copyto(both, kept)
        np.add(both, ascending[rank], out=both)
        np.less(both, twice_median, out=upper_is_closer)
        np.copyto(kept, ascending[rank], where=upper_is_closer)
    return window


def _sort_transposed(rows: Sequence[NDArray[np.float32]], start: int, stop: int) -> list[NDArray[np.float32]]:
    columns = _sorted_columns(rows)
    wanted = workspace("padded", (len(rows), len(columns) + PADDING), np.float32)[
        : stop - start, : len(columns)
    ]
    np.copyto(wanted, columns[:, start:stop].T)
    return list(wanted)


def _sorted_columns(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The columns as rows of a (b, m) array, each ascending."""
    num_rows, num_columns = len(rows), len(rows[0])
    padded = workspace("padded", (num_rows, num_columns + PADDING), np.float32)[:, :num_columns]
    for row, out in zip(rows, padded, strict=True):
        np.copyto(out, row)
    width = num_rows + (PADDING if num_rows % PADDING == 0 else 0)
    columns: NDArray[np.float32] = workspace("columns", (num_columns, width), np.float32)[:, :num_rows]
    np.copyto(columns, padded.T)
    columns.sort(axis=1)
    return columns
