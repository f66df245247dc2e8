"""The Gram kernel in Numba: inner products of rows less a centre, and squared distances of pairs.

`gram_kernel` prepares its arguments and says what is proved of the result.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from scarcity_ray.robust.native.layout import CHAIN_COLUMNS, CHUNK, PAIR_LANES, TILE_ROWS
from scarcity_ray.robust.native.vectors import (
    LANES,
    entry,
    fetch,
    fma,
    inlined,
    lane_sums,
    load,
    load_far,
    load_far_until,
    splat,
    store,
    wide,
)

ZERO = np.float64(0.0)
SUMS = TILE_ROWS * TILE_ROWS
DOUBLES = LANES // 2


@inlined
def four_rows(points, at, stride, lanes):
    """Vectors of four rows of points."""
    return (
        load(points, at, lanes),
        load(points, at + stride, lanes),
        load(points, at + 2 * stride, lanes),
        load(points, at + 3 * stride, lanes),
    )


@inlined
def add_products(a, b, sums):
    """The sums of one row's products with four others, with one more product each."""
    return fma(a, b[0], sums[0]), fma(a, b[1], sums[1]), fma(a, b[2], sums[2]), fma(a, b[3], sums[3])


@inlined
def tile_products(points, a, b, stride, filled, zero, lanes, ahead):
    """The 16 inner products of four rows of points with four, a float64 vector of 16."""
    total = splat(ZERO, SUMS)
    for start in range(0, filled, CHAIN_COLUMNS):
        nothing = splat(zero, lanes)
        row = nothing, nothing, nothing, nothing
        first, second, third, fourth = row, row, row, row
        for k in range(start, min(start + CHAIN_COLUMNS, filled), lanes):
            fetch(ahead, k)
            left, right = four_rows(points, a + k, stride, lanes), four_rows(points, b + k, stride, lanes)
            first = add_products(left[0], right, first)
            second = add_products(left[1], right, second)
            third = add_products(left[2], right, third)
            fourth = add_products(left[3], right, fourth)
        total = total + lane_sums((*first, *second, *third, *fourth))
    return total


@inlined
def add_tiles(addresses, points, stride, tiles, filled, zero, lanes, next_start, tile, out, width):
    """Adds the products of all tiles within a chunk to `out`; fetches the next chunk of a row with each."""
    for t in range(len(tiles)):
        ahead = addresses[t if t < len(addresses) else 0] + 4 * next_start
        store(tile, 0, tile_products(points, tiles[t, 0] * stride, tiles[t, 1] * stride, stride, filled, zero, lanes, ahead))
        for i in range(TILE_ROWS):
            to = tiles[t, 2] + width * i
            store(out, to, load(out, to, TILE_ROWS) + load(tile, TILE_ROWS * i, TILE_ROWS))


@entry
def gram32(addresses, b, centre, points, stride, tiles, tile, out, width):
    """Adds the products of the rows less the centre, formed in float32."""
    for start in range(0, b, CHUNK):
        columns = min(CHUNK, b - start)
        filled = (columns + LANES - 1) // LANES * LANES
        for i in range(len(addresses)):
            row, middle = addresses[i] + 4 * start, centre + 4 * start
            for k in range(0, filled, LANES):
                x, c = load_far_until(row, k, columns, LANES), load_far_until(middle, k, columns, LANES)
                store(points, i * stride + k, x - c)
        add_tiles(addresses, points, stride, tiles, filled, np.float32(0.0), LANES, start + CHUNK, tile, out, width)


@entry
def gram64(addresses, b, centre, points, stride, tiles, tile, out, width):
    """What `gram32` does, in float64."""
    for start in range(0, b, CHUNK):
        columns = min(CHUNK, b - start)
        filled = (columns + DOUBLES - 1) // DOUBLES * DOUBLES
        for i in range(len(addresses)):
            row, middle = addresses[i] + 4 * start, centre + 4 * start
            for k in range(0, filled, DOUBLES):
                x, c = load_far_until(row, k, columns, DOUBLES), load_far_until(middle, k, columns, DOUBLES)
                store(points, i * stride + k, wide(x) - wide(c))
        add_tiles(addresses, points, stride, tiles, filled, ZERO, DOUBLES, start + CHUNK, tile, out, width)


@entry
def squares_of_pairs(addresses, b, pairs, sums):
    """Adds the squared differences of pairs of rows to `PAIR_LANES` sums a pair."""
    for start in range(0, b, CHUNK):
        stop = min(start + CHUNK, b)
        whole = stop - stop % PAIR_LANES
        for p in range(len(pairs)):
            x, y = addresses[pairs[p, 0]], addresses[pairs[p, 1]]
            ahead = addresses[p if p < len(addresses) else 0] + 4 * CHUNK
            total = load(sums, PAIR_LANES * p, PAIR_LANES)
            for k in range(start, whole, PAIR_LANES):
                fetch(ahead, k)
                apart = wide(load_far(x, k, PAIR_LANES)) - wide(load_far(y, k, PAIR_LANES))
                total = fma(apart, apart, total)
            if whole < stop:
                last = load_far_until(x, whole, stop, PAIR_LANES), load_far_until(y, whole, stop, PAIR_LANES)
                apart = wide(last[0]) - wide(last[1])
                total = fma(apart, apart, total)
            store(sums, PAIR_LANES * p, total)
