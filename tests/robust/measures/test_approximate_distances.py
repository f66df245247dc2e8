from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray.robust import (
    inline_blocks,
    pairwise,
)
from scarcity_ray.robust.measures.approximate_distances import (
    exact_rows,
    measure_approximately,
)

pytestmark = pytest.mark.usefixtures("products_by")

SHAPES = {
    "normal": lambda rng, n, d: rng.standard_normal((n, d)),
    "one sign": lambda rng, n, d: np.abs(rng.standard_normal((n, d))),
    "heavy tails": lambda rng, n, d: rng.standard_t(2, (n, d)),
    "sloping": lambda rng, n, d: np.linspace(0.01, 3, d) * rng.uniform(0.9, 1.1, (n, 1)),
    "raw weights": lambda rng, n, d: 30 * rng.standard_normal(d) + rng.standard_normal((n, d)),
    "small": lambda rng, n, d: 1e-5 * rng.standard_normal((n, d)),
    "large": lambda rng, n, d: 1e9 * rng.standard_normal((n, d)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_approximate_distances_are_within_the_bound_that_comes_with_them(shape):
    rng = np.random.default_rng(0)
    for n, d in ((7, 3), (20, 9000), (50, 20_000)):
        rows = SHAPES[shape](rng, n, d).astype(np.float32)
        approximate = measure_approximately(inline_blocks(rows))
        exact = pairwise(inline_blocks(rows))
        if approximate is None:
            continue
        assert (np.abs(approximate.squared - exact) <= approximate.error * exact).all()
        assert approximate.error < 2.0**-8
    assert shape == "sloping" or approximate is not None


def test_equal_rows_have_distance_zero_exactly():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 9000)).astype(np.float32)
    rows[[4, 9, 17]] = rows[3]
    rows[12] = rows[1]
    approximate = measure_approximately(inline_blocks(rows))
    assert {tuple(pair) for pair in np.argwhere(np.triu(approximate.squared == 0, 1)).tolist()} == {
        (1, 12), (3, 4), (3, 9), (3, 17), (4, 9), (4, 17), (9, 17),
    }  # fmt: skip
    assert approximate.squared[3, [0, 1, 2]].tobytes() == approximate.squared[17, [0, 1, 2]].tobytes()


def test_what_has_no_good_bound_is_not_given_at_all():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 9000)).astype(np.float32)
    for index, value in ((3, rows[4] * (1 + 1e-4)), (3, np.zeros(9000)), (3, 1e20 * rows[3])):
        hostile = rows.copy()
        hostile[index] = value
        assert measure_approximately(inline_blocks(hostile)) is None
    for scale in (1e-20, 1e20):
        assert measure_approximately(inline_blocks(rows * np.float32(scale))) is None


@pytest.mark.parametrize("indices", [[2, 5, 7], [2, 5, 7, 8, 11, 19]])
def test_exact_rows_are_those_of_the_float64_distances(indices):
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((20, 9000)).astype(np.float32)
    rows[7] = rows[2]
    map_blocks = inline_blocks(rows)
    indices = np.array(indices)
    exact = exact_rows(map_blocks, measure_approximately(map_blocks), indices)
    np.testing.assert_allclose(exact, pairwise(map_blocks)[indices], rtol=1e-12, atol=0)
    assert exact[0].tobytes() == exact[2].tobytes()


def test_rows_that_differ_by_less_than_float32_can_square_are_not_called_equal():
    rng = np.random.default_rng(0)
    rows = np.tile(np.append(rng.standard_normal(50), 0.0), (9, 1)).astype(np.float32)
    assert (measure_approximately(inline_blocks(rows)).squared == 0.0).all()
    rows[:, -1] = 1e-30 * np.arange(9)
    assert measure_approximately(inline_blocks(rows)) is None
    rows[:, -1] = 1e-20 * np.arange(9)
    assert measure_approximately(inline_blocks(rows)) is None
