"""The compiled sums against NumPy's; without Numba (the extra ``fast``) these tests are skipped."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import inline_blocks
from scarcity_ray.robust.native.layout import TOTALS
from scarcity_ray.robust.native.sum_kernel import SumKernel
from scarcity_ray.robust.rules import mean
from scarcity_ray.robust.rules.mean import numpys_sum, weighted_sum

pytest.importorskip("numba", reason="the extra fast is not installed")


@pytest.fixture(scope="module")
def kernel():
    return SumKernel()


def hostile_rows(seed, m, b):
    rng = np.random.default_rng(seed)
    scales = np.array([0.0, -0.0, 1e-44, 1.0, 0.1, 1e30, 2e36], np.float32)
    return rng.integers(-20, 21, (m, b)).astype(np.float32) * rng.choice(scales, (m, 1))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.sampled_from([1, 15, 16, 17, 300, TOTALS - 1, TOTALS, TOTALS + 1, 3000]),
)
def test_the_compiled_kernels_bits_are_those_of_numpys(kernel, seed, m, b):
    rows = list(hostile_rows(seed, m, b))
    for weights in (None, np.random.default_rng(seed).uniform(-1, 1, m)):
        expected = numpys_sum(rows, weights).tobytes()
        assert kernel(rows, weights).tobytes() == expected


def test_the_kernel_is_used_where_it_can_be():
    assert mean.sum_kernel() is not None


def test_rows_are_never_written_to_and_may_lie_anyhow(kernel):
    matrix = hostile_rows(1, 200, 21)
    before = matrix.tobytes()
    matrix.flags.writeable = False
    weights = np.linspace(0.0, 0.2, 42)[::2]
    for rows in (list(matrix.T), matrix.T, [row[::-2] for row in matrix[:21]]):
        for shares in (None, weights):
            assert kernel(rows, shares).tobytes() == numpys_sum(rows, shares).tobytes()
    assert matrix.tobytes() == before


def test_chosen_rows_of_blocks_are_summed_as_they_are():
    rows = list(hostile_rows(2, 9, 20_000))
    blocks = inline_blocks(rows)
    indices = (1, 4, 8)
    summed = np.concatenate(list(blocks(lambda block: weighted_sum(block.chosen(indices), None))))
    assert summed.tobytes() == numpys_sum([rows[index] for index in indices], None).tobytes()


def test_a_kernel_that_gives_other_values_is_not_used(monkeypatch, caplog):
    right = SumKernel.__call__
    monkeypatch.setattr(SumKernel, "__call__", lambda *args: -right(*args))
    with caplog.at_level(logging.ERROR):
        assert mean.sum_kernel.__wrapped__() is None
    assert "other values" in caplog.text
