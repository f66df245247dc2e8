"""Gossip's passes over a long vector: its noise is drawn and added, and what was pushed is remembered.

NumPy goes over the vector some six times for each, and converts to float64 and back. The compiled code
(`robust.native.noise`, the extra ``fast``) goes over it once, in a fifth of the time. A process loads it once
NumPy has worked for as long as loading takes.

Guarantees:
    the_compiled_passes_have_numpys_bits
"""

from __future__ import annotations

import functools
import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import column_blocks
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.loader import checked_kernel, compiled
from scarcity_ray_client.noise import ziggurat

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]

GRID_BITS = 17
"""Grid steps to a standard deviation of the noise: at least 2^GRID_BITS, less than twice that."""
SEGMENT = 256
"""Entries of a remembered vector that share a scale."""
TOP = 15
"""The greatest entry of a segment lies just below 2^TOP times its scale: there int16 ends."""
LEAST = -125
"""Exponent of the least scale: it and its inverse are float32."""

MANY_ENTRIES = 50_000_000
"""NumPy needs about half a second for them, as loading does."""


def draw_block(words: NDArray[np.int64], scale: Float64, inner: Float64, out: Float64) -> NDArray[np.int64]:
    """See `ziggurat.draw_block`."""
    kernel = _kernel(words, scale, inner, out)
    if kernel is None:
        return ziggurat.draw_block(words, scale, inner, out)
    return kernel.draw(words, scale, inner, out)


def add_noise(state: Float32, noise: Float64, sigma: float) -> Float32:
    """State + sigma noise, each (d,), rounded to a grid of sigma 2^-GRID_BITS or less; sigma is above 0."""
    step = 2.0 ** (math.frexp(sigma)[1] - 1 - GRID_BITS)
    # Exact, as the step is a power of two.
    factors = np.array([sigma / step, 1.0 / step, step])
    out = np.empty(len(state), np.float32)
    kernel = _kernel(state, noise)
    (numpys_sum if kernel is None else kernel.add)(noise, state, factors, out)
    return out


def cut_to_halves(vector: Float32, words: NDArray[np.int16], scales: Float32) -> None:
    """Write a vector (d,) to words (k, w) and their scales (k, 1), as `HalfVector` has them."""
    kernel = _kernel(vector, words, scales)
    (numpys_halves if kernel is None else kernel.halve)(vector, words, scales)


def numpys_sum(noise: Float64, state: Float32, factors: Float64, out: Float32) -> None:
    """`add_noise` in NumPy."""
    for columns in column_blocks(len(state)):
        values = workspace("noised", (columns.stop - columns.start,), np.float64)
        exact = workspace("exact state", values.shape, np.float64)
        np.multiply(noise[columns], factors[0], out=values)
        np.copyto(exact, state[columns])
        np.multiply(exact, factors[1], out=exact)
        np.add(values, exact, out=values)
        np.rint(values, out=values)
        np.multiply(values, factors[2], out=values)
        np.copyto(out[columns], values, casting="same_kind")


def numpys_halves(vector: Float32, words: NDArray[np.int16], scales: Float32) -> None:
    """`cut_to_halves` in NumPy."""
    width = words.shape[1]
    for columns in column_blocks(len(vector)):
        segments = slice(columns.start // width, -(-columns.stop // width))
        block = workspace("halved", (segments.stop - segments.start, width), np.float32)
        flat = block.reshape(-1)
        flat[: columns.stop - columns.start] = vector[columns]
        flat[columns.stop - columns.start :] = 0.0
        top = np.maximum(block.max(axis=1, keepdims=True), -block.min(axis=1, keepdims=True))
        exponents = np.maximum(np.frexp(top)[1] - TOP, LEAST)
        scales[segments] = np.ldexp(np.float32(1.0), exponents)
        np.multiply(block, np.ldexp(np.float32(1.0), -exponents), out=block)
        np.copyto(words[segments], block, casting="unsafe")


class Passes:
    """The passes' machine code for this processor; raises what `compiled` does."""

    def __init__(self) -> None:
        self._code = compiled("noise", {"draw": "ndddnn", "noised": "dfdf", "halve": "fiiihf"})

    def draw(
        self, words: NDArray[np.int64], scale: Float64, inner: Float64, out: Float64
    ) -> NDArray[np.int64]:
        """See `ziggurat.draw_block`."""
        places, found = workspace("beyond", words.shape, np.int64), workspace("found", (1,), np.int64)
        self._code["draw"](words, scale, inner, out, places, found)
        return places[: int(found[0])].copy()

    def add(self, noise: Float64, state: Float32, factors: Float64, out: Float32) -> None:
        """See `numpys_sum`."""
        self._code["noised"](noise, state, factors, out)

    def halve(self, vector: Float32, words: NDArray[np.int16], scales: Float32) -> None:
        """See `numpys_halves`."""
        self._code["halve"](vector, words.shape[1], TOP, LEAST, words.reshape(-1), scales.reshape(-1))


@functools.cache
def compiled_passes() -> Passes | None:
    """The compiled passes, unless they cannot be had here or do not give NumPy's bits."""
    return checked_kernel(Passes, _gives_numpys_bits, "gossip's noise is drawn and added by NumPy")


def _gives_numpys_bits(passes: Passes) -> bool:
    entries = np.arange(2 * SEGMENT + 3)
    words = entries * np.int64(0x1E3779B97F4A7C15)
    vector = (np.sin(entries) * 2.0 ** (entries % 61 - 30)).astype(np.float32)
    layers = ziggurat.table()
    told: list[tuple[bytes, ...]] = []
    for draw, add, halve in (
        (ziggurat.draw_block, numpys_sum, numpys_halves),
        (passes.draw, passes.add, passes.halve),
    ):
        noise, out = np.empty(len(entries)), np.empty(len(entries), np.float32)
        halves, scales = np.empty((3, SEGMENT), np.int16), np.empty((3, 1), np.float32)
        places = draw(words, layers.width * 2.0**-63, layers.inner, noise)
        add(noise, vector, np.array([1e5, 2.0**17, 2.0**-17]), out)
        halve(vector, halves, scales)
        told.append(tuple(array.tobytes() for array in (noise, places, out, halves, scales)))
    return told[0] == told[1]


class _Worked:
    """How many entries this process has worked on."""

    entries = 0


def _kernel(*arrays: NDArray[Any]) -> Passes | None:
    """The compiled passes if they are worth it by now, and can take these arrays."""
    _Worked.entries += arrays[0].size
    if _Worked.entries < MANY_ENTRIES or not all(a.flags.carray for a in arrays):
        return None
    return compiled_passes()
