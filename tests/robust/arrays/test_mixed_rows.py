from __future__ import annotations

import functools
import math
import operator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import (
    Bucketing,
    NearestNeighborMixing,
    ScaledRows,
    StaticClipping,
    aggregate,
    aggregate_blocks,
    column_blocks,
    inline_blocks,
    measure,
    take_block,
)
from scarcity_ray.robust.arrays.mixed_rows import (
    GROUP,
    Combinations,
    Means,
    MixedRows,
    exactly_summed,
    mixture_of,
)


def entering_rows(rng, n, m):
    """Which of n rows enter m mixed rows: about four fifths, and at least one."""
    entering = rng.random((m, n)) < 0.8
    entering[np.arange(m), rng.integers(n, size=m)] = True
    return entering


def means_of(entering):
    return mixture_of(entering / entering.sum(axis=1, keepdims=True))


def hostile_rows(rng, n, b):
    """Rows of very different sizes, some equal, some zero, some each other's negatives but for a little."""
    rows = rng.standard_normal((n, b)) * rng.choice([0.0, 1e-40, 1.0, 1.0, 1.0, 1e8, 1e25, 1e37], (n, 1))
    rows[rng.integers(n)] = rows[rng.integers(n)]
    rows[rng.integers(n)] = -rows[rng.integers(n)] * (1 + 1e-7)
    return rows.astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_a_mixed_row_is_that_of_float64_sums_rounded_once(seed, n, m, dense):
    rng = np.random.default_rng(seed)
    rows, entering = hostile_rows(rng, n, 5), entering_rows(rng, n, m)
    coefficients = rng.random((m, n)) * entering if dense else entering / entering.sum(axis=1, keepdims=True)
    mixed = MixedRows(rows, mixture_of(coefficients))
    for i in range(m):
        for j in range(5):
            terms = [float(c) * float(x) for c, x in zip(coefficients[i], rows[:, j], strict=True)]
            exact, size = math.fsum(terms), math.fsum(map(abs, terms))
            assert abs(float(mixed[i][j]) - exact) <= 2**-24 * abs(exact) + n * 2**-52 * size + 2**-150


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_a_row_that_does_not_enter_a_mixed_row_changes_no_bit_of_it(seed, n):
    rng = np.random.default_rng(seed)
    rows, entering = hostile_rows(rng, n, 33), entering_rows(rng, n, 7)
    changed = rows.copy()
    row = int(rng.integers(n))
    changed[row] = rng.choice([0.0, 1e25, 3e38, -1e8]) * rng.standard_normal(33).clip(-1, 1)
    entering[0, row] = False
    entering[0, (row + 1) % n] = True
    before, after = (np.array(list(MixedRows(given, means_of(entering)))) for given in (rows, changed))
    unmoved = ~entering[:, row]
    assert before[unmoved].tobytes() == after[unmoved].tobytes()


@given(st.integers(0, 2**32 - 1), st.integers(1, 23), st.integers(1, 9), st.sampled_from([3, 40, 300]))
def test_means_have_the_same_bits_on_every_processor_their_additions_have_one_order_or_need_none(
    seed, n, m, b
):
    """In some or all of the columns, values cancel others that swallow what is added between them."""
    rng = np.random.default_rng(seed)
    rows, entering = rng.standard_normal((n, b)).astype(np.float32), entering_rows(rng, n, m)
    hostile = rng.random(b) < rng.choice([0.0, 0.05, 1.0])
    rows[:, hostile] = rng.choice([2.0**60, -(2.0**60), 1.0, 0.1, 0.0], (n, int(hostile.sum())))
    mixed = np.array(list(MixedRows(rows, means_of(entering))))
    for i in range(m):
        for j in {0, 1, 2, *np.flatnonzero(hostile)[:3].tolist()}:
            total = 0.0
            for first in range(0, n, GROUP):
                within = [float(rows[k, j]) for k in range(first, min(first + GROUP, n)) if entering[i, k]]
                if within:
                    total += functools.reduce(operator.add, within)  # `sum` compensates since Python 3.12
            expected = np.float32(total * (1.0 / int(entering[i].sum())))
            assert mixed[i, j].tobytes() == expected.tobytes()


@given(st.integers(0, 2**32 - 1), st.integers(1, 130), st.integers(-149, 90), st.integers(0, 31))
def test_sums_that_are_left_to_blas_round_nothing(seed, n, power, spread):
    """Against exact fractions, with all bits of the values in use and exponents as far apart as may be."""
    rng = np.random.default_rng(seed)
    bits = rng.choice([2**23 + 1, 2**24 - 1], n) * 1.0
    values = np.ldexp(bits, power - 23 + rng.choice([0, spread], n)).astype(np.float32)
    values[rng.random(n) < 0.2] = 0.0
    if not exactly_summed(values[:, np.newaxis])[0]:
        sizes = np.abs(values[values != 0.0]).astype(float)
        assert sizes.max() / sizes.min() * n > 2.0**27
        return
    exact = Fraction(0)
    total = 0.0
    for value in rng.permutation(np.abs(values)).tolist():
        exact, total = exact + Fraction(value), total + value
        assert Fraction(total) == exact


def test_ordinary_columns_are_left_to_blas():
    rows = np.random.default_rng(0).standard_normal((100, 8192)).astype(np.float32)
    assert exactly_summed(rows).mean() > 0.99
    rows[:, 5] = 0.0
    rows[3:, 6] = -0.0
    rows[:, 7] = np.float32(1e-45) * np.arange(100)
    assert exactly_summed(rows)[5:8].all()
    rows[3] = 1e25
    assert not exactly_summed(rows)[8:].any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.data(), st.booleans())
def test_only_the_mixed_rows_that_somebody_asks_for_are_formed(seed, n, data, dense):
    rng = np.random.default_rng(seed)
    rows, entering = hostile_rows(rng, n, 9), entering_rows(rng, n, 11)
    made = Combinations(entering * rng.random(n)) if dense else means_of(entering)
    wanted = sorted(data.draw(st.sets(st.integers(0, 10), min_size=1)))
    some = MixedRows(rows, made).only(wanted)
    assert len(some) == len(wanted) == len(some.mixture)
    formed = [row.copy() for row in some]
    for row, index in zip(formed, wanted, strict=True):
        if dense:
            np.testing.assert_allclose(row, MixedRows(rows, made)[index], rtol=1e-6, atol=1e22)
        else:
            assert row.tobytes() == MixedRows(rows, made)[index].tobytes()


def test_what_averages_rows_is_known_as_means():
    rows = np.random.default_rng(0).standard_normal((15, 40)).astype(np.float32)
    geometry = measure(inline_blocks(rows), origin=True)
    for step in (NearestNeighborMixing(), Bucketing(4, 0)):
        coefficients = step.coefficients(geometry, 3)[:, :15]
        made = mixture_of(coefficients)
        assert isinstance(made, Means)
        bits = np.unpackbits(made.patterns[:, :, np.newaxis], axis=2, bitorder="little")[:, :, :GROUP]
        np.testing.assert_array_equal(
            bits.reshape(len(made), -1)[:, :15] * made.shares[:, None], coefficients
        )
    assert isinstance(mixture_of(StaticClipping(0.5).coefficients(geometry, 3)[:, :15]), Combinations)


def test_scaled_rows_are_mixed_as_their_copies_are():
    rng = np.random.default_rng(1)
    rows, entering = hostile_rows(rng, 21, 50), entering_rows(rng, 21, 21)
    scaled = ScaledRows(rows, np.where(np.arange(21) % 3, 1.0, 0.3))
    copied = np.array([np.array(row) for row in scaled])
    lazily = np.array(list(MixedRows(scaled, means_of(entering))))
    assert lazily.tobytes() == np.array(list(MixedRows(copied, means_of(entering)))).tobytes()


@pytest.mark.long
@pytest.mark.parametrize("group_size", [1, 2, 7])
@pytest.mark.parametrize("pre", [["nnm"], [Bucketing(3, 5)], ["nnm", "arc"]], ids=str)
@pytest.mark.parametrize("method", ["median", "trimmed_mean", "bulyan", "mean"])
def test_mixed_rows_are_bitwise_the_same_for_any_grouping_of_blocks(method, pre, group_size):
    rows = list(np.random.default_rng(2).standard_normal((31, 40_000)).astype(np.float32))
    blocks = column_blocks(40_000)

    def in_tasks(kernel, *args):
        for first in range(0, len(blocks), group_size):
            yield from [
                kernel(take_block(rows, block), *args) for block in blocks[first : first + group_size]
            ]

    f = 1 if pre[0] != "nnm" else 4
    f = min(f, 1) if method == "bulyan" else f
    expected = aggregate(rows, method=method, num_byzantine=f, pre=pre)
    result = aggregate_blocks(in_tasks, 31, method=method, num_byzantine=f, pre=pre)
    assert result.vector.tobytes() == expected.vector.tobytes()


@pytest.mark.parametrize("method", ["median", "trimmed_mean", "meamed", "bulyan"])
@pytest.mark.parametrize("far", [1e8, 1e25])
def test_column_rules_on_mixed_rows_are_those_of_float64(method, far, monkeypatch):
    """Against mixing by a float64 matrix product, behind colluders, duplicates and one row far away."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((27, 3000)).astype(np.float32)
    rows[3] = far
    rows[[5, 9]] = -far * rng.standard_normal(3000).astype(np.float32)
    rows[11] = rows[12]
    result = aggregate(rows, method=method, num_byzantine=4, pre=["nnm"])
    monkeypatch.setattr("scarcity_ray.robust.aggregation.mixture_of", Combinations)
    expected = aggregate(rows, method=method, num_byzantine=4, pre=["nnm"])
    assert result.selected == expected.selected
    np.testing.assert_allclose(result.vector, expected.vector, rtol=2**-22, atol=2**-26)
    assert np.abs(result.vector).max() < 5
