"""The compiled inner products against float64; skipped without Numba (the extra ``fast``)."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.robust import ScaledRows, aggregate, inline_blocks, take_block
from scarcity_ray.robust.measures import approximate_distances, distances
from scarcity_ray.robust.measures.approximate_distances import kernel_rounding, measure_approximately
from scarcity_ray.robust.native.gram_kernel import GramKernel, gram_kernel
from scarcity_ray.robust.native.layout import CHAIN_COLUMNS, CHUNK

pytest.importorskip("numba", reason="the extra fast is not installed")

from scarcity_ray.robust.native.vectors import LANES

SIZES = st.tuples(st.integers(1, 23), st.sampled_from([1, 7, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 1500]))


@pytest.fixture(scope="module")
def kernel():
    return GramKernel()


def rows_of(seed, n, d):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-6, 6, (n, 1))
    return (rows + rng.choice([0.0, 100.0]) * rng.standard_normal(d)).astype(np.float32)


def definition(rows, centre, dtype, origin):
    """The products of the points, wider than float64, and those of their magnitudes."""
    points = np.vstack([rows, np.zeros((int(origin), rows.shape[1]))]).astype(np.longdouble)
    if centre is not None:
        points -= points[centre].copy()
    return points @ points.T, np.abs(points) @ np.abs(points).T


def test_the_kernel_is_used_where_it_can_be():
    assert gram_kernel() is not None


@given(st.integers(0, 2**32 - 1), SIZES, st.sampled_from([np.float32, np.float64]), st.booleans(), st.data())
def test_inner_products_are_those_of_the_rows_less_the_centre(kernel, seed, size, dtype, origin, data):
    rows = rows_of(seed, *size)
    centre = data.draw(st.none() | st.integers(0, size[0] - 1))
    products = kernel.products(rows, centre, dtype, origin=origin)
    expected, magnitudes = definition(rows, centre, dtype, origin)
    unit = 2.0**-24 if dtype is np.float32 else 2.0**-53
    chunks = 0.1 if dtype is np.float32 else size[1] // CHUNK + 3
    assert (np.abs(products - expected) <= (kernel.roundings(dtype) + chunks) * unit * magnitudes).all()
    assert products.tobytes() == products.T.tobytes()


@given(st.integers(0, 2**32 - 1), SIZES, st.data())
def test_products_of_some_rows_are_those_with_all(kernel, seed, size, data):
    rows = rows_of(seed, *size)
    some = data.draw(st.lists(st.integers(0, size[0] - 1), min_size=1, unique=True))
    centre = data.draw(st.none() | st.integers(0, size[0] - 1))
    products, squares = kernel.products_of(list(rows), centre, np.array(some))
    whole = kernel.products(rows, centre, np.float64)
    assert products.tobytes() == whole[some].tobytes()
    assert squares.tobytes() == np.diagonal(whole).tobytes()


def in_the_stated_order(a, b):
    """The inner product of two float32 points as `gram_kernel` says that it is rounded, lane by lane."""
    total = 0.0
    for chunk in range(0, len(a), CHUNK):
        parts = 0.0
        stop = min(chunk + CHUNK, len(a))
        for start in range(chunk, stop, CHAIN_COLUMNS):
            lanes = np.zeros(LANES, np.float32)
            for step in range(start, min(start + CHAIN_COLUMNS, stop), LANES):
                first, second = (np.zeros(LANES), np.zeros(LANES))
                first[: len(a[step : step + LANES])] = a[step : step + LANES]
                second[: len(b[step : step + LANES])] = b[step : step + LANES]
                lanes = (first * second + lanes).astype(np.float32)
            while len(lanes) > 1:
                lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
            parts += float(lanes[0])
        total += parts
    return total


@pytest.mark.parametrize("columns", [5, 16, 128, 300, CHUNK, 1500])
def test_float32_sums_run_in_the_order_that_the_bound_is_proved_for(kernel, columns):
    rng = np.random.default_rng(columns)
    rows = (rng.standard_normal((9, columns)) + 3.0).astype(np.float32)
    points = rows - rows[4]
    expected = [[in_the_stated_order(a, b) for b in points] for a in points]
    np.testing.assert_array_equal(kernel.products(rows, 4, np.float32), expected)


@given(st.integers(0, 2**32 - 1), SIZES, st.data())
def test_squares_of_pairs_are_those_of_their_differences(kernel, seed, size, data):
    rows = rows_of(seed, *size)
    point = st.integers(0, size[0])
    pairs = data.draw(st.lists(st.tuples(point, point), min_size=1, max_size=40))
    squares = kernel.squares_of_pairs(rows, np.array(pairs))
    points = np.vstack([rows, np.zeros((1, size[1]))]).astype(np.longdouble)
    expected = [np.square(points[i] - points[j]).sum() for i, j in pairs]
    np.testing.assert_allclose(squares, np.array(expected, np.float64), rtol=1e-13, atol=0)
    assert all(square == 0.0 for square, (i, j) in zip(squares, pairs, strict=True) if i == j)


def test_equal_rows_have_equal_inner_products_to_the_bit(kernel):
    rows = rows_of(0, 21, 1700)
    rows[20] = rows[9] = rows[2]
    for dtype in (np.float32, np.float64):
        products = kernel.products(rows, 5, dtype)
        assert len({products[i, j] for i in (2, 9, 20) for j in (2, 9, 20)}) == 1
        assert products[2].tobytes() == products[9].tobytes() == products[20].tobytes()


def test_a_rows_products_do_not_depend_on_the_others(kernel):
    rows = rows_of(1, 30, 1700)
    for dtype in (np.float32, np.float64):
        few = kernel.products(rows[[7, 3, 11]], 0, dtype)
        assert few.tobytes() == kernel.products(rows, 7, dtype)[np.ix_([7, 3, 11], [7, 3, 11])].tobytes()


def test_rounding_errors_of_one_sign_stay_within_the_proved_bound(kernel):
    """Equal entries, whose products all round the same way: the worst that we know."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(40):
        rows = np.full((12, 3000), rng.uniform(1, 2), np.float32) * rng.choice([1.0, 3.0, 5.0], (12, 1))
        rows = rows.astype(np.float32)
        rows[0] = 0.0
        exact = np.array([np.square(rows.astype(np.float64) - row).sum(axis=1) for row in rows])
        products = kernel.products(rows, 0, np.float32)
        scale = np.add.outer(np.diagonal(products), np.diagonal(products))
        shares.append(
            np.max(np.abs(scale - 2 * products - exact) / (kernel_rounding(kernel) * scale + 1e-300))
        )
    assert 0.02 < max(shares) <= 1


def test_rows_may_lie_anyhow_and_are_never_written_to(kernel):
    matrix = rows_of(2, 600, 9)
    matrix.flags.writeable = False
    before = matrix.tobytes()
    expected = kernel.products(np.ascontiguousarray(matrix.T), 1, np.float64)
    assert kernel.products(matrix.T, 1, np.float64).tobytes() == expected.tobytes()
    assert kernel.products(list(matrix.T), 1, np.float64).tobytes() == expected.tobytes()
    assert matrix.tobytes() == before
    scaled = ScaledRows(matrix[:9], np.where(np.arange(9) % 2, 1.0, 0.3))
    formed = np.array([np.array(row) for row in scaled])
    assert (
        kernel.products(scaled, 4, np.float32).tobytes() == kernel.products(formed, 4, np.float32).tobytes()
    )


def test_slices_of_rows_give_what_the_rows_give(kernel):
    rows = list(rows_of(3, 11, 20_000))
    blocks = list(inline_blocks(rows)(lambda block: kernel.products(block, 3, np.float32).tobytes()))
    spans = [slice(0, 8192), slice(8192, 16_384), slice(16_384, 20_000)]
    assert blocks == [kernel.products(take_block(rows, span), 3, np.float32).tobytes() for span in spans]


def test_numbers_that_are_not_finite_show(kernel):
    rows = rows_of(4, 6, 900)
    rows[2, 600] = np.nan
    rows[4, 3] = np.inf
    rows[5] = 1e30
    squares = np.diagonal(kernel.products(rows, 0, np.float32))
    assert np.isnan(squares[2])
    assert np.isinf(squares[4])
    assert np.isinf(squares[5])
    assert measure_approximately(inline_blocks(rows)) is None


@pytest.mark.parametrize("method", ["krum", "multi_krum", "bulyan"])
@pytest.mark.parametrize("seed", range(3))
def test_rules_that_choose_rows_give_the_same_bytes_by_blas(monkeypatch, method, seed):
    rows = rows_of(seed, 31, 9000)
    results = [aggregate(rows, method=method, num_byzantine=5).vector.tobytes()]
    for module in (distances, approximate_distances):
        monkeypatch.setattr(module, "gram_kernel", lambda: None)
    results.append(aggregate(rows, method=method, num_byzantine=5).vector.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("what", ["products", "squares_of_pairs"])
def test_a_kernel_that_gives_other_values_is_not_used(monkeypatch, caplog, what):
    right = getattr(GramKernel, what)
    monkeypatch.setattr(GramKernel, what, lambda *args, **options: right(*args, **options) * 1.001)
    with caplog.at_level(logging.ERROR):
        assert gram_kernel.__wrapped__() is None
    assert "other values" in caplog.text


def test_a_chain_is_a_whole_part_of_a_chunk():
    assert CHUNK % CHAIN_COLUMNS == 0
    assert CHAIN_COLUMNS % LANES == 0


def test_rows_of_other_types_and_at_odd_addresses_are_copied_first(kernel):
    rows = rows_of(5, 6, 700)
    expected = kernel.products(rows, 1, np.float64).tobytes()
    odd = []
    for row in rows:
        raw = np.empty(row.nbytes + 1, np.uint8)
        raw[1:] = row.view(np.uint8)
        odd.append(raw[1:].view(np.float32))
    others = (odd, rows.astype(np.float64), list(rows.astype(">f4")), [*rows[:5], rows[5].astype(np.float64)])
    for given_rows in others:
        assert kernel.products(given_rows, 1, np.float64).tobytes() == expected


def test_rows_of_several_lengths_are_refused(kernel):
    with pytest.raises(UsageError, match="one length"):
        kernel.products([np.zeros(9, np.float32), np.zeros(8, np.float32)], 0, np.float32)
