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
def add_products(a, b, c, sums):
    """The sums of a's products with b and with c, with one more product each."""
    return fma(a, b, sums[0]), fma(a, c, sums[1])


@inlined
def chains(points, a, b, stride, start, stop, zero, lanes, ahead):
    """The products of four rows of points with two, from column `start` to `stop`, lane by lane.

    These eight sums and what they are made of fit the 16 registers of AVX2.
    """
    nothing = splat(zero, lanes), splat(zero, lanes)
    first, second, third, fourth = nothing, nothing, nothing, nothing
    for k in range(start, stop, lanes):
        fetch(ahead, k)
        left, right = load(points, b + k, lanes), load(points, b + stride + k, lanes)
        first = add_products(load(points, a + k, lanes), left, right, first)
        second = add_products(load(points, a + stride + k, lanes), left, right, second)
        third = add_products(load(points, a + 2 * stride + k, lanes), left, right, third)
        fourth = add_products(load(points, a + 3 * stride + k, lanes), left, right, fourth)
    return first, second, third, fourth


@inlined
def tile_products(points, a, b, stride, filled, zero, lanes, ahead):
    """The products of the four points from entry a on with those from b on: 16 float64, row by row."""
    total = splat(ZERO, SUMS)
    for start in range(0, filled, CHAIN_COLUMNS):
        stop = min(start + CHAIN_COLUMNS, filled)
        x = chains(points, a, b, stride, start, stop, zero, lanes, ahead)
        y = chains(points, a, b + 2 * stride, stride, start, stop, zero, lanes, ahead)
        total = total + lane_sums((*x[0], *y[0], *x[1], *y[1], *x[2], *y[2], *x[3], *y[3]))
    return total


@inlined
def add_tiles(addresses, points, stride, tiles, filled, zero, lanes, next_start, tile, out, width):
    """Adds the products within a chunk to `out`; with each tile, fetches the next chunk of a row.

    A tile is (a, b, to): its first row of points, the first of the others, and where in `out` its sums begin.
    `tile` is scratch memory for the 16 of them.
    """
    for t in range(len(tiles)):
        ahead = addresses[t if t < len(addresses) else 0] + 4 * next_start
        a, b, to = tiles[t, 0] * stride, tiles[t, 1] * stride, tiles[t, 2]
        store(tile, 0, tile_products(points, a, b, stride, filled, zero, lanes, ahead))
        for i in range(TILE_ROWS):
            earlier = load(out, to + width * i, TILE_ROWS)
            store(out, to + width * i, earlier + load(tile, TILE_ROWS * i, TILE_ROWS))


@entry
def gram32(addresses, b, centre, points, stride, tiles, tile, out, width):
    """Adds the products of the rows less the centre, formed in float32, to `out`, `width` entries a row.

    `points` is scratch memory for a chunk of the rows, `stride` entries apart.
    """
    for start in range(0, b, CHUNK):
        columns = min(CHUNK, b - start)
        whole = columns - columns % LANES
        for i in range(len(addresses)):
            row, middle, to = addresses[i] + 4 * start, centre + 4 * start, i * stride
            for k in range(0, whole, LANES):
                store(points, to + k, load_far(row, k, LANES) - load_far(middle, k, LANES))
            if whole < columns:
                x, c = (
                    load_far_until(row, whole, columns, LANES),
                    load_far_until(middle, whole, columns, LANES),
                )
                store(points, to + whole, x - c)
        filled = whole if whole == columns else whole + LANES
        add_tiles(
            *(
                addresses,
                points,
                stride,
                tiles,
                filled,
                np.float32(0.0),
                LANES,
                start + CHUNK,
                tile,
                out,
                width,
            )
        )


@entry
def gram64(addresses, b, centre, points, stride, tiles, tile, out, width):
    """What `gram32` does, in float64."""
    for start in range(0, b, CHUNK):
        columns = min(CHUNK, b - start)
        whole = columns - columns % DOUBLES
        for i in range(len(addresses)):
            row, middle, to = addresses[i] + 4 * start, centre + 4 * start, i * stride
            for k in range(0, whole, DOUBLES):
                store(points, to + k, wide(load_far(row, k, DOUBLES)) - wide(load_far(middle, k, DOUBLES)))
            if whole < columns:
                x = load_far_until(row, whole, columns, DOUBLES)
                c = load_far_until(middle, whole, columns, DOUBLES)
                store(points, to + whole, wide(x) - wide(c))
        filled = whole if whole == columns else whole + DOUBLES
        add_tiles(*(addresses, points, stride, tiles, filled, ZERO, DOUBLES, start + CHUNK, tile, out, width))


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
