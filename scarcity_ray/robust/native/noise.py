"""The passes of gossip over a vector in Numba: drawing noise, adding it, and remembering what was pushed.

`noise_kernel` prepares their arguments, and says of which NumPy code each one has the bits.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from scarcity_ray.robust.native.vectors import entry


@entry
def draw(words, scale, inner, out, places, found):
    """A ziggurat's first pass: words times their layer's scale, and where these are not below its `inner`."""
    count = 0
    for i in range(len(words)):
        layer = words[i] & (len(scale) - 1)
        value = np.float64(words[i]) * scale[layer]
        out[i] = value
        places[count] = i
        count += abs(value) >= inner[layer]
    found[0] = count


@entry
def noised(noise, state, factors, out):
    """(noise times factors[0], plus the state times factors[1]), rounded to integers, times factors[2]."""
    for i in range(len(state)):
        total = noise[i] * factors[0] + np.float64(state[i]) * factors[1]
        out[i] = np.float32(np.rint(total) * factors[2])


@entry
def halve(vector, width, top, least, words, scales):
    """Segments of so many entries as int16 times a power of two, which puts the greatest below 2^top."""
    bits, powers = vector.view(np.int32), scales.view(np.int32)
    for segment in range(len(scales)):
        start, stop = segment * width, min((segment + 1) * width, len(vector))
        greatest = np.int32(0)
        for i in range(start, stop):
            greatest = max(greatest, bits[i] & np.int32(0x7FFFFFFF))
        exponent = max((greatest >> 23) - 126 - top, least) if greatest else -top
        powers[segment] = (127 + exponent) << 23
        inverse = np.array([(127 - exponent) << 23], np.int32).view(np.float32)[0]
        for i in range(start, stop):
            words[i] = np.int16(vector[i] * inverse)
        for i in range(stop, start + width):
            words[i] = 0
