"""Sorting networks: the same comparisons for every column, so that rows are sorted whole.

`sorting_network` is Batcher's odd-even merge sort (Batcher 1968) for NumPy: each comparator is one
`np.minimum` and one `np.maximum` of whole rows, at the processor's rate for the two, which no sort along a
short axis reaches.

`bitonic_network` is Batcher's bitonic sort for the compiled kernel. A comparator loads and stores as often as
it compares; a *unit* loads eight wires into registers, compares them up to nineteen times and stores them, so
that the arithmetic is the limit. All comparators are ascending: groups of eight are sorted, then neighbours
are merged. A merge compares wire i of the lower half with wire i from the end of the upper half, and cleans
both halves by halving; three such layers fall apart into units whose wires no other unit touches. Wires from
the number of rows on hold plus infinity and are all the same one.

Guarantees:
    A network gives the order statistics it was made for, for every input.
    A network of units gives the order statistics it was made for, for every input.
    Comparators that no wanted order statistic depends on are left out.
    Units that no wanted order statistic depends on are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.threads import workspace


class Comparator(NamedTuple):
    """Puts the smaller of two wires on `low` and the larger on `high`, each only if it is kept."""

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
    """The wires after the network, in scratch memory that is valid until the next call in this thread.

    Rows are never written to. Wires that the network was not made for hold anything.
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


WIRES = 8
"""Wires of a unit: with their copies they fill the sixteen vector registers of AVX2."""


class UnitKind(IntEnum):
    """What a unit does to its wires, which are in ascending order of where their values belong."""

    SORT = 0
    MERGE = 1
    CLEAN_EIGHT = 2
    CLEAN_FOURS = 3
    CLEAN_TWOS = 4


_ENDS = ((0, 7), (1, 6), (2, 5), (3, 4))
_EIGHT = ((0, 4), (1, 5), (2, 6), (3, 7))
_FOURS = ((0, 2), (1, 3), (4, 6), (5, 7))
_TWOS = ((0, 1), (2, 3), (4, 5), (6, 7))
_MIDDLES = ((1, 2), (5, 6))
_ODD_EVEN_MERGE = (*_EIGHT, (2, 4), (3, 5), (1, 2), (3, 4), (5, 6))

COMPARATORS: dict[UnitKind, tuple[tuple[int, int], ...]] = {
    UnitKind.SORT: (*_TWOS, *_FOURS, *_MIDDLES, *_ODD_EVEN_MERGE),
    UnitKind.MERGE: (*_ENDS, *_FOURS, *_TWOS),
    UnitKind.CLEAN_EIGHT: (*_EIGHT, *_FOURS, *_TWOS),
    UnitKind.CLEAN_FOURS: (*_FOURS, *_TWOS),
    UnitKind.CLEAN_TWOS: _TWOS,
}
"""The comparators of each kind in order, as pairs of a unit's wires; the smaller value goes to the first."""

_CLEANING = {1: UnitKind.CLEAN_TWOS, 2: UnitKind.CLEAN_FOURS, 3: UnitKind.CLEAN_EIGHT}


class Unit(NamedTuple):
    """A kind, and the eight wires that it works on."""

    kind: UnitKind
    wires: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def bitonic_network(num_wires: int, start: int, stop: int) -> tuple[Unit, ...]:
    """A network of units that puts the order statistics start, ..., stop - 1 on the wires of these numbers.

    In a unit, the wire `num_wires` is the one that holds infinity.

    >>> [len(bitonic_network(n, 0, n)) for n in (8, 16, 64)]
    [1, 6, 56]
    """
    units = [Unit(UnitKind.SORT, tuple(range(first, first + WIRES))) for first in range(0, num_wires, WIRES)]
    size = 2 * WIRES
    while size < 2 * num_wires:
        for base in range(0, num_wires - size // 2, size):
            units += _merge(base, size, num_wires)
        size *= 2
    wanted = set(range(start, stop))
    kept: list[Unit] = []
    for kind, wires in reversed(units):
        real = {wire for wire in wires if wire < num_wires}
        if real & wanted:
            wanted |= real
            kept.append(Unit(kind, tuple(min(wire, num_wires) for wire in wires)))
    return tuple(reversed(kept))


def _merge(base: int, size: int, num_wires: int) -> list[Unit]:
    """Merges the two sorted halves of the wires base, ..., base + size - 1."""
    reach = size // WIRES
    units = []
    for offset in range(reach):
        lower = [base + offset + step * reach for step in range(4)]
        upper = [base + reach - 1 - offset + step * reach for step in range(4, 8)]
        if upper[0] < num_wires:
            units.append(Unit(UnitKind.MERGE, (*lower, *upper)))
    while reach > 1:
        layers = 2 if reach == 16 else min(3, reach.bit_length() - 1)
        gap = reach >> layers
        groups = [
            range(first + offset, first + reach, gap)
            for first in range(base, min(base + size, num_wires), reach)
            for offset in range(gap)
            if first + offset + gap < num_wires
        ]
        each = WIRES >> layers
        for index in range(0, len(groups), each):
            wires = [wire for group in groups[index : index + each] for wire in group]
            wires += [num_wires] * (WIRES - len(wires))
            units.append(Unit(_CLEANING[layers], tuple(wires)))
        reach = gap
    return units
