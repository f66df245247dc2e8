"""Geometric median, centred clipping, covariance filter, least diameter, nearest to a pivot."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.robust import (
    CenteredClipping,
    NearestToPivot,
    aggregate,
    aggregate_blocks,
    inline_blocks,
    measure,
)
from scarcity_ray.robust.measures.rows import squares_from_block
from scarcity_ray.robust.rules.base import Setting
from scarcity_ray.robust.rules.subset_averaging import can_cover, least_diameter


def rows_for(seed, n=11, d=4, far=1e3, f=2):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) + 5 * rng.integers(0, 2)
    rows[:f] = far * rng.standard_normal(d) + rng.standard_normal((f, d))
    return rows.astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e3, 1e12, 1e25]))
def test_the_geometric_median_minimises_the_sum_of_distances_to_the_rows(seed, far):
    rows = rows_for(seed, far=far)
    wide = rows.astype(np.float64)

    def near_sum(point):
        """The sum of distances, less what every point near the honest rows has in common."""
        scale = np.linalg.norm(wide, axis=1)
        apart = np.linalg.norm(wide - point, axis=1)
        return np.sum(np.where(scale > 1e6, -(wide @ point) / np.maximum(scale, 1.0), apart))

    result = aggregate(rows, method="geometric_median", num_byzantine=2)
    best = minimize(
        near_sum, np.median(wide, axis=0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    )
    assert near_sum(result.vector) <= best.fun + 1e-5
    assert result.weights.sum() == pytest.approx(1)


def test_the_geometric_median_of_equal_rows_is_that_row():
    rows = np.full((7, 3), 0.1, np.float32)
    rows[0] = 9
    np.testing.assert_allclose(
        aggregate(rows, method="geometric_median", num_byzantine=1).vector, rows[1], rtol=1e-5
    )


def clipped_steps(rows, radius, steps):
    point = np.zeros(rows.shape[1])
    for _ in range(steps):
        apart = rows.astype(np.float64) - point
        norms = np.linalg.norm(apart, axis=1, keepdims=True)
        point = point + np.mean(apart * np.minimum(1, radius / np.maximum(norms, 1e-300)), axis=0)
    return point


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 20), st.integers(1, 5), st.sampled_from([1.0, 1e8, 1e25]))
def test_centred_clipping_is_the_iteration_of_its_paper(seed, radius, steps, far):
    rows = rows_for(seed, n=21, far=far)
    result = aggregate(rows, method=CenteredClipping(radius, steps), num_byzantine=2)
    np.testing.assert_allclose(
        result.vector, clipped_steps(rows, radius, steps), rtol=1e-5, atol=1e-6 * radius
    )


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 5))
def test_a_step_of_centred_clipping_moves_by_at_most_the_radius_and_one_row_by_at_most_its_share(
    seed, radius
):
    rows = rows_for(seed, n=21)
    moved = rows.copy()
    moved[4] = -1e20
    before = aggregate(rows, method=CenteredClipping(radius), num_byzantine=2).vector
    after = aggregate(moved, method=CenteredClipping(radius), num_byzantine=2).vector
    assert np.linalg.norm(before) <= radius * (1 + 1e-6)
    assert np.linalg.norm(before - after) <= 2 * radius / 21 * (1 + 1e-5)


def filtered(rows, f):
    """CAF on the rows themselves."""
    wide, weights, least = rows.astype(np.float64), np.ones(len(rows)), np.inf
    best = wide.mean(axis=0)
    while weights.sum() > len(rows) - 2 * f:
        mean = weights @ wide / weights.sum()
        apart = wide - mean
        values, vectors = np.linalg.eigh((apart * weights[:, None]).T @ apart / weights.sum())
        if values[-1] < least:
            best, least = mean, values[-1]
        along = (apart @ vectors[:, -1]) ** 2
        weights = weights * np.maximum(1 - along / along[weights > 0].max(), 0)
    return best


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 30.0, 1e4]), st.integers(0, 3))
def test_the_covariance_filter_is_that_of_its_paper(seed, far, f):
    rows = rows_for(seed, far=far, f=f)
    result = aggregate(rows, method="caf", num_byzantine=f).vector
    np.testing.assert_allclose(result, filtered(rows, f), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("far", [1e12, 1e25])
def test_the_covariance_filter_leaves_far_colluders_out(far):
    rows = rows_for(1, far=far)
    assert np.linalg.norm(aggregate(rows, method="caf", num_byzantine=2).vector - rows[2:].mean(axis=0)) < 3


def diameter(rows, kept):
    return max(np.sum((rows[i].astype(float) - rows[j]) ** 2) for i in kept for j in kept)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.data())
def test_no_set_of_n_f_rows_has_a_smaller_diameter_and_the_first_of_several_is_taken(seed, n, data):
    f = data.draw(st.integers(0, n - 1))
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, (n, 2)) if seed % 2 else rng.standard_normal((n, 2))
    distances = np.square(rows[:, None] - rows[None]).sum(axis=2).astype(np.float64)
    sets = list(itertools.combinations(range(n), n - f))
    diameters = [distances[np.ix_(kept, kept)].max() for kept in sets]
    assert tuple(least_diameter(distances, f)) == sets[int(np.argmin(diameters))]


def test_least_diameter_of_many_rows_leaves_the_far_ones_out():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 3)).astype(np.float32)
    rows[5:17] += 30
    result = aggregate(rows, method="mda", num_byzantine=12)
    assert set(result.selected) == set(range(60)) - set(range(5, 17))


def test_conflicts_are_covered_by_as_many_rows_as_it_takes():
    ring = np.zeros((7, 7), bool)
    for row in range(7):
        ring[row, (row + 1) % 7] = ring[(row + 1) % 7, row] = True
    assert [can_cover(ring, budget) for budget in range(6)] == [False, False, False, False, True, True]


@given(st.integers(0, 2**32 - 1), st.integers(0, 10))
def test_the_rows_nearest_to_the_pivot_are_averaged_a_tie_going_to_the_lowest_index(seed, pivot):
    rows = np.random.default_rng(seed).integers(-2, 3, (11, 2)).astype(np.float32)
    apart = np.square(rows.astype(float) - rows[pivot]).sum(axis=1)
    apart[pivot] = -1
    expected = tuple(sorted(np.argsort(apart, kind="stable")[:8].tolist()))
    assert aggregate(rows, method=NearestToPivot(pivot), num_byzantine=3).selected == expected


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1e8, 1e25]), st.sampled_from([0.0, 1e4]))
def test_the_pivots_distances_are_those_of_float64_differences(seed, far, offset):
    rng = np.random.default_rng(seed)
    rows = (offset + rng.standard_normal((17, 300)) * 1e-2).astype(np.float32)
    rows[rng.integers(17)] = far * rng.standard_normal(300)
    rows[rng.integers(17)] = rows[rng.integers(17)]
    pivot = int(rng.integers(17))
    squares = squares_from_block(rows, pivot)
    np.testing.assert_allclose(squares, np.square(rows.astype(float) - rows[pivot]).sum(axis=1), rtol=1e-12)
    for first, second in np.argwhere((rows[:, np.newaxis] == rows).all(axis=2)):
        assert squares[first] == squares[second]


def test_the_pivots_distances_are_those_without_the_compiled_kernel_too(monkeypatch):
    monkeypatch.setattr("scarcity_ray.robust.measures.rows.gram_kernel", lambda: None)
    test_the_pivots_distances_are_those_of_float64_differences()


def test_the_pivot_is_measured_from_and_no_other_row():
    rows = np.random.default_rng(4).standard_normal((15, 20_000)).astype(np.float32)
    kernels = []

    def counting(kernel, /, *args):
        kernels.append(kernel.__name__)
        return inline_blocks(rows)(kernel, *args)

    quick = aggregate_blocks(counting, 15, method=NearestToPivot(6), num_byzantine=4)
    assert kernels == ["squares_from_block", "combine_block"]
    slow = NearestToPivot(6).select(None, Setting(15, 4, geometry=measure(inline_blocks(rows))))
    assert quick.selected == slow.rows
    with pytest.raises(UsageError, match="distances from its pivot"):
        NearestToPivot(6).select(None, Setting(15, 4))


def test_a_row_that_is_masked_before_the_pivot_moves_it_to_no_other_row():
    """Its number is what is trusted: an attacker who sends NaN must not have the next row take its place."""
    rows = np.random.default_rng(5).standard_normal((15, 40)).astype(np.float32)
    rows[7:9] += 100.0
    rows[2] = np.nan
    for pre in ([], ["nnm"]):
        assert not {7, 8} & set(aggregate(rows, method=NearestToPivot(6), num_byzantine=3, pre=pre).selected)
        with pytest.raises(UsageError, match="the pivot, row 2, is not finite"):
            aggregate(rows, method=NearestToPivot(2), num_byzantine=3, pre=pre)


def test_wrong_parameters_are_usage_errors():
    for make in (
        lambda: CenteredClipping(radius=0.0),
        lambda: CenteredClipping(radius=float("nan")),
        lambda: CenteredClipping(steps=0),
        lambda: aggregate(rows_for(0), method=NearestToPivot(11), num_byzantine=1),
        lambda: aggregate(rows_for(0), method=NearestToPivot(11), num_byzantine=1, pre=["nnm"]),
        lambda: NearestToPivot(-1),
        lambda: NearestToPivot(1.5),
    ):
        with pytest.raises(UsageError):
            make()
    with pytest.raises(TooFewUpdates, match="centered_clipping needs at least 21"):
        aggregate(rows_for(0), method="centered_clipping", num_byzantine=2)


def test_one_step_of_centred_clipping_needs_no_distances_and_gives_what_they_would_give():
    rows = np.random.default_rng(2).standard_normal((21, 9000)).astype(np.float32)
    rows[:3] *= np.float32(1e-3)
    kernels = []

    def counting(kernel, /, *args):
        kernels.append(kernel.__name__)
        return inline_blocks(rows)(kernel, *args)

    rule = CenteredClipping(radius=20.0)
    quick = aggregate_blocks(counting, 21, method=rule, num_byzantine=1)
    geometry = measure(inline_blocks(rows), origin=True)
    slow = rule.select(None, Setting(21, 1, geometry=geometry))
    assert kernels == ["squares_block", "combine_block"]
    np.testing.assert_allclose(quick.weights, slow.weights, rtol=1e-9)
    by_hand = np.mean([row * min(1.0, 20.0 / np.linalg.norm(row)) for row in rows.astype(float)], axis=0)
    np.testing.assert_allclose(quick.vector, by_hand, rtol=1e-5, atol=1e-7)
