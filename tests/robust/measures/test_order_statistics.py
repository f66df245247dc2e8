from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust.measures.order_statistics import (
    NETWORK_ROWS,
    Window,
    closest_to_median,
    mean_of,
    middle_of,
    order_statistics,
    window_mean,
    window_summary,
)


@pytest.mark.parametrize("m", [1, 2, 3, 20, NETWORK_ROWS, NETWORK_ROWS + 1, 48, 64, 100])
def test_order_statistics_are_those_of_each_column_sorted(m):
    rng = np.random.default_rng(m)
    for b in (1, 7, 300):
        rows = rng.integers(-20, 20, (m, b)).astype(np.float32)
        rows.flags.writeable = False
        expected = np.sort(rows, axis=0)
        for start, stop in {(0, m), (m // 2, m // 2 + 1), (m // 3, m)}:
            assert (np.array(order_statistics(list(rows), start, stop)) == expected[start:stop]).all()


def test_the_bits_do_not_depend_on_how_the_columns_were_sorted(monkeypatch):
    """By a network or transposed; how the compiled kernel sorts them, `test_order_statistics_kernel` asks."""
    rows = list(np.random.default_rng(0).standard_normal((21, 500)).astype(np.float32))
    by_network = np.array(order_statistics(rows, 4, 17)).tobytes()
    monkeypatch.setattr("scarcity_ray.robust.measures.order_statistics.NETWORK_ROWS", 1)
    assert np.array(order_statistics(rows, 4, 17)).tobytes() == by_network


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.data())
def test_the_values_closest_to_the_median_are_kept_a_tie_going_to_the_lower_values(seed, m, data):
    count = data.draw(st.integers(1, m))
    rng = np.random.default_rng(seed)
    rows = rng.integers(-4, 5, (m, 12)) * rng.choice([1.0, 0.1])
    rows[:, ::3] += 1e4 + 1e-3 * rng.standard_normal((m, 4))
    rows[rng.integers(m), ::2] = 1e8
    rows = rows.astype(np.float32)
    expected = []
    for column in rows.T.tolist():
        exact = sorted(map(Fraction, column))
        middle = (exact[(m - 1) // 2] + exact[m // 2]) / 2
        nearest = sorted(exact, key=lambda value, middle=middle: abs(value - middle))[:count]
        expected.append(float(sum(nearest) / count))
    result = mean_of(closest_to_median(order_statistics(list(rows), 0, m), count))
    np.testing.assert_allclose(result, expected, rtol=2.0**-23, atol=1e-14 * np.abs(rows).max())


@given(st.integers(0, 2**32 - 1), st.integers(1, 70))
def test_sums_are_formed_in_float64_and_rounded_once(seed, m):
    rows = (1e6 + np.random.default_rng(seed).standard_normal((m, 20))).astype(np.float32)
    wide = rows.astype(np.float64)
    np.testing.assert_array_equal(mean_of(list(rows)), (wide.sum(axis=0) / m).astype(np.float32))
    for start, stop in ((0, m), (m // 3, m // 2 + 1)):
        middle = np.sort(wide, axis=0)[start:stop].mean(axis=0)
        result = window_mean(list(rows), Window(start, stop))
        np.testing.assert_array_equal(result, middle.astype(np.float32))
    middle = order_statistics(list(rows), (m - 1) // 2, m // 2 + 1)
    np.testing.assert_array_equal(middle_of(middle), np.median(wide, axis=0))


@pytest.mark.parametrize("m", [1, 5, 40])
def test_a_summary_holds_the_mean_and_the_ends_of_what_was_averaged(m):
    rows = list(np.random.default_rng(m).standard_normal((m, 70)).astype(np.float32))
    for window in (Window(0, m), Window(m // 3, m // 3 + 1), Window(0, m // 2 + 1, around_median=True)):
        summary = window_summary(rows, window)
        values = order_statistics(rows, window.start, window.stop)
        if window.around_median:
            values = closest_to_median(order_statistics(rows, 0, m), window.stop)
        np.testing.assert_array_equal(summary.mean, window_mean(rows, window))
        np.testing.assert_array_equal(summary.least, np.min(values, axis=0))
        np.testing.assert_array_equal(summary.largest, np.max(values, axis=0))
