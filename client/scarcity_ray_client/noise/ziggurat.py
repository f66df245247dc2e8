"""Standard normal values from uniform words, many at a time: the ziggurat of Marsaglia and Tsang (2000).

The area under exp(-x^2/2) is covered by 1024 layers of one area: rectangles [0, x_i] from f(x_i) up to
f(x_(i+1)), and below them a strip that holds the tail beyond r = x_1. A word's low 10 bits choose the layer;
the word as a signed integer, times the layer's width, is x. Below x_(i+1) it is kept at once (99.6 % of the
words); in the wedge beside that, with the chance (f(x) - f(x_i)) / (f(x_(i+1)) - f(x_i)); beyond r a value of
the tail takes its place (Marsaglia 1964). The low bits that choose the layer move x by less than 2^-53 of its
width, so that the dependence that Doornik (2005) warns of lies below the lattice of the values.

Within a layer the values form a lattice of step 2^-53 of its width, below 2^-50. A cell of width h gains or
loses two values at most, so its chance is the Gaussian one to within a relative 2^-49 / h, and 1e-12 for how
the table, the wedges and the logarithms are rounded: below 4e-12 for h = 2^-11 (2^-49 is rounded up; with
widths below 4.28 it is 2^-49.9). The tail has 117 bits, so that there, too, values lie dense.

Guarantees:
    the_layers_make_up_the_density: Summed over all layers, to a relative 1e-12.
    the_table_is_exact: Every entry is the closest float.
    the_values_are_normal: Two-sided, ten million values in a thousand cells.
    wedges_are_kept_with_the_densitys_chance: Two-sided; and spread like the density over the layer.
    the_tail_is_the_tail: Two-sided.
    the_tail_has_no_holes: However small the leading bits.
"""

from __future__ import annotations

import decimal
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Words = Callable[[int], NDArray[np.uint64]]
"""Gives as many uniform 64-bit words as it is asked for, new ones at each call."""

LAYERS = 1024
_TAIL_FROM = decimal.Decimal("4.03884984610950452271442340533593120470099196")
_AREA = decimal.Decimal("0.00122632464635308807288537092773712706189270688")
"""r, and each layer's area, such that the last layer ends where the density does: found by bisection."""


@dataclass(frozen=True)
class Table:
    """The layers, from the lowest, whose strip goes on as the tail, to the highest.

    Attributes:
        width: (LAYERS,) x runs from -width to width.
        inner: (LAYERS,) |x| below this is kept at once.
        bottom, top: (LAYERS,) the density at `width` and at `inner`, over that at 0.
    """

    width: Float64
    inner: Float64
    bottom: Float64
    top: Float64


@functools.cache
def table() -> Table:
    """The layers of the ziggurat."""
    with decimal.localcontext() as context:
        context.prec = 34
        edges, heights = [_TAIL_FROM], [(-_TAIL_FROM * _TAIL_FROM / 2).exp()]
        for _ in range(LAYERS - 2):
            heights.append(heights[-1] + _AREA / edges[-1])
            edges.append((-2 * heights[-1].ln()).sqrt())
        base, zero, one = _AREA / heights[0], decimal.Decimal(0), decimal.Decimal(1)
        columns = [[base, *edges], [*edges, zero], [zero, *heights], [*heights, one]]
        return Table(*(np.array([float(value) for value in column]) for column in columns))


def draw_block(words: NDArray[np.int64], scale: Float64, inner: Float64, out: Float64) -> NDArray[np.int64]:
    """The first pass over a block: each word times its layer's `scale`, in `out`.

    Returns:
        The places of values that are not below their layer's `inner`.
    """
    layer = np.bitwise_and(words, LAYERS - 1)
    np.copyto(out, words)
    entries = np.take(scale, layer, mode="clip")
    out *= entries
    np.take(inner, layer, out=entries, mode="clip")
    return np.flatnonzero(np.greater_equal(np.abs(out), entries))


DrawBlock = Callable[[NDArray[np.int64], Float64, Float64, Float64], NDArray[np.int64]]


def normals(
    count: int, blocks: Iterable[NDArray[np.uint64]], more: Words, draw: DrawBlock = draw_block
) -> Float64:
    """Standard normal values, float64 (count,).

    Args:
        blocks: Uniform words, `count` in all; a block may be overwritten once the next one is taken.
        more: Where further words come from, for about one value in 230.
        draw: `draw_block` or what does the same.
    """
    layers = table()
    scale = layers.width * 2.0**-63
    values = np.empty(count)
    beyond, theirs, start = [], [], 0
    for block in blocks:
        words = block.view(np.int64)
        places = draw(words, scale, layers.inner, values[start : start + words.size])
        theirs.append(words[places] & (LAYERS - 1))
        beyond.append(places + start)
        start += words.size
    if beyond:
        _settle(values, np.concatenate(beyond), np.concatenate(theirs), more)
    return values


def _settle(values: Float64, places: NDArray[np.int64], layer: NDArray[np.int64], more: Words) -> None:
    """Keep, replace or draw again the values at `places`, which are not below their layer's `inner`."""
    layers = table()
    while places.size:
        x, in_tail = values[places], layer == 0
        values[places[in_tail]] = np.copysign(_tail(int(in_tail.sum()), more), x[in_tail])
        places, layer, x = places[~in_tail], layer[~in_tail], x[~in_tail]
        bottom = layers.bottom[layer]
        height = bottom + _uniform(more(places.size)) * (layers.top[layer] - bottom)
        places = places[height >= np.exp(-0.5 * x * x)]
        words = more(places.size).view(np.int64)
        layer = words & (LAYERS - 1)
        values[places] = words * (layers.width[layer] * 2.0**-63)
        again = np.abs(values[places]) >= layers.inner[layer]
        places, layer = places[again], layer[again]


def _tail(count: int, more: Words) -> Float64:
    """Normal values beyond r, positive (Marsaglia 1964)."""
    found = np.empty(count)
    places = np.arange(count)
    least = float(_TAIL_FROM)
    while places.size:
        excess = -np.log(_finely_uniform(places.size, more)) / least
        kept = -2.0 * np.log(_finely_uniform(places.size, more)) > excess * excess
        found[places[kept]] = least + excess[kept]
        places = places[~kept]
    return found


def _finely_uniform(count: int, more: Words) -> Float64:
    """Uniform in (0, 1), small values too with 53 significant bits."""
    leading = more(count)
    fine: Float64 = (leading + _uniform(more(count))) * 2.0**-64
    return fine


def _uniform(words: NDArray[np.uint64]) -> Float64:
    """The midpoints of 2^53 cells of (0, 1)."""
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
