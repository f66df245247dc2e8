"""The compiled kernel against NumPy; without Numba (the extra ``fast``) these tests are skipped."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import ScaledRows, aggregate
from scarcity_ray.robust.arrays.mixed_rows import Combinations, MixedRows, mixture_of
from scarcity_ray.robust.measures import order_statistics
from scarcity_ray.robust.measures.order_statistics import Window, mean_of, window_values
from scarcity_ray.robust.native.layout import PASS_GROUPS
from scarcity_ray.robust.native.order_statistics_kernel import OrderStatisticsKernel

pytest.importorskip("numba", reason="the extra fast is not installed")


@pytest.fixture(scope="module")
def kernel():
    return OrderStatisticsKernel()


def hostile_rows(seed, m, b):
    """Rows of ties, zeros of both signs, subnormal and huge values, and columns around a large mean."""
    rng = np.random.default_rng(seed)
    scales = np.array([0.0, -0.0, 1e-44, 1.0, 0.1, 1e30, 1.5e37], np.float32)
    rows = rng.integers(-20, 21, (m, b)).astype(np.float32) * rng.choice(scales, (m, 1))
    rows[:, ::3] = 1e4 + rng.standard_normal((m, len(range(0, b, 3)))).astype(np.float32)
    rows[:, ::5] = rng.choice(np.array([0.0, -0.0], np.float32), (m, len(range(0, b, 5))))
    return rows


def assert_same(kernel, rows, window):
    values = window_values(rows, window)
    expected = mean_of(values).tobytes(), np.min(values, axis=0), np.max(values, axis=0)
    mean, least, largest = kernel(rows, *window[:2], around_median=window.around_median)
    assert mean.tobytes() == expected[0]
    np.testing.assert_array_equal(least, expected[1])
    np.testing.assert_array_equal(largest, expected[2])


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from([1, 15, 16, 17, 128, 300]), st.data())
def test_the_kernels_bits_are_those_of_numpys(kernel, seed, m, b, data):
    rows = list(hostile_rows(seed, m, b))
    start = data.draw(st.integers(0, m - 1))
    assert_same(kernel, rows, Window(start, data.draw(st.integers(start + 1, m))))
    assert_same(kernel, rows, Window(0, data.draw(st.integers(1, m)), around_median=True))


@pytest.mark.parametrize("m", [100, 128, 257])
def test_the_kernels_bits_are_those_of_numpys_for_many_rows(kernel, m):
    rows = list(hostile_rows(m, m, 8192 if m == 100 else 200))
    windows = (Window(0, m), Window(m // 5, m - m // 5), Window((m - 1) // 2, m // 2 + 1))
    for window in (*windows, Window(0, m // 3, around_median=True)):
        assert_same(kernel, rows, window)


def means_of(seed, n, m):
    entering = np.random.default_rng(seed).random((m, n)) < 0.8
    entering[:, seed % n] = True
    return mixture_of(entering / entering.sum(axis=1, keepdims=True))


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([1, 15, 17, 128, 300]), st.data())
def test_the_kernels_bits_are_those_of_numpys_for_mixed_rows(kernel, seed, n, b, data):
    m = data.draw(st.integers(1, n))
    mixed = MixedRows(list(hostile_rows(seed, n, b)), means_of(seed, n, m))
    start = data.draw(st.integers(0, m - 1))
    assert_same(kernel, mixed, Window(start, data.draw(st.integers(start + 1, m))))
    assert_same(kernel, mixed, Window(0, data.draw(st.integers(1, m)), around_median=True))


@pytest.mark.parametrize("n", [4 * PASS_GROUPS, 4 * PASS_GROUPS + 1, 100, 129])
def test_the_kernels_bits_are_those_of_numpys_for_many_mixed_rows(kernel, n):
    for b, m in ((8192 if n == 100 else 200, n), (40, 3)):
        mixed = MixedRows(list(hostile_rows(n, n, b)), means_of(n, n, m))
        assert_same(kernel, mixed, Window(m // 5, m - m // 5))


def test_other_mixtures_and_scaled_rows_go_through_the_kernel_too(kernel):
    rows = ScaledRows(hostile_rows(4, 30, 50), np.where(np.arange(30) % 4, 1.0, 1e-3))
    for mixture in (means_of(4, 30, 30), Combinations(np.random.default_rng(4).random((22, 30)) / 30)):
        assert_same(kernel, MixedRows(rows, mixture), Window(4, 18))


def test_infinities_are_sorted_like_other_values(kernel):
    """Mixing finite rows may overflow; what is averaged is the same, and infinite where NumPy's is."""
    rows = list(hostile_rows(0, 20, 64))
    rows[3] = np.full(64, np.inf, np.float32)
    rows[7] = np.full(64, -np.inf, np.float32)
    for window in (Window(4, 16), Window(1, 20), Window(0, 19), Window(0, 12, around_median=True)):
        assert_same(kernel, rows, window)


def test_rows_are_never_written_to_and_may_lie_anyhow(kernel):
    matrix = hostile_rows(1, 200, 21)
    before = matrix.copy()
    matrix.flags.writeable = False
    assert_same(kernel, list(matrix.T), Window(5, 16))
    assert_same(kernel, [row[::-2] for row in matrix[:33]], Window(5, 16))
    assert matrix.tobytes() == before.tobytes()


@pytest.mark.parametrize("method", ["median", "trimmed_mean", "meamed", "bulyan"])
@pytest.mark.parametrize("n", [15, 40])
@pytest.mark.parametrize("pre", [[], ["nnm"]])
def test_rules_give_the_same_bytes_with_the_kernel_and_without(monkeypatch, method, n, pre):
    rows = hostile_rows(3, n, 9000) / np.float32(1e24)
    assert order_statistics.order_statistics_kernel() is not None
    results = []
    for kernel in (order_statistics.order_statistics_kernel, lambda: None):
        monkeypatch.setattr(order_statistics, "order_statistics_kernel", kernel)
        result = aggregate(rows, method=method, num_byzantine=3, pre=pre, report=not pre)
        results.append((result.vector.tobytes(), pre or result.report.outside.tobytes()))
    assert results[0] == results[1]


def test_a_kernel_that_gives_other_values_is_not_used(monkeypatch, caplog):
    right = OrderStatisticsKernel.__call__
    monkeypatch.setattr(OrderStatisticsKernel, "__call__", lambda *args, **given: -right(*args, **given))
    with caplog.at_level(logging.ERROR):
        assert order_statistics.order_statistics_kernel.__wrapped__() is None
    assert "other values" in caplog.text


def test_where_memory_may_not_become_executable_numpy_sorts():
    """As systemd's MemoryDenyWriteExecute has it; the kernel's system call needs Linux 6.3."""
    script = """
import ctypes
from scarcity_ray.robust.measures import order_statistics
PR_SET_MDWE = 65
print(ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0), order_statistics.order_statistics_kernel())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.stdout.startswith("-1"):
        pytest.skip("this system cannot refuse executable memory")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "None"]
    assert "columns are sorted by NumPy" in done.stderr
