from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import (
    column_blocks,
    gram_block,
    inline_blocks,
    pairwise,
    row_norms,
    squared_distances,
    take_block,
)
from scarcity_ray.robust.measures.distances import ordered_sum

pytestmark = pytest.mark.usefixtures("products_by")


def brute_force(rows):
    wide = np.asarray(rows, np.float64)
    return np.array([np.square(wide - row).sum(axis=1) for row in wide])


def hostile(kind, rng, n=12, d=300):
    rows = rng.standard_normal((n, d))
    if kind == "raw weights":
        rows = 1000 * rng.standard_normal(d) + 1e-2 * rows
    elif kind == "far row":
        rows[3] *= 1e25
    elif kind == "far colluders":
        rows[3:6] = 1e20 * rows[3] + 1e15 * rows[3:6]
    elif kind == "median norm colluder":
        rows = 1000 + 1e-3 * rows
        rows[5] = -1000
    elif kind == "two clusters of raw weights":
        rows = 1e-3 * rows
        rows[:7] += 1000
        rows[7:] -= 1000
    elif kind == "equal rows":
        rows[:] = rows[0] + 1e5
    elif kind == "tiny":
        rows *= 1e-30
    elif kind == "one step apart":
        rows = np.full((n, d), 1e6)
        rows[np.arange(n), np.arange(n) % d] = np.nextafter(np.float32(1e6), np.float32(2e6))
    return rows.astype(np.float32)


KINDS = [
    "deltas",
    "raw weights",
    "far row",
    "far colluders",
    "median norm colluder",
    "two clusters of raw weights",
    "equal rows",
    "tiny",
    "one step apart",
]


@pytest.mark.parametrize("kind", KINDS)
def test_distances_equal_the_float64_definition(kind):
    for seed in range(5):
        rows = hostile(kind, np.random.default_rng(seed))
        expected = brute_force(rows)
        for norms in (None, row_norms(rows)):
            np.testing.assert_allclose(pairwise(inline_blocks(rows), norms), expected, rtol=1e-9, atol=0)


@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS))
def test_equal_rows_have_distance_zero_and_equal_distances_to_all_others(seed, kind):
    rng = np.random.default_rng(seed)
    rows = hostile(kind, rng, d=int(rng.integers(1, 50)))
    first, second = rng.choice(len(rows), 2, replace=False)
    rows[first] = rows[second]
    distances = pairwise(inline_blocks(rows))
    assert distances[first, second] == 0
    others = np.delete(np.arange(len(rows)), [first, second])
    assert distances[first, others].tobytes() == distances[second, others].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_symmetric_with_a_zero_diagonal(kind):
    distances = pairwise(inline_blocks(hostile(kind, np.random.default_rng(1))))
    assert distances.dtype == np.float64
    assert (distances == distances.T).all()
    assert (np.diagonal(distances) == 0).all()
    assert (distances >= 0).all()


def in_tasks(rows, group_size):
    """A driver that computes groups of blocks apart, the last group first, from its own copy of the rows."""
    blocks = column_blocks(len(rows[0]))
    groups = [blocks[start : start + group_size] for start in range(0, len(blocks), group_size)]

    def map_blocks(kernel, *args):
        done = {}
        for index in reversed(range(len(groups))):
            own = [np.array(row) for row in rows]
            done[index] = [kernel(take_block(own, block), *args) for block in groups[index]]
        return [part for index in range(len(groups)) for part in done[index]]

    return map_blocks


@pytest.mark.parametrize("kind", ["deltas", "raw weights", "far colluders"])
def test_distances_are_bitwise_the_same_for_any_grouping_of_blocks(kind):
    rows = hostile(kind, np.random.default_rng(2), d=40_000)
    expected = pairwise(inline_blocks(rows)).tobytes()
    for group_size in (1, 2, 3, 5):
        assert pairwise(in_tasks(rows, group_size)).tobytes() == expected


def test_gram_blocks_add_up_to_the_squared_distances():
    rows = hostile("deltas", np.random.default_rng(3), d=20_000)
    gram = ordered_sum(gram_block(rows[:, block]) for block in column_blocks(20_000))
    np.testing.assert_allclose(squared_distances(gram), brute_force(rows), rtol=1e-9)
    centred = ordered_sum(gram_block(rows[:, block], 4) for block in column_blocks(20_000))
    np.testing.assert_allclose(squared_distances(centred), brute_force(rows), rtol=1e-9)


def test_one_row_and_two_rows_have_distances():
    assert pairwise(inline_blocks(np.ones((1, 3), np.float32))).tolist() == [[0.0]]
    assert pairwise(inline_blocks(np.float32([[0, 0], [3, 4]]))).tolist() == [[0.0, 25.0], [25.0, 0.0]]
