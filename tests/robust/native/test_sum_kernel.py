"""The compiled sums against NumPy's; without llvmlite (the extra ``fast``) these tests are skipped."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import inline_blocks
from scarcity_ray.robust.native import sum_kernel
from scarcity_ray.robust.native.sum_kernel import CHUNK, SumKernel, sum_code
from scarcity_ray.robust.rules import mean
from scarcity_ray.robust.rules.mean import numpys_sum, weighted_sum

llvm = pytest.importorskip("llvmlite.binding", reason="the extra fast is not installed")


@pytest.fixture(scope="module")
def kernels():
    """The kernel in vectors of this processor's width, and of the other one."""
    features = llvm.get_host_cpu_features()
    with pytest.MonkeyPatch.context() as monkeypatch:
        wide = features.get("avx512f")
        monkeypatch.setattr(
            sum_kernel, "sum_code", lambda lanes, weighted: sum_code(8 if wide else 16, weighted=weighted)
        )
        other = SumKernel()
    return SumKernel(), other


def hostile_rows(seed, m, b):
    rng = np.random.default_rng(seed)
    scales = np.array([0.0, -0.0, 1e-44, 1.0, 0.1, 1e30, 2e36], np.float32)
    return rng.integers(-20, 21, (m, b)).astype(np.float32) * rng.choice(scales, (m, 1))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.sampled_from([1, 15, 16, 17, 300, CHUNK - 1, CHUNK, CHUNK + 1, 3000]),
)
def test_the_compiled_kernels_bits_are_those_of_numpys(kernels, seed, m, b):
    rows = list(hostile_rows(seed, m, b))
    for weights in (None, np.random.default_rng(seed).uniform(-1, 1, m)):
        expected = numpys_sum(rows, weights).tobytes()
        assert [kernel(rows, weights).tobytes() for kernel in kernels] == [expected, expected]


def test_the_kernel_is_used_where_it_can_be():
    assert mean.sum_kernel() is not None


def test_rows_are_never_written_to_and_may_lie_anyhow(kernels):
    matrix = hostile_rows(1, 200, 21)
    before = matrix.tobytes()
    matrix.flags.writeable = False
    weights = np.linspace(0.0, 0.2, 42)[::2]
    for rows in (list(matrix.T), matrix.T, [row[::-2] for row in matrix[:21]]):
        for shares in (None, weights):
            assert kernels[0](rows, shares).tobytes() == numpys_sum(rows, shares).tobytes()
    assert matrix.tobytes() == before


def test_chosen_rows_of_blocks_are_summed_as_they_are():
    rows = list(hostile_rows(2, 9, 20_000))
    blocks = inline_blocks(rows)
    indices = (1, 4, 8)
    summed = np.concatenate(list(blocks(lambda block: weighted_sum(block.chosen(indices), None))))
    assert summed.tobytes() == numpys_sum([rows[index] for index in indices], None).tobytes()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_code_allows_no_inexact_arithmetic(weighted):
    words = set(sum_code(16, weighted=weighted).split())
    assert not {"fast", "contract", "reassoc", "nnan", "nsz", "arcp", "afn"} & words


def test_a_kernel_that_gives_other_values_is_not_used(monkeypatch, caplog):
    monkeypatch.setattr(
        sum_kernel,
        "sum_code",
        lambda lanes, weighted: sum_code(lanes, weighted=weighted).replace("fadd", "fsub"),
    )
    with caplog.at_level(logging.ERROR):
        assert mean.sum_kernel.__wrapped__() is None
    assert "other values" in caplog.text
