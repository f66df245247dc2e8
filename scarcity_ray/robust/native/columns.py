"""The column kernel in Numba: sorts tiles of columns by a network of units, and averages a window of each.

`order_statistics_kernel` prepares its arguments. A unit reads eight rows of the tile, `LANES` columns each,
compares them in registers and writes them back. `sorting_networks.COMPARATORS` lists its comparisons; they
are written out here in layers of comparisons that share no row.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from scarcity_ray.robust.arrays.mixed_rows import GROUP, PATTERNS
from scarcity_ray.robust.arrays.sorting_networks import UnitKind
from scarcity_ray.robust.native.layout import MIXED_COLUMNS, PASS_GROUPS, TILE, UNIT_FIELDS
from scarcity_ray.robust.native.vectors import (
    LANES,
    entry,
    inlined,
    load,
    maximum,
    minimum,
    narrow,
    splat,
    store,
    where_less,
    wide,
)

SORT, MERGE, CLEAN_EIGHT, CLEAN_FOURS, CLEAN_TWOS = (int(kind) for kind in UnitKind)
ZERO, INFINITY = np.float64(0.0), np.float32(np.inf)
GROUP_ENTRIES = PATTERNS * MIXED_COLUMNS


@inlined
def twos(a, b, c, d, e, f, g, h):
    """Compares neighbours: 0-1, 2-3, 4-5, 6-7."""
    return (
        *(minimum(a, b), maximum(a, b), minimum(c, d), maximum(c, d)),
        *(minimum(e, f), maximum(e, f), minimum(g, h), maximum(g, h)),
    )


@inlined
def fours(a, b, c, d, e, f, g, h):
    """Compares at a distance of two: 0-2, 1-3, 4-6, 5-7."""
    return (
        *(minimum(a, c), minimum(b, d), maximum(a, c), maximum(b, d)),
        *(minimum(e, g), minimum(f, h), maximum(e, g), maximum(f, h)),
    )


@inlined
def eights(a, b, c, d, e, f, g, h):
    """Compares at a distance of four: 0-4, 1-5, 2-6, 3-7."""
    return (
        *(minimum(a, e), minimum(b, f), minimum(c, g), minimum(d, h)),
        *(maximum(a, e), maximum(b, f), maximum(c, g), maximum(d, h)),
    )


@inlined
def ends(a, b, c, d, e, f, g, h):
    """Compares from both ends: 0-7, 1-6, 2-5, 3-4."""
    return (
        *(minimum(a, h), minimum(b, g), minimum(c, f), minimum(d, e)),
        *(maximum(d, e), maximum(c, f), maximum(b, g), maximum(a, h)),
    )


@inlined
def middles(a, b, c, d, e, f, g, h):
    """Compares the inner two of each four: 1-2, 5-6."""
    return a, minimum(b, c), maximum(b, c), d, e, minimum(f, g), maximum(f, g), h


@inlined
def inner(a, b, c, d, e, f, g, h):
    """Ends the odd-even merge of two fours: 2-4, 3-5, then 1-2, 3-4, 5-6."""
    c, d, e, f = minimum(c, e), minimum(d, f), maximum(c, e), maximum(d, f)
    return a, minimum(b, c), maximum(b, c), minimum(d, e), maximum(d, e), minimum(f, g), maximum(f, g), h


@inlined
def compared(kind, x):
    """The eight vectors after the comparators of a unit of this kind."""
    if kind == SORT:
        return inner(*eights(*middles(*fours(*twos(*x)))))
    if kind == MERGE:
        return twos(*fours(*ends(*x)))
    if kind == CLEAN_EIGHT:
        return twos(*fours(*eights(*x)))
    if kind == CLEAN_FOURS:
        return twos(*fours(*x))
    return twos(*x)


@inlined
def run_unit(kind, tile, units, at, width):
    """Compares the rows that begin in the tile at the eight entries after units[at]."""
    a, b, c, d = units[at + 1], units[at + 2], units[at + 3], units[at + 4]
    e, f, g, h = units[at + 5], units[at + 6], units[at + 7], units[at + 8]
    for j in range(0, width, LANES):
        lower = (
            load(tile, a + j, LANES),
            load(tile, b + j, LANES),
            load(tile, c + j, LANES),
            load(tile, d + j, LANES),
        )
        upper = (
            load(tile, e + j, LANES),
            load(tile, f + j, LANES),
            load(tile, g + j, LANES),
            load(tile, h + j, LANES),
        )
        x = compared(kind, (*lower, *upper))
        store(tile, a + j, x[0])
        store(tile, b + j, x[1])
        store(tile, c + j, x[2])
        store(tile, d + j, x[3])
        store(tile, e + j, x[4])
        store(tile, f + j, x[5])
        store(tile, g + j, x[6])
        store(tile, h + j, x[7])


@inlined
def sort(tile, units, width):
    """Runs the network: all units in order."""
    for at in range(0, len(units), UNIT_FIELDS):
        kind = units[at]
        if kind == SORT:
            run_unit(SORT, tile, units, at, width)
        elif kind == MERGE:
            run_unit(MERGE, tile, units, at, width)
        elif kind == CLEAN_EIGHT:
            run_unit(CLEAN_EIGHT, tile, units, at, width)
        elif kind == CLEAN_FOURS:
            run_unit(CLEAN_FOURS, tile, units, at, width)
        else:
            run_unit(CLEAN_TWOS, tile, units, at, width)


@inlined
def average(tile, width, window, out, at):
    """Mean, least and largest of the window of each of the tile's columns, to `out` from column `at` on.

    The window is (start, stop, limit): the ranks start, ..., stop - 1, where limit is stop. If limit is more,
    it is the stop - start values of the ranks below limit that are closest to the median: of the ranks
    r, r + count, r + 2 count, ... the last one that is closer than the one before
    (`order_statistics.closest_to_median`).
    """
    start, stop, limit = window
    count = stop - start
    b = len(out) // 3
    divisor = splat(np.float64(count), LANES)
    lower_middle, upper_middle = TILE * ((limit - 1) // 2), TILE * (limit // 2)
    for j in range(0, width, LANES):
        twice_median = wide(load(tile, lower_middle + j, LANES)) + wide(load(tile, upper_middle + j, LANES))
        total, low, high = splat(ZERO, LANES), splat(INFINITY, LANES), splat(-INFINITY, LANES)
        for rank in range(start, stop):
            kept = load(tile, TILE * rank + j, LANES)
            for other in range(rank + count, limit, count):
                upper = load(tile, TILE * other + j, LANES)
                kept = where_less(wide(kept) + wide(upper), twice_median, upper, kept)
            total = total + wide(kept)
            low, high = minimum(kept, low), maximum(high, kept)
        store(out, at + j, narrow(total / divisor))
        store(out, b + at + j, low)
        store(out, 2 * b + at + j, high)


@entry
def sort_and_average(rows, stride, n, tile, units, start, stop, limit, out):
    """Sorts the columns of n rows, `stride` entries apart, and averages their windows; see `average`.

    `tile` holds n + 1 rows of `TILE` entries, the last of them infinite; `units` the encoded network; `out`
    three rows of b entries, b a multiple of `LANES`.
    """
    b = len(out) // 3
    for begin in range(0, b, TILE):
        width = min(TILE, b - begin)
        for i in range(n):
            for j in range(0, width, LANES):
                store(tile, TILE * i + j, load(rows, stride * i + begin + j, LANES))
        sort(tile, units, width)
        average(tile, width, (start, stop, limit), out, begin)


@inlined
def sum_groups(rows, stride, column, first, count, within):
    """All sums of the rows of each of `count` groups from the group `first` on, at `MIXED_COLUMNS` columns.

    Sum s is that of the rows k for bits k of s. It is the sum without its last row, plus that row.
    """
    for group in range(count):
        at = GROUP_ENTRIES * group
        store(within, at, splat(ZERO, MIXED_COLUMNS))
        for place in range(GROUP):
            row = stride * (GROUP * (first + group) + place) + column
            last = wide(load(rows, row, MIXED_COLUMNS))
            alone = 1 << place
            store(within, at + alone * MIXED_COLUMNS, last)
            for s in range(1, alone):
                earlier = load(within, at + s * MIXED_COLUMNS, MIXED_COLUMNS)
                store(within, at + (alone + s) * MIXED_COLUMNS, earlier + last)


@inlined
def mix(rows, stride, begin, width, n, offsets, within, sums, shares, tile):
    """Forms n mixed rows in the tile; see `mixed_rows.Means.sums`.

    offsets[i, g] is where in `within` the sum of group g that enters row i begins. `sums` keeps the sums so
    far of the rows, where there are more groups than `PASS_GROUPS`.
    """
    groups = offsets.shape[1]
    for column in range(0, width, MIXED_COLUMNS):
        for first in range(0, groups, PASS_GROUPS):
            count = min(PASS_GROUPS, groups - first)
            sum_groups(rows, stride, begin + column, first, count, within)
            for i in range(n):
                total = splat(ZERO, MIXED_COLUMNS)
                if first > 0:
                    total = load(sums, MIXED_COLUMNS * i, MIXED_COLUMNS)
                for group in range(first, first + count):
                    total = total + load(within, offsets[i, group], MIXED_COLUMNS)
                if first + count < groups:
                    store(sums, MIXED_COLUMNS * i, total)
                else:
                    store(tile, TILE * i + column, narrow(total * splat(shares[i], MIXED_COLUMNS)))


@entry
def mix_sort_and_average(
    rows, stride, n, tile, units, start, stop, limit, out, offsets, within, sums, shares
):
    """What `sort_and_average` does, of n mixed rows; see `mix`."""
    b = len(out) // 3
    for begin in range(0, b, TILE):
        width = min(TILE, b - begin)
        mix(rows, stride, begin, width, n, offsets, within, sums, shares, tile)
        sort(tile, units, width)
        average(tile, width, (start, stop, limit), out, begin)
