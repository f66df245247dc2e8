"""The sum kernel in Numba: means and weighted sums of rows that lie apart, in float64.

`sum_kernel` prepares its arguments: the rows' addresses, a chunk of float64 totals, float32 results.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from scarcity_ray.robust.native.layout import ROWS_AHEAD, TOTALS
from scarcity_ray.robust.native.vectors import (
    LANES,
    entry,
    fetch,
    inlined,
    load,
    load_far,
    load_far_until,
    narrow,
    splat,
    store,
    store_until,
    wide,
)

ZERO = np.float64(0.0)


@inlined
def clear(totals, columns):
    """Sets the totals of a chunk to zero."""
    for k in range(0, columns, LANES):
        store(totals, k, splat(ZERO, LANES))


@inlined
def row_ahead(addresses, i, start, stop):
    """Where the row begins, at these columns, that is read `ROWS_AHEAD` rows later or with the next chunk."""
    later = i + ROWS_AHEAD
    n = len(addresses)
    return addresses[later] + 4 * start if later < n else addresses[later % n] + 4 * stop


@entry
def mean(addresses, totals, out):
    """The mean of the rows."""
    b = len(out)
    divisor = splat(np.float64(len(addresses)), LANES)
    for start in range(0, b, TOTALS):
        stop = min(start + TOTALS, b)
        columns = stop - start
        clear(totals, columns)
        for i in range(len(addresses)):
            row, ahead = addresses[i] + 4 * start, row_ahead(addresses, i, start, start + TOTALS)
            whole = columns - columns % LANES
            for k in range(0, whole, LANES):
                fetch(ahead, k)
                store(totals, k, load(totals, k, LANES) + wide(load_far(row, k, LANES)))
            if whole < columns:
                last = wide(load_far_until(row, whole, columns, LANES))
                store(totals, whole, load(totals, whole, LANES) + last)
        for k in range(0, columns, LANES):
            store_until(out, start + k, stop, narrow(load(totals, k, LANES) / divisor))


@entry
def weighted_sum(addresses, weights, totals, out):
    """The sum of the rows times their weights."""
    b = len(out)
    for start in range(0, b, TOTALS):
        stop = min(start + TOTALS, b)
        columns = stop - start
        clear(totals, columns)
        for i in range(len(addresses)):
            row, ahead = addresses[i] + 4 * start, row_ahead(addresses, i, start, start + TOTALS)
            weight = splat(weights[i], LANES)
            whole = columns - columns % LANES
            for k in range(0, whole, LANES):
                fetch(ahead, k)
                store(totals, k, load(totals, k, LANES) + wide(load_far(row, k, LANES)) * weight)
            if whole < columns:
                last = wide(load_far_until(row, whole, columns, LANES))
                store(totals, whole, load(totals, whole, LANES) + last * weight)
        for k in range(0, columns, LANES):
            store_until(out, start + k, stop, narrow(load(totals, k, LANES)))
