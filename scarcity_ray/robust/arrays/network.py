"""Sorting networks over rows: each comparator is one `np.minimum` and one `np.maximum` of whole rows.

For few rows this runs at the processor's rate for the two, which no sort along the short axis reaches.

*Guarantees*
    - A network gives the order statistics it was made for, for every input.
    - Comparators that no wanted order statistic depends on are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.scratch import workspace


class Comparator(NamedTuple):
    """Puts the smaller of two wires on `low` and the larger on `high`, where somebody wants them."""

    low: int
    high: int
    keeps_low: bool
    keeps_high: bool


@functools.cache
def sorting_network(num_wires: int, start: int, stop: int) -> tuple[Comparator, ...]:
    """Batcher's odd-even merge sort (Batcher 1968) pruned to the order statistics start, ..., stop - 1.

    >>> len(sorting_network(16, 0, 16))
    63
    """
    wanted = set(range(start, stop))
    kept: list[Comparator] = []
    for low, high in reversed(_odd_even_merge_sort(num_wires)):
        if low in wanted or high in wanted:
            kept.append(Comparator(low, high, low in wanted, high in wanted))
            wanted |= {low, high}
    return tuple(reversed(kept))


def apply_network(
    rows: Sequence[NDArray[np.float32]], network: tuple[Comparator, ...]
) -> list[NDArray[np.float32]]:
    """The wires after the network; those it was not made for hold anything.

    Args:
        rows: Float32 rows of one length, never written to.
        network: What `sorting_network` gave for as many wires.

    Returns:
        One row a wire, in scratch memory that is valid until the next call in this thread.
    """
    free = list(workspace("network", (len(rows) + 1, len(rows[0])), np.float32))
    wires = list(rows)
    ours = [False] * len(rows)
    for low, high, keeps_low, keeps_high in network:
        first, second = wires[low], wires[high]
        if keeps_low and keeps_high:
            wires[low] = np.minimum(first, second, out=free.pop())
            wires[high] = np.maximum(first, second, out=second if ours[high] else free.pop())
            if ours[low]:
                free.append(first)
            ours[low] = ours[high] = True
            continue
        kept, dropped = (low, high) if keeps_low else (high, low)
        smaller_or_larger = np.minimum if keeps_low else np.maximum
        wires[kept] = smaller_or_larger(first, second, out=wires[kept] if ours[kept] else free.pop())
        if ours[dropped]:
            free.append(wires[dropped])
        ours[kept], ours[dropped] = True, False
    return wires


def _odd_even_merge_sort(num_wires: int) -> list[tuple[int, int]]:
    pairs = []
    size = 1
    while size < num_wires:
        step = size
        while step >= 1:
            for first in range(step % size, num_wires - step, 2 * step):
                for low in range(first, first + min(step, num_wires - step - first)):
                    if low // (2 * size) == (low + step) // (2 * size):
                        pairs.append((low, low + step))
            step //= 2
        size *= 2
    return pairs
