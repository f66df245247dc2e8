"""Fixed point: real vectors as elements of the ring of integers mod 2**32 or 2**64.

A real x becomes q = rint(scale * x), kept as q mod 2**ring_bits. Sums in the ring are exact integers as
long as the true sum lies in [-2**(bits-1), 2**(bits-1)); the plan proves that headroom before any session
begins (n parties, a bound on each, the weights). Rounding is to nearest, ties to even: it is deterministic,
and moves each coordinate by at most half a unit, 1/(2 scale), so the norm by at most sqrt(d)/(2 scale).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from scarcity_ray.errors import UsageError

RingArray = npt.NDArray[np.unsignedinteger[Any]]


def ring_dtype(ring_bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The unsigned type whose wrap-around is addition mod 2**ring_bits."""
    if ring_bits == 32:
        return np.dtype(np.uint32)
    if ring_bits == 64:
        return np.dtype(np.uint64)
    raise UsageError(f"ring_bits {ring_bits!r} is not accepted; 32 or 64")


def encode(vector: npt.ArrayLike, scale: float, ring_bits: int) -> RingArray:
    """Rounds ``scale * vector`` to the nearest integers and places them in the ring.

    Args:
        vector: Finite real numbers, shape (d,).
        scale: Units a real 1.0 is worth; finite and > 0. A power of two keeps the product exact.

    Returns:
        uint32 or uint64 (d,), negative numbers in two's complement.

    Raises:
        UsageError: if a value is not a finite real number, or does not fit into the ring's signed range.

    Guarantees:
        rounding_error_is_at_most_half_a_unit
        sum_of_encodings_decodes_to_the_signed_sum
    """
    dtype = ring_dtype(ring_bits)
    if not (np.isfinite(scale) and scale > 0):
        raise UsageError(f"scale {scale!r} is not accepted; a finite number > 0")
    values = np.asarray(vector)
    if values.dtype.kind not in "fiu":
        raise UsageError(f"{values.dtype} is no type of real numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.multiply(values, scale, dtype=np.float64)
    np.rint(scaled, out=scaled)
    half = 2.0 ** (ring_bits - 1)
    if scaled.size and not (scaled.min() >= -half and scaled.max() < half):
        raise UsageError(f"a value is not finite or does not fit into {ring_bits} bits at scale {scale!r}")
    encoded: RingArray = scaled.astype(np.int32 if ring_bits == 32 else np.int64).view(dtype)
    return encoded


def to_signed(ring_sum: RingArray) -> npt.NDArray[np.int64]:
    """The integers in [-2**(bits-1), 2**(bits-1)) that ring elements stand for, int64 (d,)."""
    if ring_sum.dtype == np.uint32:
        return ring_sum.view(np.int32).astype(np.int64)
    if ring_sum.dtype == np.uint64:
        return ring_sum.view(np.int64).copy()
    raise UsageError(f"{ring_sum.dtype} is no ring; uint32 or uint64")


def decode(ring_sum: RingArray, scale: float) -> npt.NDArray[np.float64]:
    """The real numbers that ring elements stand for: `to_signed` over ``scale``, float64 (d,)."""
    return to_signed(ring_sum) / scale
