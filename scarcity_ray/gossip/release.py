"""The one vector that a client releases in a federation round."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

GRID_BITS = 17
"""Grid steps to a standard deviation of the noise: at least 2^GRID_BITS, less than twice that."""


def noised(clipped: NDArray[np.float32], noise: NDArray[np.float64], sigma: float) -> NDArray[np.float32]:
    """The clipped state with noise of standard deviation sigma, on a grid that the state has no part in.

    The low-order bits of a float sum betray its terms (Mironov 2012). Rounding to multiples of a power of two
    that follows from sigma alone is post-processing of the Gaussian mechanism, and so is the rounding to
    float32 after it: mu stands exactly, and the bits below the grid say nothing.

    Guarantees:
        - A released vector lies on the grid.
        - Without noise the state is released as it is.

    Args:
        clipped: float32 (d,).
        noise: Standard normal, float64 (d,).
        sigma: Standard deviation, >= 0.

    Returns:
        Read-only float32 (d,).
    """
    if sigma == 0.0:
        vector = clipped.copy()
    else:
        step = 2.0 ** (math.frexp(sigma)[1] - 1 - GRID_BITS)
        values = np.multiply(noise, sigma)
        values += clipped
        values /= step
        np.rint(values, out=values)
        values *= step
        vector = values.astype(np.float32)
    vector.setflags(write=False)
    return vector


__all__ = ["noised"]
