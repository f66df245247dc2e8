from __future__ import annotations

import itertools

import numpy as np
import pytest

from scarcity_ray.robust.arrays.sorting_networks import (
    COMPARATORS,
    apply_network,
    bitonic_network,
    sorting_network,
)


def apply_units(rows, network):
    """What the network does to rows, by its definition; wires beyond the rows hold infinity."""
    wires = np.concatenate([rows, np.full((1, rows.shape[1]), np.inf)])
    for kind, numbers in network:
        for first, second in COMPARATORS[kind]:
            low, high = numbers[first], numbers[second]
            values = wires[low].copy(), wires[high].copy()
            wires[low], wires[high] = np.minimum(*values), np.maximum(*values)
        assert (wires[-1] == np.inf).all()
    return wires[:-1]


@pytest.mark.parametrize("m", range(1, 13))
def test_a_network_of_units_gives_the_order_statistics_it_was_made_for(m):
    """By the 0-1 principle, a network that sorts every row of zeros and ones sorts everything."""
    bits = np.array(list(itertools.product([0.0, 1.0], repeat=m))).T
    expected = np.sort(bits, axis=0)
    for start in range(m):
        for stop in range(start + 1, m + 1):
            wires = apply_units(bits, bitonic_network(m, start, stop))
            assert (wires[start:stop] == expected[start:stop]).all()


@pytest.mark.parametrize("m", [16, 17, 24, 31, 33, 47, 64, 100, 129, 257, 520])
def test_a_network_of_many_units_sorts_rows_of_bits_with_any_share_of_ones(m):
    rng = np.random.default_rng(m)
    ones = np.arange(0, m + 1, 1 + m // 128)
    steps = (np.arange(m)[:, np.newaxis] < ones).astype(float)
    bits = np.concatenate([steps, steps[::-1], rng.permuted(steps, axis=0)], axis=1)
    expected = np.sort(bits, axis=0)
    for start, stop in ((0, m), (m // 2, m // 2 + 1), (m // 5, m - m // 5)):
        wires = apply_units(bits, bitonic_network(m, start, stop))
        assert (wires[start:stop] == expected[start:stop]).all()


def test_units_that_no_wanted_order_statistic_depends_on_are_left_out():
    assert len(bitonic_network(100, 0, 100)) > len(bitonic_network(100, 49, 51)) > 0
    assert len(bitonic_network(20, 0, 20)) < len(bitonic_network(32, 0, 32))
    assert all(min(numbers) < 20 for _, numbers in bitonic_network(20, 0, 20))


@pytest.mark.parametrize("m", range(2, 13))
def test_a_network_gives_the_order_statistics_it_was_made_for(m):
    """By the 0-1 principle, a network that sorts every row of zeros and ones sorts everything."""
    bits = np.array(list(itertools.product([0, 1], repeat=m)), np.float32).T.copy()
    expected = np.sort(bits, axis=0)
    for start in range(m):
        for stop in range(start + 1, m + 1):
            wires = apply_network(list(bits), sorting_network(m, start, stop))
            assert (np.array(wires[start:stop]) == expected[start:stop]).all()


def test_comparators_that_no_wanted_order_statistic_depends_on_are_left_out():
    assert len(sorting_network(8, 0, 8)) == 19
    assert len(sorting_network(8, 3, 5)) < 19
    assert [len(sorting_network(2**k, 0, 2**k)) for k in range(1, 7)] == [1, 5, 19, 63, 191, 543]
    outputs = sum(c.keeps_low + c.keeps_high for c in sorting_network(32, 16, 17))
    assert outputs < 2 * 191 - 30
